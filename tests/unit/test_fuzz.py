"""A short form of ``python -m tests.fuzz``: what once broke something, and some hundred inputs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz import fuzzer as fuzzers
from tests.fuzz.fuzzer import CASES, Tally
from tests.fuzz.kinds import FUZZERS

NEW = 150
KEPT = sorted(path for path in CASES.glob("*/*") if path.is_file())

pytestmark = pytest.mark.usefixtures("as_root")


@pytest.mark.parametrize("case", KEPT, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_once_broke_something(case: Path) -> None:
    fuzzers.try_one(FUZZERS[case.parent.name], case.read_bytes(), Tally())


@pytest.mark.parametrize("name", FUZZERS)
def test_what_is_nearly_valid(name: str) -> None:
    tally = Tally()
    fuzzers.batch(FUZZERS[name], 1, NEW, tally)
    assert tally.cases >= NEW
    assert len(tally.outcomes) > 1, "all of it comes to the same: little is reached"
