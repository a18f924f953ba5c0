"""What the clock and the computer's sleep lead to, with a worker that only speaks."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from cryptbackd.daemon.schedule import DAY
from cryptbackd.errors import Refused
from cryptbackd.model import JobKind, Outcome, Phase
from tests.unit.test_service import HANG, WAIT, Play, World, play, stick  # noqa: F401

pytestmark = pytest.mark.usefixtures("fake_worker", "as_root")


def when(directory: Path, *keys: str, name: str = "home") -> None:
    file = directory / f"{name}.toml"
    file.write_text("\n".join([file.read_text(), "[when]", *keys, ""]))


def test_a_drive_that_stays_in_is_backed_up_to_again(
    play: Play,  # noqa: F811
    tmp_path: Path,
) -> None:
    async def scene(world: World) -> None:
        when(tmp_path, 'repeat = "1s"')
        world.service.arrived(stick())
        for number in range(3):
            assert (await world.result(number)).outcome is Outcome.DONE
        begun = [run.started for run in world.history.runs()]
        assert begun[0] - begun[1] >= 1
        world.service.left("/dev/sdx")
        await asyncio.sleep(1.5)
        assert len(world.ends) == 3
        world.service.timetable.close()

    play(scene)


def test_an_ejected_drive_is_not_backed_up_to_again(
    play: Play,  # noqa: F811
    tmp_path: Path,
) -> None:
    async def scene(world: World) -> None:
        when(tmp_path, 'repeat = "1s"')
        world.service.arrived(stick())
        await world.result()
        world.service.requests.eject("home")
        await world.result(1)
        await asyncio.sleep(1.5)
        assert len(world.ends) == 2
        world.service.timetable.close()

    play(scene)


def test_a_drive_that_was_not_backed_up_to_is_told(
    play: Play,  # noqa: F811
    tmp_path: Path,
) -> None:
    async def scene(world: World) -> None:
        when(tmp_path, 'remind = "1s"')
        told: list[tuple[str, int]] = []
        world.service.remind = lambda name, days: told.append((name, days))
        world.service.reload()
        await asyncio.sleep(1.5)
        world.service.reload()
        await asyncio.sleep(0.1)
        assert told == [("home", 0)]
        (line,) = [line for line in world.said.lines if line[2].get("message") == "reminder"]
        assert line[:2] == ("home has not been backed up for some hours.", 4)
        world.service.timetable.close()

    play(scene)


def test_before_sleep_everything_ends_and_after_it_goes_on(play: Play) -> None:  # noqa: F811
    async def scene(world: World) -> None:
        world.script = WAIT
        world.service.arrived(stick())
        world.service.arrived(stick("CCCC-DDDD", 7, "/dev/sdx2"))
        await world.phase(Phase.SYNCING)
        world.service.sleep.begins(5.0)
        await world.result(1)
        assert {(job.name, r.outcome) for job, r in world.ends} == {
            ("home", Outcome.CANCELLED),
            ("work", Outcome.CANCELLED),
        }
        assert world.history.runs("home")[0].interrupted
        assert world.history.runs("work") == []  # it had not begun
        with pytest.raises(Refused, match="goes to sleep"):
            world.service.requests.run("home")
        world.service.sleep.ends()
        await world.phase(Phase.SYNCING)
        await asyncio.sleep(0.05)
        assert len(list(world.service.supervisor.jobs())) == 2
        assert not [line for line in world.said.texts() if "before everything was locked" in line]

    play(scene)


def test_what_was_asked_for_is_taken_up_too(play: Play) -> None:  # noqa: F811
    async def scene(world: World) -> None:
        world.service.arrived(stick())
        await world.result()
        world.script = WAIT
        world.service.requests.run("home", full=True)
        await world.phase(Phase.SYNCING)
        world.service.sleep.begins(5.0)
        await world.result(1)
        world.service.sleep.ends()
        await world.phase(Phase.SYNCING)
        (job,) = world.service.supervisor.jobs()
        assert job.options["full"] is True

    play(scene)


@pytest.mark.parametrize("then", ["pulled", "ejected"])
def test_what_is_gone_or_ejected_is_not_taken_up(play: Play, then: str) -> None:  # noqa: F811
    async def scene(world: World) -> None:
        world.script = WAIT
        world.service.arrived(stick())
        await world.phase(Phase.SYNCING)
        world.service.sleep.begins(5.0)
        await world.result()
        if then == "pulled":
            world.service.left("/dev/sdx")
        else:
            world.service.requests.eject("home")
        world.service.sleep.ends()
        await asyncio.sleep(0.1)
        assert [job for job in world.service.supervisor.jobs() if job.recorded] == []

    play(scene)


def test_what_was_not_locked_in_time_is_told_on_waking(play: Play) -> None:  # noqa: F811
    async def scene(world: World) -> None:
        world.script = HANG
        world.service.arrived(stick())
        await world.phase(Phase.SYNCING)
        world.service.sleep.begins(5.0)
        world.service.sleep.ends()
        told = [f for t, _p, f in world.said.lines if "before everything was locked" in t]
        assert [fields["message"] for fields in told] == ["slept_unlocked"]
        world.service.left("/dev/sdx")
        assert (await world.result()).outcome is Outcome.FAILED
        world.script = WAIT
        world.service.arrived(stick(diskseq=8))
        await world.phase(Phase.SYNCING)
        world.service.sleep.begins(0.0)
        await world.result(1)
        world.service.sleep.ends()
        told = [f for t, _p, f in world.said.lines if "before everything was locked" in t]
        assert len(told) == 2

    play(scene)


def test_a_job_that_ends_late_is_taken_up_then(play: Play) -> None:  # noqa: F811
    async def scene(world: World) -> None:
        world.script = [["phase", "syncing"], ["sleep", 0.5], ["stop"]]
        world.service.arrived(stick())
        await world.phase(Phase.SYNCING)
        world.service.sleep.begins(5.0)
        world.service.sleep.ends()
        assert (await world.result()).outcome is Outcome.CANCELLED
        await world.phase(Phase.SYNCING)

    play(scene)


@pytest.mark.parametrize("enrolled", [True, False])
def test_a_first_backup_that_ends_late_is_taken_up_then(
    play: Play,  # noqa: F811
    tmp_path: Path,
    enrolled: bool,
) -> None:
    """But not where an entry was to become that of this drive, and did not yet."""

    async def scene(world: World) -> None:
        said = [["say", "enrolled.", "enrolled"]] if enrolled else []
        world.script = [*said, ["phase", "syncing"], ["sleep", 0.5], ["stop"]]
        drive = stick("EEEE-FFFF", 9, "/dev/sdz1")
        world.service.arrived(drive)
        world.service.requests.init(drive, {"name": "new", "include": ["/etc"]})
        await world.phase(Phase.SYNCING, "new")
        text = (tmp_path / "home.toml").read_text().replace("AAAA-BBBB", "EEEE-FFFF")
        (tmp_path / "new.toml").write_text(text)
        (tmp_path / "new.toml").chmod(0o644)
        world.service.sleep.begins(5.0)
        world.service.sleep.ends()
        assert (await world.result()).outcome is Outcome.CANCELLED
        await asyncio.sleep(0.1)
        jobs = [(job.kind, job.options["full"]) for job in world.service.supervisor.jobs()]
        assert jobs == ([(JobKind.BACKUP, False)] if enrolled else [])

    play(scene)


def test_a_job_that_ends_in_the_next_sleep_is_taken_up_after_it(play: Play) -> None:  # noqa: F811
    """The lid is closed again before what the first sleep has stopped is locked."""

    async def scene(world: World) -> None:
        world.service.arrived(stick())
        await world.result()
        world.script = [["phase", "syncing"], ["sleep", 0.5], ["stop"]]
        world.service.requests.run("home")
        await world.phase(Phase.SYNCING)
        for _ in range(2):
            world.service.sleep.begins(5.0)
            world.service.sleep.ends()
        world.service.sleep.begins(5.0)
        assert (await world.result(1)).outcome is Outcome.CANCELLED
        world.service.sleep.ends()
        await world.phase(Phase.SYNCING)
        assert len(list(world.service.supervisor.jobs())) == 1

    play(scene)


def test_whoever_is_reminded_is_so_of_what_hangs_for_a_day(
    play: Play,  # noqa: F811
    tmp_path: Path,
) -> None:
    async def scene(world: World) -> None:
        when(tmp_path, 'remind = "1s"')
        told: list[str] = []
        world.service.remind = lambda name, _days: told.append(name)
        world.script = WAIT
        ahead = [0.0]
        world.service.timetable.clock = lambda: time.time() + ahead[0]
        world.service.arrived(stick())
        await world.phase(Phase.SYNCING)
        await asyncio.sleep(1.2)
        for ahead[0], times in ((0.0, 0), (DAY - 10.0, 0), (DAY, 1), (DAY + 10.0, 1)):
            world.service.timetable.soon()
            await asyncio.sleep(0.05)
            assert told == ["home"] * times
        await world.service.supervisor.stop_all()
        world.service.timetable.close()

    play(scene)
