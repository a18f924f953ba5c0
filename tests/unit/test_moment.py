"""Which version is meant by what people say of a time."""

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cryptbackd.errors import Refused
from cryptbackd.moment import NAME_FORMAT, Made, choose, spoken, time_of

BERLIN = ZoneInfo("Europe/Berlin")
ZONES = [
    ZoneInfo(name)
    for name in (
        "UTC",
        "Europe/Berlin",
        "America/New_York",
        "America/Havana",  # midnight comes twice
        "America/Sao_Paulo",  # and, until 2018, not at all
        "Australia/Lord_Howe",  # half an hour
        "Pacific/Apia",  # left out a whole day
    )
]
NOW = datetime(2026, 11, 25, 9, 30, tzinfo=UTC).timestamp()  # a Wednesday, 10:30 in Berlin


def name_at(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime(NAME_FORMAT)


def made(*names: str) -> list[Made]:
    return [Made.named(name, number) for number, name in enumerate(names, 1)]


VERSIONS = made(
    "2026-09-30T21:59:59Z",  # the end of September in Berlin
    "2026-11-01T12:00:00Z",
    "2026-11-15T22:30:00Z",  # Sunday night
    "2026-11-20T17:00:20Z",  # 18:00:20 in Berlin
    "2026-11-22T12:00:00Z",  # Sunday
    "2026-11-22T23:30:00Z",  # Monday 0:30 in Berlin
    "2026-11-23T18:00:00Z",
    "2026-11-24T22:59:59Z",  # the last second of yesterday in Berlin
    "2026-11-24T23:00:00Z",  # the first one of today
    "2026-11-25T08:00:00Z",
    "2026-11-25T09:29:30Z",
)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("", "2026-11-25T09:29:30Z"),
        ("newest", "2026-11-25T09:29:30Z"),
        ("last", "2026-11-25T09:29:30Z"),
        ("Latest", "2026-11-25T09:29:30Z"),
        ("today", "2026-11-25T09:29:30Z"),
        ("oldest", "2026-09-30T21:59:59Z"),
        ("yesterday", "2026-11-24T22:59:59Z"),
        ("Yesterday", "2026-11-24T22:59:59Z"),
        ("1 day ago", "2026-11-24T22:59:59Z"),
        ("a day ago", "2026-11-24T22:59:59Z"),
        ("yesterday 20:00", "2026-11-23T18:00:00Z"),
        ("yesterday at 20:00", "2026-11-23T18:00:00Z"),
        ("10:00", "2026-11-25T08:00:00Z"),
        ("1 hour ago", "2026-11-25T08:00:00Z"),
        ("an hour ago", "2026-11-25T08:00:00Z"),
        ("90 minutes ago", "2026-11-25T08:00:00Z"),
        ("91 minutes ago", "2026-11-24T23:00:00Z"),
        ("2 days ago", "2026-11-23T18:00:00Z"),
        ("2  days   ago", "2026-11-23T18:00:00Z"),
        ("the day before yesterday", "2026-11-23T18:00:00Z"),
        ("2 days ago, 19:00", "2026-11-23T18:00:00Z"),
        ("2 days ago 18:59", "2026-11-22T23:30:00Z"),
        ("sunday", "2026-11-22T12:00:00Z"),
        ("last monday", "2026-11-23T18:00:00Z"),
        ("wednesday", "2026-11-15T22:30:00Z"),  # a week ago: today is "today"
        ("last week", "2026-11-22T12:00:00Z"),
        ("a week ago", "2026-11-15T22:30:00Z"),
        ("last month", "2026-09-30T21:59:59Z"),
        ("a month ago", "2026-09-30T21:59:59Z"),
        ("2026-09", "2026-09-30T21:59:59Z"),
        ("2026-11-20", "2026-11-20T17:00:20Z"),
        ("on 2026-11-20", "2026-11-20T17:00:20Z"),
        ("2026-11-20 18:00", "2026-11-20T17:00:20Z"),
        ("2026-11-20 18:00:20", "2026-11-20T17:00:20Z"),
        ("2026-11-20 18:00:19", "2026-11-15T22:30:00Z"),
        ("2026-11-20 17:59", "2026-11-15T22:30:00Z"),
        ("2026-11-20 17:00 UTC", "2026-11-20T17:00:20Z"),
        ("2026-11-20T17:00", "2026-11-20T17:00:20Z"),  # the beginning of its name
        ("2026-11-20T18:00", "2026-11-20T17:00:20Z"),  # no name begins so: it is 18:00 here
        ("2026-11-20T17:00:20Z", "2026-11-20T17:00:20Z"),
        ("2026-11-20t17:00:20z", "2026-11-20T17:00:20Z"),
        ("2026-11-20T17:00:19Z", "2026-11-15T22:30:00Z"),
        ("2026-11-2", "2026-11-01T12:00:00Z"),  # the second of November
        ("2027-01-01", "2026-11-25T09:29:30Z"),
    ],
)
def test_what_people_say(said: str, meant: str) -> None:
    assert choose(said, VERSIONS, NOW, BERLIN).name == meant
    assert choose(f"  {said} ", reversed(VERSIONS), NOW, BERLIN).name == meant


@pytest.mark.parametrize(
    "said",
    [
        "once upon a time",
        "2026-13-01",
        "2026-02-31",
        "25:00",
        "yesterday 12:61",
        "0000-01-01",
        "99999 years ago",
        "2 days",
        "ago",
        ":",
        "x" * 5000,
    ],
)
def test_what_is_no_time(said: str) -> None:
    with pytest.raises(Refused) as refused:
        choose(said, VERSIONS, NOW, BERLIN)
    assert "is neither a time nor a version" in refused.value.sentence
    assert "yesterday" in refused.value.hint
    assert len(refused.value.sentence) < 200


def test_the_beginning_of_a_name() -> None:
    versions = [*VERSIONS, Made("before-the-move", None, 12), Made("before-the-fire", None, 13)]
    assert choose("before-the-m", versions, NOW).name == "before-the-move"
    assert choose("before-the-fire", versions, NOW).name == "before-the-fire"
    with pytest.raises(Refused, match='"before" begins the names of 2 versions: before-the-move'):
        choose("before", versions, NOW)
    with pytest.raises(Refused, match=r"11 versions: .* and 8 more"):
        choose("2026", versions, NOW)


def test_earlier_than_all() -> None:
    with pytest.raises(Refused, match=r'no version from "2026-09-29" or before') as refused:
        choose("2026-09-29", VERSIONS, NOW, BERLIN)
    assert "2026-09-30T21:59:59Z (2026-09-30 23:59:59)" in refused.value.sentence
    with pytest.raises(Refused, match="no version on it yet"):
        choose("yesterday", [], NOW)
    with pytest.raises(Refused, match="tell no time"):
        choose("yesterday", [Made("x", None, 1)], NOW)


def test_a_clock_that_was_wrong() -> None:
    """Made with the clock years behind, or ahead: the others are found by their time."""
    versions = made("2026-11-18T12:00:00Z", "2026-11-20T12:00:00Z", "2001-01-01T00:00:00Z",
                    "2031-01-01T00:00:00Z", "2026-11-22T12:00:00Z")  # fmt: skip
    assert choose("2026-11-19", versions, NOW, BERLIN).name == "2026-11-18T12:00:00Z"
    assert choose("2026-11-21", versions, NOW, BERLIN).name == "2026-11-20T12:00:00Z"
    assert choose("yesterday", versions, NOW, BERLIN).name == "2026-11-22T12:00:00Z"
    assert choose("", versions, NOW, BERLIN).name == "2026-11-22T12:00:00Z"
    assert choose("oldest", versions, NOW, BERLIN).name == "2026-11-18T12:00:00Z"


def test_an_hour_that_comes_twice() -> None:
    """On 2026-10-25 it was 2:30 twice in Berlin: by then both are past."""
    versions = made("2026-10-25T00:29:00Z", "2026-10-25T01:29:00Z", "2026-10-25T02:00:00Z")
    assert choose("2026-10-25 02:30", versions, NOW, BERLIN).sequence == 2
    assert choose("2026-10-25 03:00", versions, NOW, BERLIN).sequence == 3


def test_a_name_beyond_the_calendar_of_here_is_refused_like_any_that_is_too_late() -> None:
    with pytest.raises(Refused, match=r"the first one is 9999-12-31T23:30:00Z\. "):
        choose("yesterday", made("9999-12-31T23:30:00Z"), NOW, BERLIN)


def test_the_name_tells_the_time() -> None:
    assert time_of("1970-01-01T00:00:10Z") == 10
    assert time_of("1970-01-01 00:00:10") is None
    assert spoken(Made("odd\n", None, 1)) == "odd\\n"


moments = st.integers(
    min_value=int(datetime(2008, 1, 1, tzinfo=UTC).timestamp()),
    max_value=int(datetime(2030, 1, 1, tzinfo=UTC).timestamp()),
)
zones = st.sampled_from(ZONES)


def local_day(moment: float, zone: ZoneInfo) -> date:
    return datetime.fromtimestamp(moment, zone).date()


@given(st.lists(moments, unique=True, min_size=1), moments, zones, st.integers(0, 400))
def test_a_day_is_the_calendar_s(times: list[int], now: int, zone: ZoneInfo, days: int) -> None:
    """Held against a definition that knows no daylight-saving time: the date on the clock."""
    versions = [Made.named(name_at(moment), n) for n, moment in enumerate(times, 1)]
    day = local_day(now, zone) - timedelta(days)
    not_after = [moment for moment in times if local_day(moment, zone) <= day]
    for said in (f"{days} days ago", day.isoformat()):
        try:
            found = choose(said, versions, now, zone)
        except Refused:
            assert not not_after
        else:
            assert found.time == max(not_after)


@given(st.lists(moments, unique=True, min_size=1), moments, zones, st.integers(0, 10**5))
def test_minutes_ago_are_minutes(times: list[int], now: int, zone: ZoneInfo, minutes: int) -> None:
    versions = [Made.named(name_at(moment), n) for n, moment in enumerate(times, 1)]
    not_after = [moment for moment in times if moment <= now - 60 * minutes]
    assume(not_after)
    assert choose(f"{minutes} minutes ago", versions, now, zone).time == max(not_after)


@given(moments, zones)
def test_a_version_is_found_by_the_time_that_the_clock_showed(moment: int, zone: ZoneInfo) -> None:
    versions = [Made.named(name_at(moment - 90_000), 1), Made.named(name_at(moment), 2)]
    shown = datetime.fromtimestamp(moment, zone)
    for said in (f"{shown:%Y-%m-%d %H:%M:%S}", f"{shown:%Y-%m-%d %H:%M}", f"{shown:%Y-%m-%d}"):
        assert choose(said, versions, moment + 10**6, zone).sequence == 2
    assert choose(name_at(moment), versions, moment, zone).sequence == 2


@given(st.lists(moments, min_size=1), st.text(max_size=30), moments, zones)
def test_whatever_is_said(times: list[int], said: str, now: int, zone: ZoneInfo) -> None:
    versions = [Made.named(name_at(moment), n) for n, moment in enumerate(times, 1)]
    try:
        assert choose(said, versions, now, zone) in versions
    except Refused as exc:
        refusal = exc
    else:
        return
    assert refusal.sentence.isprintable()
