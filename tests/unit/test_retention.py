"""The rules of [keep], held against what they promise, and against the real borg."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptbackd.config import Count, Keep
from cryptbackd.worker.versions.retention import IN_DOUBT, NEWEST, NO_RULES, Dated, plan

BERLIN = ZoneInfo("Europe/Berlin")
NOW = int(datetime(2026, 11, 25, 12, tzinfo=UTC).timestamp())
DAY = 86_400
RULES = [field.name for field in attrs.fields(Keep)]


def asking(**counts: int) -> Keep:
    """The rules that ask for so many."""
    return Keep(**{rule: Count(count) for rule, count in counts.items()})


def period(rule: str, version: Dated, zone: ZoneInfo) -> str:
    """The period of a rule that a version belongs to."""
    formats = {
        "last": f"{version.sequence}",
        "hourly": "%Y-%m-%d %H %z",
        "daily": "%Y-%m-%d",
        "weekly": "%G-%V",
        "monthly": "%Y-%m",
        "yearly": "%Y",
    }
    return datetime.fromtimestamp(version.finished, zone).strftime(formats[rule])


def dated(times: Sequence[int]) -> list[Dated]:
    """Versions that were made in this order and finished at these times."""
    return [Dated(number, f"v{number}", moment) for number, moment in enumerate(times, 1)]


def utc(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


def gone(versions: Sequence[Dated], keep: Keep, now: int = NOW) -> list[str]:
    return [version.name for version in plan(versions, keep, now, BERLIN).goes]


counts = st.sampled_from([0, 0, 0, 1, 2, 4])
rules = st.builds(
    asking, last=counts, hourly=counts, daily=counts, weekly=counts, monthly=counts, yearly=counts
)
some_rules = rules.filter(lambda keep: keep != Keep())
zones = st.sampled_from(
    ["UTC", "Europe/Berlin", "Asia/Kolkata", "Australia/Lord_Howe", "America/St_Johns"]
).map(ZoneInfo)
gaps = st.sampled_from([1, 600, 3600, 5 * 3600, DAY, 3 * DAY, 7 * DAY, 31 * DAY, 366 * DAY])


@st.composite
def in_order(draw: st.DrawFn) -> list[Dated]:
    """Versions of a computer whose clock was always right."""
    back = draw(
        st.lists(st.tuples(gaps, st.integers(1, 3)), max_size=30, min_size=draw(st.integers(0, 20)))
    )
    times = [NOW - draw(st.integers(0, 400 * DAY))]
    for gap, factor in back:
        times.append(times[-1] - gap * factor)
    return dated(times[::-1])


whenever = st.lists(
    st.integers(-(10**12), 10**12) | st.integers(NOW - 900 * DAY, NOW + 900 * DAY), max_size=25
).map(dated)
"""Versions of a computer whose clock was anything but right."""


@st.composite
def now_and_then(draw: st.DrawFn) -> list[Dated]:
    """Versions of a computer whose clock was wrong now and then."""
    versions = draw(in_order())
    moments = st.sampled_from([0, NOW, NOW + DAY, *[version.finished for version in versions]])
    for _ in range(draw(st.integers(1, 3))):
        index = draw(st.integers(0, len(versions) - 1))
        wrong = draw(moments) + draw(st.integers(-DAY, DAY))
        versions[index] = attrs.evolve(versions[index], finished=wrong)
    return versions


anything = in_order() | now_and_then() | whenever


@given(anything, rules, zones)
def test_the_newest_never_goes(versions: list[Dated], keep: Keep, zone: ZoneInfo) -> None:
    made = plan(versions, keep, NOW, zone)
    for version in versions[-1:]:
        assert version in made.held
        assert version not in made.spare


@given(in_order(), rules, zones)
def test_it_keeps_at_least_what_each_rule_asks(
    versions: list[Dated], keep: Keep, zone: ZoneInfo
) -> None:
    """It is what ``restic forget`` keeps."""
    held = plan(versions, keep, NOW, zone).held
    for rule in RULES:
        wanted = getattr(keep, rule)
        newest = {period(rule, version, zone): version for version in versions}
        latest = sorted(newest.values(), key=lambda version: version.sequence)[-wanted:]
        if wanted:
            assert set(latest) <= set(held)
            assert len(newest) >= wanted or versions[0] in held


@given(in_order(), some_rules, zones)
def test_it_keeps_no_more_than_the_rules_ask(
    versions: list[Dated], keep: Keep, zone: ZoneInfo
) -> None:
    asked = sum(getattr(keep, rule) for rule in RULES)
    assert len(plan(versions, keep, NOW, zone).held) <= asked


@given(anything, rules, zones)
def test_what_is_left_stays_the_second_time(
    versions: list[Dated], keep: Keep, zone: ZoneInfo
) -> None:
    held = plan(versions, keep, NOW, zone).held
    again = plan(held, keep, NOW, zone)
    assert again.goes == ()
    assert again.held == held


@given(anything, rules, zones, st.randoms(use_true_random=False))
def test_the_order_of_the_list_does_not_matter(
    versions: list[Dated], keep: Keep, zone: ZoneInfo, chance: random.Random
) -> None:
    shuffled = chance.sample(versions, len(versions))
    assert plan(shuffled, keep, NOW, zone) == plan(versions, keep, NOW, zone)


@given(anything, rules, zones)
def test_each_version_stays_or_goes_and_what_goes_goes_oldest_first(
    versions: list[Dated], keep: Keep, zone: ZoneInfo
) -> None:
    made = plan(versions, keep, NOW, zone)
    assert sorted([*made.held, *made.goes], key=lambda v: v.sequence) == versions
    for some in (list(made.held), list(made.goes), list(made.spare)):
        assert some == sorted(some, key=lambda v: v.sequence)
    assert set(made.goes) <= set(made.spare)
    for version in made.spare:
        assert made.held.get(version, NO_RULES) in (NO_RULES, IN_DOUBT)


@given(anything)
def test_without_rules_nothing_goes_but_for_space(versions: list[Dated]) -> None:
    made = plan(versions, Keep(), NOW)
    assert made.goes == ()
    assert made.spare == tuple(versions[:-1])


# The clock.


@given(anything, some_rules, zones)
def test_whatever_the_clock_did_what_goes_has_left_its_place_to_newer_ones(
    versions: list[Dated], keep: Keep, zone: ZoneInfo
) -> None:
    """Newer by number and by time: of its own period, or as many others as the rule asks for."""
    made = plan(versions, keep, NOW, zone)
    for version in made.goes:
        assert version.finished <= NOW
        later = [
            other
            for other, why in made.held.items()
            if why != IN_DOUBT
            and other.sequence > version.sequence
            and version.finished <= other.finished <= NOW
        ]
        for rule in RULES:
            periods = {period(rule, other, zone) for other in later}
            assert period(rule, version, zone) in periods or len(periods) >= getattr(keep, rule)


@given(in_order(), st.data(), rules)
def test_a_clock_that_is_behind_deletes_nothing(
    versions: list[Dated], data: st.DataObject, keep: Keep
) -> None:
    """A run at a time before all the others: in 1970, say, for want of a battery."""
    wrong = data.draw(st.integers(0, max(0, versions[0].finished - 1)))
    made = Dated(len(versions) + 1, "new", wrong)
    for now in (wrong, wrong + 60):
        assert plan([*versions, made], keep, min(now, versions[0].finished - 1), BERLIN).goes == ()
    assert plan(versions, keep, versions[0].finished - 1, BERLIN).goes == ()


@given(in_order(), st.data(), some_rules)
def test_versions_of_a_clock_that_was_ahead_stay_and_cost_nothing(
    versions: list[Dated], data: st.DataObject, keep: Keep
) -> None:
    ahead = data.draw(st.lists(st.integers(NOW + 1, NOW + 10**10), max_size=5))
    between = data.draw(st.lists(st.integers(0, 100), min_size=len(ahead), max_size=len(ahead)))
    spaced = [attrs.evolve(v, sequence=101 * v.sequence) for v in versions]
    wrong = [
        Dated(1 + number * 101 // 4, f"w{index}", moment)
        for index, (number, moment) in enumerate(zip(between, ahead, strict=True))
    ]
    made = plan([*spaced, *wrong], keep, NOW, BERLIN)
    assert made.goes == plan(spaced, keep, NOW, BERLIN).goes
    assert set(wrong) <= set(made.held)


@given(in_order(), st.integers(0, 10**10), some_rules)
def test_a_leap_ahead_costs_no_more_than_a_new_version(
    versions: list[Dated], leap: int, keep: Keep
) -> None:
    """Periods that have versions are counted, not ages: at most one goes for each rule."""
    settled = list(plan(versions, keep, NOW, BERLIN).held)
    new = Dated(len(versions) + 1, "new", settled[-1].finished + leap)
    goes = plan([*settled, new], keep, new.finished, BERLIN).goes
    assert len(goes) <= sum(getattr(keep, rule) > 0 for rule in RULES)


def test_one_version_of_1970_is_forgotten_once_the_rules_are_filled_without_it() -> None:
    before = [NOW - days * DAY for days in range(30, 10, -1)]
    keep = asking(daily=3)
    old = dated(before)
    settled = [*list(plan(old, keep, NOW).held), Dated(21, "v21", 5000)]
    made = plan(settled, keep, NOW)
    assert made.goes == ()
    assert [why for _version, why in made.held.items()] == [IN_DOUBT] * 3 + ["daily 1"]
    for number in (22, 23):
        settled.append(Dated(number, f"v{number}", NOW - (30 - number) * DAY))
        assert gone(settled, keep) == []
    settled.append(Dated(24, "v24", NOW - 6 * DAY))
    made = plan(settled, keep, NOW)
    assert [version.name for version in made.goes] == ["v18", "v19", "v20", "v21"]


def test_a_version_without_a_time_stays_and_may_go_for_space() -> None:
    versions = [*dated([-1, NOW - DAY]), Dated(3, "v3", 10**12)]
    made = plan(versions, asking(last=1), NOW)
    assert list(made.held.values()) == [IN_DOUBT, "last 1", NEWEST]
    assert [version.name for version in made.spare] == ["v1"]


# Daylight saving.


def test_a_day_of_25_hours_is_one_day_and_the_hour_that_comes_twice_is_two() -> None:
    hours = dated([utc(f"2026-10-{text}") for text in (
        "24T21:59", "24T22:00", "25T00:30", "25T01:30", "25T22:59", "25T23:00",
    )])  # fmt: skip
    assert gone(hours, asking(daily=3)) == ["v2", "v3", "v4"]
    made = plan(hours, asking(hourly=9), NOW, BERLIN)
    assert made.goes == ()
    assert sorted(made.held.values()) == [f"hourly {number}" for number in range(1, 7)]


def test_a_day_of_23_hours_is_one_day() -> None:
    hours = dated([utc(f"2026-03-{text}") for text in (
        "28T22:59", "28T23:00", "29T00:59", "29T01:00", "29T21:59", "29T22:00",
    )])  # fmt: skip
    assert gone(hours, asking(daily=3)) == ["v2", "v3", "v4"]


def test_weeks_begin_on_monday_and_years_in_january_by_local_time() -> None:
    a_year_apart = dated([utc("2024-06-01"), utc("2025-01-01"), utc("2026-01-01")])
    assert gone(a_year_apart, asking(weekly=2)) == ["v1"]
    new_year = dated([utc("2025-12-28T22:59"), utc("2025-12-28T23:00"), utc("2025-12-31T22:59")])
    more = [*new_year, Dated(4, "v4", utc("2025-12-31T23:00"))]
    assert gone(more, asking(weekly=2)) == ["v2", "v3"]
    assert gone(more, asking(yearly=2)) == ["v1", "v2"]


def test_no_zone_means_that_of_this_computer(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = dated([NOW - hours * 3600 for hours in range(900, 0, -7)])
    keep = asking(hourly=3, daily=4, weekly=2)
    with monkeypatch.context() as change:
        for name in ("Europe/Berlin", "America/St_Johns"):
            change.setenv("TZ", name)
            time.tzset()
            assert plan(versions, keep, NOW) == plan(versions, keep, NOW, ZoneInfo(name))
    time.tzset()


# The real borg.


class Borg:
    """Archives of nothing, with the dates of versions."""

    def __init__(self, directory: Path) -> None:
        program = shutil.which("borg")
        if program is None:
            pytest.fail("The program borg is not installed: `make bootstrap` does it.")
        self._program = program
        self._repository = str(directory / "repository")
        self._nothing = directory / "nothing"
        self._nothing.mkdir()
        self._environment = {
            "PATH": os.defpath,
            "LC_ALL": "C.UTF-8",
            "TZ": "Europe/Berlin",
            "BORG_BASE_DIR": str(directory),
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
        }
        self._run("init", "--encryption", "none", self._repository)

    def _run(self, *arguments: str) -> str:
        ended = subprocess.run(
            [self._program, *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stderr

    def create(self, versions: Sequence[Dated], series: str) -> None:
        """Make an archive for each version."""
        for version in versions:
            moment = datetime.fromtimestamp(version.finished, UTC).strftime("%Y-%m-%dT%H:%M:%S")
            where = f"{self._repository}::{series}-{version.name}"
            self._run("create", "--timestamp", moment, where, str(self._nothing))

    def prune(self, keep: Keep, series: str) -> dict[str, str]:
        """Each archive that it keeps, and why; that ``last`` is "secondly" there is changed."""
        options = [f"--keep-{rule}={getattr(keep, rule)}" for rule in RULES]
        only = ["--glob-archives", f"{series}-*"]
        told = self._run("prune", "--dry-run", "--list", *only, *options, self._repository)
        kept = re.findall(r"Keeping archive \(rule: (\w+)(\[oldest])? #(\d+)\): +\S+-(v\d+)", told)
        assert len(kept) == told.count("Keeping archive") > 0, told
        return {
            name: f"{rule.replace('secondly', 'last')} {number}" + (", oldest" if oldest else "")
            for rule, oldest, number, name in kept
        }


@pytest.fixture(scope="module")
def borg(tmp_path_factory: pytest.TempPathFactory) -> Borg:
    return Borg(tmp_path_factory.mktemp("borg"))


def ours(versions: Sequence[Dated], keep: Keep) -> dict[str, str]:
    return {version.name: why for version, why in plan(versions, keep, NOW, BERLIN).held.items()}


@pytest.mark.parametrize(
    ("series", "last", "scale"),
    [
        ("autumn", "2026-10-25T09:30", 5 * 3600),
        ("spring", "2026-03-30T02:10", 9 * 3600),
        ("years", "2026-11-24T22:40", 40 * DAY),
    ],
)
def test_the_real_borg_keeps_the_same_for_the_same_reasons(
    borg: Borg, series: str, last: str, scale: int
) -> None:
    chance = random.Random(series)
    times = [utc(last)]
    while len(times) < 12:
        times.append(times[-1] - 1800 - int(chance.expovariate(1 / scale)))
    versions = dated(times[::-1])
    borg.create(versions, series)
    combinations = [
        asking(last=3, daily=7, weekly=4, monthly=12),
        asking(hourly=4, daily=2, yearly=3),
        *(asking(**{rule: chance.choice([0, 0, 1, 2, 3]) for rule in RULES}) for _ in range(4)),
    ]
    different = [keep for keep in combinations if keep != Keep()]
    assert len(different) >= 5
    for keep in different:
        assert ours(versions, keep) == borg.prune(keep, series), keep


def test_the_hour_that_comes_twice_is_one_for_borg_and_two_here(borg: Borg) -> None:
    first = utc("2026-10-24T23:30")
    versions = dated([first + number * 3600 for number in range(4)])
    assert datetime.fromtimestamp(first, BERLIN) + timedelta(hours=1) == datetime.fromtimestamp(
        versions[1].finished, BERLIN
    )
    borg.create(versions, "twice")
    keep = asking(hourly=3)
    theirs = {"v4": "hourly 1", "v3": "hourly 2", "v1": "hourly 3"}
    assert borg.prune(keep, "twice") == theirs
    assert ours(versions, keep) == {"v4": "hourly 1", "v3": "hourly 2", "v2": "hourly 3"}


def test_borg_drops_what_was_made_last_by_a_clock_that_is_behind_and_we_do_not(borg: Borg) -> None:
    times = [NOW - 3 * DAY, NOW - 2 * DAY, NOW - DAY, NOW - 900 * DAY]
    versions = dated(times)
    borg.create(versions, "behind")
    keep = asking(last=2)
    assert borg.prune(keep, "behind") == {"v3": "last 1", "v2": "last 2"}
    assert ours(versions, keep) == {
        "v1": IN_DOUBT, "v2": IN_DOUBT, "v3": IN_DOUBT, "v4": "last 1",
    }  # fmt: skip
