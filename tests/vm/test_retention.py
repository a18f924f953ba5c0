"""Versions that no rule of [keep] holds go: the right ones, wholly, and as the journal says."""

from __future__ import annotations

import re

import pytest

from tests.machine import Machine
from tests.machine.enroll import credential, init
from tests.vm.container import TREE, listing, opened
from tests.vm.failing import Hold, kill, succeeds_next, tells
from tests.vm.runs import MIB, PATIENCE, ended, now

ENTRY = "/etc/cryptback/drives.d/home.toml"
HOUR, DAY = 3600, 86_400


def keep(vm: Machine, *rules: str) -> None:
    """Give the drive's entry a table [keep]."""
    text = vm.pull(ENTRY).decode()
    vm.push(ENTRY, "\n".join([text, "[keep]", *rules, ""]), 0o600)


def made(vm: Machine, since: str) -> str:
    """The name of the version that was made since then."""
    told = [entry["MESSAGE"] for entry in vm.journal(since=since, CRYPTBACK_DRIVE="home")]
    names = re.findall(r"^home: version (\S+) made\.$", "\n".join(told), re.MULTILINE)
    assert len(names) == 1, told
    return str(names[0])


def removed(vm: Machine, since: str) -> list[str]:
    """The names of the versions that were removed since then, by what the journal says."""
    told = [entry["MESSAGE"] for entry in vm.journal(since=since, CRYPTBACK_DRIVE="home")]
    pattern = r"^home: version (\S+) removed: no rule of \[keep\] holds it\.$"
    return re.findall(pattern, "\n".join(told), re.MULTILINE)


def back_up_at(vm: Machine, seconds: float) -> None:
    """Back up by this clock (Unix time)."""
    vm.set_clock(seconds)
    vm.run("date > /home/me/date")
    vm.run(["cryptback", "run", "home"], timeout=PATIENCE)


def run_at(vm: Machine, seconds: float) -> str:
    """Back up by this clock; the new version's name."""
    since = now(vm)
    back_up_at(vm, seconds)
    return made(vm, since)


def there(vm: Machine) -> list[str]:
    """All that lies beside the versions, and they themselves."""
    with opened(vm):
        return sorted(vm.run(f"ls -A {TREE}/versions").out.split())


def whole(names: list[str]) -> list[str]:
    """What lies there when these versions do, and nothing else."""
    return sorted(f"{name}{end}" for name in names for end in ("", ".json", ".manifest"))


@pytest.mark.timeout(600, func_only=True)
def test_what_no_rule_holds_goes_and_a_clock_set_back_deletes_nothing(enrolled: Machine) -> None:
    vm = enrolled
    since = now(vm)
    stick = vm.stick("main")
    stick.plug()
    ended(vm)
    plugged = made(vm, since)
    noon = (vm.clock() // DAY + 1) * DAY + DAY / 2
    second = run_at(vm, noon)
    third = run_at(vm, noon + HOUR)
    fourth = run_at(vm, noon + DAY)
    assert removed(vm, since) == []
    with opened(vm) as container:
        first, *others = container.versions()
        assert others == [plugged, second, third, fourth]
        files = {name: container.listing(name) for name in (plugged, third, fourth)}
    assert len({*files.values()}) == 3

    keep(vm, "last = 2", "daily = 2")
    since = now(vm)
    fifth = run_at(vm, noon + 2 * DAY)
    # last: fifth, fourth; daily: of the days before these, the newest of each.
    assert removed(vm, since) == [first, second]
    assert vm.journal(since=since, MESSAGE="You may unplug home now.")
    assert there(vm) == whole([plugged, third, fourth, fifth])
    with opened(vm) as container:
        assert {name: container.listing(name) for name in files} == files
        assert container.listing(fifth) == listing(vm, "/home/me")

    before = there(vm)
    for shift in (-400 * DAY, -399 * DAY):
        back_up_at(vm, noon + shift)
    assert set(before) < set(there(vm))
    assert len(there(vm)) == 3 * 6
    back_up_at(vm, noon + 3 * DAY)
    assert set(before) < set(there(vm))
    assert len(there(vm)) == 3 * 7


def test_interrupted_removal_is_finished_by_the_next_run(vm: Machine) -> None:
    """Hard links: what other versions have too stays, and no link is followed."""
    vm.run(
        "mkdir -p /home/me/letters /srv/other && cd /home/me && echo precious > /srv/other/file"
        " && echo hello > letters/first && ln -s /srv/other outside && ln -s / root"
        " && chown -R me: /home/me"
    )
    credential(vm, "home")
    stick = vm.stick("main", size=112 * MIB, fs="ext4")
    stick.plug()
    since = now(vm)
    init(vm, stick.partition, "home", "--size", "64M", "--filesystem", "ext4")
    stick.pull()
    first = made(vm, since)
    keep(vm, "last = 1")
    vm.run("echo again > /home/me/letters/second")

    vm.expect_journal("^cryptbackd: home: failed: ")
    hold = Hold(vm, "/usr/bin/rm", r"\.removed-")
    since = now(vm)
    stick.plug()
    stopped = hold.wait(timeout=PATIENCE)
    assert stopped.line.split()[-1].endswith(f"/versions/.removed-{first}")
    vm.wait_journal("^home: version .* removed: ", since=since)
    second = made(vm, since)
    assert removed(vm, since) == [first]
    kill(vm, stopped.worker)
    tells(vm, "The worker was killed by SIGKILL while removing", since=since)
    with opened(vm) as container:
        assert container.versions() == [second]
        assert container.listing(second) == listing(vm, "/home/me")
    assert f".removed-{first}" in there(vm)

    # The computer still remembers the first one, which is gone: that is no reason to warn.
    since = now(vm)
    succeeds_next(vm)
    third = made(vm, since)
    assert removed(vm, since) == [second]
    assert there(vm) == whole([third])
    with opened(vm) as container:
        assert container.listing(third) == listing(vm, "/home/me")
    assert vm.run(["cat", "/srv/other/file"]).out == "precious\n"
