"""Fixtures and hooks of the tests that run in the machine.

After each of these the machine is searched for leftovers, and a failure is reported with the
machine's logs.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.machine import Machine, layers, oracle, slots

VM_TESTS = Path(__file__).parent / "vm"
PROMISES = Path(__file__).parents[1] / "docs" / "promises.md"
"""Names the tests that keep the promises of the README, and which of them are in `make test`."""
CAMPAIGN = VM_TESTS / "campaign.txt"
"""Names the tests, and variants of tests, that are in `make campaign` alone."""

TIME_LIMIT = 300
"""Seconds for a test that says nothing else, without the building of layers."""


@pytest.fixture(autouse=True)
def _slot(request: pytest.FixtureRequest) -> Iterator[None]:
    """A place among the tests in machines, which are not to be more than the processors."""
    if not request.path.is_relative_to(VM_TESTS):
        yield
        return
    with slots.slot(alone=request.node.get_closest_marker("alone") is not None):
        yield


@pytest.fixture
def bare_vm() -> Iterator[Machine]:
    """A machine that has just booted, without the package."""
    with layers.resume(layers.BOOTED) as vm:
        yield vm


@pytest.fixture
def vm() -> Iterator[Machine]:
    """A machine with the package installed."""
    with layers.resume(layers.INSTALLED) as vm:
        yield vm


@pytest.fixture
def enrolled() -> Iterator[Machine]:
    """A machine that knows a stick, `vm.stick("main")`."""
    with layers.resume(layers.ENROLLED) as vm:
        yield vm


@pytest.fixture(scope="session")
def backed_up() -> Iterator[Machine]:
    """A machine whose stick "main" was backed up to and is still in, for tests that only look.

    Two files of four bytes had changed.
    """
    with layers.resume(layers.ENROLLED) as vm:
        vm.run("cd /home/me && echo one > one && echo two > two")
        vm.stick("main").plug()
        vm.wait_journal("^home: finished: ", CRYPTBACK_DRIVE="home")
        yield vm


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "vm: runs in the test machine (all of tests/vm does)")
    config.addinivalue_line(
        "markers",
        "slow: only in `make test-all`; docs/promises.md says which tests are not",
    )
    config.addinivalue_line("markers", "alone: no other test runs beside it, as it measures time")
    config.addinivalue_line(
        "markers",
        "campaign: only in `make campaign`; tests/vm/campaign.txt names them",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    promised = set(re.findall(r"::(test_\w+)` \|$", PROMISES.read_text(), re.MULTILINE))
    more = set(CAMPAIGN.read_text().splitlines())
    for item in items:
        if item.path.is_relative_to(VM_TESTS):
            item.add_marker(pytest.mark.vm)
            if item.name in more:
                item.add_marker(pytest.mark.campaign)
            elif getattr(item, "originalname", "") not in promised:
                item.add_marker(pytest.mark.slow)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(TIME_LIMIT, func_only=True))
    items.sort(key=_time_limit, reverse=True)  # what is long begins first, and ends with the rest


def _time_limit(item: pytest.Item) -> float:
    marker = item.get_closest_marker("timeout")
    return float(marker.args[0]) if marker else 0


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """A test that passes must also leave nothing behind."""
    result = yield
    for machine in _machines(pyfuncitem):
        oracle.check(machine)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure comes with the machine's logs."""
    report = yield
    if report.when == "call" and report.failed:
        for machine in _machines(item):
            report.sections.extend(machine.report())
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what tests measured (`record_property`), whichever process they ran in."""
    reports = [report for group in terminalreporter.stats.values() for report in group]
    calls = [each for each in reports if getattr(each, "when", "") == "call"]
    measured = [pair for report in calls for pair in report.user_properties]
    if measured:
        terminalreporter.section("measured")
    for what, value in measured:
        terminalreporter.write_line(f"{what}: {value}")


def _machines(item: pytest.Item) -> list[Machine]:
    values = getattr(item, "funcargs", {}).values()
    return [value for value in values if isinstance(value, Machine)]
