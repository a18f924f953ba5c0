"""Which versions the rules hold: properties, examples, and the real restic on the same times."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptbackd.config import Count, Keep
from cryptbackd.worker.versions.retention import Dated, Decision, decide

BERLIN = ZoneInfo("Europe/Berlin")
RULES = ("last", "hourly", "daily", "weekly", "monthly", "yearly")
NOW = 1_800_000_000.0

counts = st.integers(0, 8)
rules = st.builds(lambda *n: Keep(*map(Count, n)), *[counts] * len(RULES))
some = st.builds(lambda *n: Keep(*map(Count, n)), st.integers(1, 3), *[counts] * 5)
times = st.lists(st.floats(NOW - 5 * 365 * 86_400, NOW), max_size=40)


def dated(finished: Sequence[float]) -> list[Dated]:
    return [Dated(number, each) for number, each in enumerate(finished, 1)]


def held(decisions: Sequence[Decision]) -> list[Dated]:
    return [decision.version for decision in decisions if decision.reasons]


@given(st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=40), rules)
def test_the_newest_stays_whatever_the_clock_says(finished: list[float], keep: Keep) -> None:
    versions = dated(finished)
    assert versions[-1] in held(decide(versions, keep, now=NOW, zone=BERLIN))


@given(st.lists(st.floats(-1e12, 1e12), max_size=40), rules)
def test_applied_again_it_removes_nothing_more(finished: list[float], keep: Keep) -> None:
    once = held(decide(dated(finished), keep, now=NOW, zone=BERLIN))
    assert held(decide(once, keep, now=NOW, zone=BERLIN)) == once


@given(times, rules, st.randoms(use_true_random=False))
def test_the_order_in_which_they_are_told_does_not_matter(
    finished: list[float], keep: Keep, chance: random.Random
) -> None:
    versions = dated(finished)
    shuffled = list(versions)
    chance.shuffle(shuffled)
    zone = BERLIN
    assert decide(shuffled, keep, now=NOW, zone=zone) == decide(versions, keep, now=NOW, zone=zone)


@given(times, some)
def test_each_rule_has_at_least_what_it_asks_for(finished: list[float], keep: Keep) -> None:
    versions = dated(sorted(finished))
    kept = held(decide(versions, keep, now=NOW, zone=BERLIN))
    days = {datetime.fromtimestamp(v.finished, BERLIN).date() for v in versions}
    wanted = sorted(days)[len(days) - min(keep.daily, len(days)) :]
    assert set(wanted) <= {datetime.fromtimestamp(v.finished, BERLIN).date() for v in kept}
    assert len(kept) >= min(keep.last, len(versions))


@given(times)
def test_without_rules_all_stay(finished: list[float]) -> None:
    versions = dated(finished)
    assert held(decide(versions, Keep(), now=NOW, zone=BERLIN)) == versions


@given(times, some, st.integers(0, 40), st.floats(-1e10, 1e10))
def test_one_leap_of_the_clock_removes_nothing_of_before(
    finished: list[float], keep: Keep, at: int, leap: float
) -> None:
    """What went before the leap, and stays without it, stays with it."""
    ordered = sorted(finished)
    leapt = [each + leap if number == at else each for number, each in enumerate(ordered)]
    with_it = held(decide(dated(leapt), keep, now=NOW, zone=BERLIN))
    if at < len(ordered) and (leapt != sorted(leapt) or max(leapt) > NOW):
        assert Dated(at + 1, leapt[at]) in with_it


def test_what_is_to_come_is_held() -> None:
    versions = dated([NOW - 86_400, NOW + 1, NOW + 2])
    reasons = decide(versions, Keep(last=Count(1)), now=NOW)
    assert [decision.reasons for decision in reasons] == [
        (),
        ("the clock was set",),
        ("newest", "the clock was set", "last"),
    ]


def test_a_clock_set_back_holds_what_it_contradicts() -> None:
    versions = dated([NOW - 3000, NOW - 2000, 0.0, NOW - 1000])
    assert held(decide(versions, Keep(last=Count(1)), now=NOW)) == versions[:3] + versions[3:]


def test_two_hours_of_one_name_are_two_hours() -> None:
    """In the night in which clocks are set back an hour."""
    night = datetime(2026, 10, 24, 22, 30, tzinfo=UTC).timestamp()
    versions = dated([night + hour * 3600 for hour in range(6)])
    kept = held(decide(versions, Keep(hourly=Count(4)), now=NOW, zone=BERLIN))
    assert kept == versions[2:]


def test_a_day_of_23_hours_is_a_day() -> None:
    night = datetime(2026, 3, 28, 22, 30, tzinfo=UTC).timestamp()
    versions = dated([night + hour * 3600 for hour in range(30)])
    kept = held(decide(versions, Keep(daily=Count(3)), now=NOW, zone=BERLIN))
    local = [datetime.fromtimestamp(version.finished, BERLIN) for version in kept]
    assert [(at.day, at.hour) for at in local] == [(28, 23), (29, 23), (30, 5)]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of restic with snapshots at odd times of two years."""
    place = tmp_path_factory.mktemp("restic")
    restic(place, "init")
    (place / "file").write_text("something")
    chance = random.Random(17)
    moment = datetime(2024, 10, 20, 9, 0, 30, tzinfo=BERLIN)
    for _ in range(30):
        moment += timedelta(minutes=chance.choice([7, 45, 200, 1_500, 9_000, 50_000]))
        at = moment.astimezone(BERLIN).strftime("%Y-%m-%d %H:%M:%S")
        restic(place, "backup", "--time", at, str(place / "file"))
    return place


def restic(place: Path, *words: str) -> str:
    argv = ["/usr/bin/restic", "--repo", str(place / "repository"), "--quiet", *words]
    around = {**os.environ, "RESTIC_PASSWORD": "x", "TZ": "Europe/Berlin", "HOME": str(place)}
    return subprocess.run(argv, check=True, capture_output=True, text=True, env=around).stdout


@pytest.mark.parametrize(
    "asked",
    [
        {"last": 5},
        {"daily": 7},
        {"weekly": 4, "monthly": 12},
        {"last": 3, "daily": 7, "weekly": 4, "monthly": 12, "yearly": 2},
        {"hourly": 24, "yearly": 10},
        {"last": 100},
    ],
)
def test_restic_keeps_the_same(repository: Path, asked: dict[str, int]) -> None:
    words = [f"--keep-{rule}={count}" for rule, count in asked.items()]
    (group,) = json.loads(restic(repository, "forget", "--dry-run", "--json", *words))
    both = [*group["keep"], *(group["remove"] or [])]
    finished = sorted(datetime.fromisoformat(each["time"]).timestamp() for each in both)
    versions = dated(finished)
    keep = Keep(**{rule: Count(count) for rule, count in asked.items()})
    ours = [v.finished for v in held(decide(versions, keep, now=NOW, zone=BERLIN))]
    theirs = sorted(datetime.fromisoformat(each["time"]).timestamp() for each in group["keep"])
    assert ours == theirs
