"""Runs again and reminders, whatever happens to the clock meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptbackd import config
from cryptbackd.daemon import schedule
from cryptbackd.daemon.alarm import GRACE
from cryptbackd.daemon.entries import EntryStore
from cryptbackd.daemon.policy import MAX_INTERRUPTIONS, Again, Past, again
from cryptbackd.daemon.schedule import DAY, Moment
from cryptbackd.daemon.timetable import Timetable
from cryptbackd.model import Outcome

HOUR = 3600
YEAR = 365 * DAY
START = 1_800_000_000.0
DONE, BROKEN_OFF = Past(Outcome.DONE), Past(Outcome.CANCELLED, interrupted=True)


def test_a_moment_of_the_past_counts_as_it_was_written_down() -> None:
    assert schedule.moment(100, 200) == Moment(100, 100)
    assert schedule.moment(100, 200, Moment(100, 50)) == Moment(100, 100)


def test_a_moment_ahead_counts_from_when_it_was_first_seen() -> None:
    first = schedule.moment(500, 200)
    assert first == Moment(500, 200)
    assert schedule.moment(500, 300, first) == Moment(500, 200)
    assert schedule.moment(500, 150, first) == Moment(500, 150)  # set back once more
    assert schedule.moment(600, 300, first) == Moment(600, 300)  # another one


def test_a_clock_that_was_wrong_for_a_while_changes_nothing() -> None:
    """As at boot, before the time is known."""
    early = schedule.moment(START, 0)
    assert schedule.moment(START, START + HOUR, early) == Moment(START, START)


@given(
    st.floats(0, 1e10),
    st.floats(0, 1e10),
    st.none() | st.builds(Moment, st.floats(0, 1e10), st.floats(0, 1e10)),
)
def test_no_moment_lies_ahead(said: float, now: float, before: Moment | None) -> None:
    moment = schedule.moment(said, now, before)
    assert moment.counts <= now
    assert schedule.moment(said, now, moment) == moment


def test_the_clock_begins_no_first_run_and_none_after_an_eject() -> None:
    assert again([]) is Again.NOT
    assert again([BROKEN_OFF]) is Again.NOT
    assert again([DONE]) is Again.WHEN_DUE
    assert again([DONE], ejected=True) is Again.NOT
    assert again([DONE], candidates=2) is Again.NOT
    assert again([DONE, Past(None)]) is Again.NOT


def test_a_repeated_run_that_was_broken_off_is_taken_up_a_few_times() -> None:
    assert again([DONE, BROKEN_OFF]) is Again.NOW
    assert again([DONE, BROKEN_OFF, DONE]) is Again.WHEN_DUE
    assert again([DONE, *[BROKEN_OFF] * MAX_INTERRUPTIONS]) is Again.NOT


def test_at_most_holds_for_repeats() -> None:
    assert schedule.run_again(START, HOUR, DAY) == START + DAY
    assert schedule.run_again(START, DAY, HOUR) == START + DAY


@attrs.define
class Memory:
    """In the history's place, for one drive."""

    attempt: float = 0.0
    success: float = 0.0
    moments: dict[str, Moment] = attrs.field(factory=dict)

    def last_attempt(self, _name: str) -> float:
        return self.attempt

    def last_success(self, _name: str) -> float:
        return self.success

    def moment(self, _name: str, what: str) -> Moment | None:
        return self.moments.get(what)

    def keep_moment(self, _name: str, what: str, moment: Moment) -> None:
        self.moments[what] = moment


@attrs.define
class Clock:
    """In the alarm's place."""

    when: float | None = None

    def set(self, when: float | None) -> None:
        self.when = when


@attrs.frozen
class Known:
    """In the entries' place."""

    entries: config.Entries

    def now(self) -> config.Entries:
        return self.entries


@attrs.define
class World:
    """A drive that stays in, a clock that people set, and the real time, which they can't."""

    entry: config.Entry
    works: bool = True
    busy: bool = False
    real: float = 0.0
    shift: float = START
    memory: Memory = attrs.field(factory=Memory)
    alarm: Clock = attrs.field(factory=Clock)
    runs: list[float] = attrs.field(factory=list)
    reminders: list[float] = attrs.field(factory=list)
    looks: int = 0
    timetable: Timetable = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Start the daemon (anew)."""
        entries = config.Entries({"home": self.entry}, {}, {})
        store: EntryStore = Known(entries)  # type: ignore[assignment]
        self.timetable = Timetable(
            self.memory,  # type: ignore[arg-type]
            store,
            lambda _name, _entry: Again.WHEN_DUE,
            lambda _name, _entry: self.run(),
            lambda _name: self.busy,
            lambda _name, _days: self.reminders.append(self.real),
            self.now,
        )
        self.timetable._alarm = self.alarm  # type: ignore[assignment]
        self.look()

    def now(self) -> float:
        return self.shift + self.real

    def look(self) -> None:
        self.looks += 1
        ran = len(self.runs)
        self.timetable._look()
        if len(self.runs) > ran:  # its end is a change
            self.timetable._look()

    def run(self) -> None:
        self.runs.append(self.real)
        self.memory.attempt = self.now()
        if self.works:
            self.memory.success = self.now()

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        end = self.real + seconds
        while self.alarm.when is not None and self.alarm.when - self.shift + GRACE <= end:
            self.real = max(self.real, self.alarm.when - self.shift + GRACE)
            self.look()
            assert self.alarm.when is None or self.alarm.when > self.now()
            assert self.looks < 10_000
        self.real = end

    def set_clock(self, by: float) -> None:
        """Set the clock; the alarm tells of it."""
        self.shift = max(self.shift + by, DAY - self.real)  # the kernel knows no time before 1970
        if self.alarm.when is not None:
            self.look()


JUMPS = st.one_of(
    st.just(0.0),
    st.floats(-2 * HOUR, 2 * HOUR),
    st.floats(-10 * YEAR, 10 * YEAR),
    st.just(-START),
)
STEPS = st.lists(st.tuples(JUMPS, st.floats(0, 20 * DAY), st.booleans()), min_size=1, max_size=8)


def entry(**when: int) -> config.Entry:
    durations = {key: config.Duration(value) for key, value in when.items()}
    return config.Entry(config.Uuid("x"), when=config.When(**durations))


def lived_through(
    world: World, steps: list[tuple[float, float, bool]]
) -> Iterator[tuple[float, float]]:
    """Set the clock, perhaps start anew, and wait, for each step; when it began and its length."""
    for jump, length, restart in steps:
        world.set_clock(jump)
        if restart:
            world.start()
        begun = world.real
        world.wait(length)
        yield begun, length


@pytest.mark.parametrize("works", [True, False])
@given(steps=STEPS, repeat=st.integers(HOUR, 5 * DAY))
def test_no_storm_of_runs_and_no_silence(
    works: bool, steps: list[tuple[float, float, bool]], repeat: int
) -> None:
    world = World(entry(repeat=repeat), works)
    for begun, length in lived_through(world, steps):
        runs = [run for run in world.runs if run > begun]
        assert len(runs) <= length / repeat + 1
        moments = [begun, *runs, begun + length]
        gaps = [later - earlier for earlier, later in pairwise(moments)]
        # A clock that was set back, and is set right or catches up, may delay one as long again.
        assert max(gaps) <= 2 * repeat + 1
    assert len(world.runs) <= world.real / repeat + len(steps) + 1


@given(steps=STEPS, remind=st.integers(HOUR, 15 * DAY))
def test_no_storm_of_reminders_and_no_silence(
    steps: list[tuple[float, float, bool]], remind: int
) -> None:
    world = World(entry(remind=remind))
    for begun, length in lived_through(world, steps):
        told = [when for when in world.reminders if when > begun]
        assert len(told) <= length / DAY + 1
        moments = [begun, *told, begun + length]
        gaps = [later - earlier for earlier, later in pairwise(moments)]
        assert gaps[0] <= 2 * max(remind, DAY) + 1
        assert max(gaps[1:], default=0) <= 2 * DAY + 1
    assert len(world.reminders) <= world.real / DAY + len(steps) + 1


def test_a_restart_does_not_remind_again() -> None:
    world = World(entry(remind=2 * DAY))
    world.wait(2 * DAY + 1)
    for _ in range(3):
        world.start()
    assert len(world.reminders) == 1
    world.wait(DAY)
    assert len(world.reminders) == 2


def test_a_success_ends_the_reminders() -> None:
    world = World(entry(remind=2 * DAY))
    world.wait(4 * DAY + 1)
    assert len(world.reminders) == 3
    assert world.timetable.reminded("home") == pytest.approx(world.now() - 1, abs=0.1)
    world.run()
    assert world.timetable.reminded("home") == 0
    world.look()
    world.wait(2 * DAY - 1)
    assert len(world.reminders) == 3
    world.wait(2)
    assert len(world.reminders) == 4


def test_a_reminder_stands_though_the_clock_was_wrong_at_the_last_success() -> None:
    world = World(entry(remind=2 * DAY))
    world.set_clock(YEAR)
    world.wait(1)
    world.run()
    world.look()
    world.set_clock(-YEAR)
    world.reminders.clear()
    assert world.timetable.reminded("home") == 0
    world.wait(2 * DAY + 1)
    assert len(world.reminders) == 1
    assert world.timetable.reminded("home") == pytest.approx(world.now() - 1, abs=0.1)
    world.run()
    assert world.timetable.reminded("home") == 0


def test_nothing_wakes_the_daemon_but_what_is_due() -> None:
    world = World(entry(repeat=DAY, remind=14 * DAY))
    world.run()
    world.look()
    before = world.looks
    world.wait(10 * DAY + 1)
    assert len(world.runs) == 12  # the first one, since none was known, and that of above
    assert world.looks - before == 10
    quiet = World(entry())
    assert quiet.alarm.when is None


def test_what_goes_on_for_long_is_no_reason_not_to_remind() -> None:
    world = World(entry(remind=2 * DAY, repeat=30 * DAY))
    world.wait(2 * DAY - HOUR)
    world.busy = True  # it hangs, or is open for browsing
    world.look()
    world.wait(DAY - 1)
    assert world.reminders == []
    world.wait(2 * DAY + 2)
    assert [round(told - world.reminders[0], 1) for told in world.reminders] == [0, DAY, 2 * DAY]
    assert world.reminders[0] == pytest.approx(3 * DAY - HOUR, abs=1)
    runs = len(world.runs)
    world.wait(40 * DAY)
    assert len(world.runs) == runs
    world.set_clock(-60 * DAY)
    assert world.timetable._busy_since["home"] <= world.now()
    world.busy = False
    world.look()
    assert world.timetable._busy_since == {}
