"""The daemon's heart with a worker that only speaks: arrivals, pulls, stops, deaths."""

from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from cryptbackd import paths
from cryptbackd.daemon import children, entries
from cryptbackd.daemon.history import History
from cryptbackd.daemon.jobs import Job
from cryptbackd.daemon.keys import Key, Request
from cryptbackd.daemon.service import Service
from cryptbackd.daemon.status import State
from cryptbackd.daemon.supervisor import Supervisor
from cryptbackd.daemon.sweep import Swept
from cryptbackd.daemon.watch import Seen
from cryptbackd.errors import Busy, ConfigError, DriveAbsent, Refused, UnknownDrive
from cryptbackd.model import Device, JobKind, Outcome, Phase, RunResult, StopReason
from tests.unit.conftest import Journal, Sweeps

pytestmark = pytest.mark.usefixtures("fake_worker", "as_root")


def stick(uuid: str = "AAAA-BBBB", diskseq: int = 7, node: str = "/dev/sdx1") -> Seen:
    return Seen(
        Device(node, 8, 1, node.rstrip("0123456789"), diskseq, uuid, "vfat"), "SanDisk Ultra"
    )


@attrs.define
class Secret:
    """A source that always has the same key."""

    name: str = "test"
    asks_again: bool = False

    async def key(self, _request: Request) -> Key | None:
        reading, writing = os.pipe()
        os.write(writing, b"secret\n")
        os.close(writing)
        return Key(self.name, reading)


@attrs.define
class Patient:
    """A source that waits for a person who never comes."""

    name: str = "patient"
    asks_again: bool = True
    waiting: int = 0

    async def key(self, _request: Request) -> Key | None:
        self.waiting += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.waiting -= 1
        return None


class World:
    """A service and what it said; ``script`` is what the next workers do."""

    def __init__(self, directory: Path, said: Journal, sweeps: Sweeps) -> None:
        self.said = said
        self.sweeps = sweeps
        self.history = History(directory / "history.db", lambda _sentence: None)
        self.ends: list[tuple[Job, RunResult]] = []
        self.changed = asyncio.Event()
        self.service = Service(self.history, "boot", self._changed, self._ended)
        self.service.store.directory = directory
        self.sources: list[Any] = [Secret()]
        self.service.supervisor.sources = lambda: self.sources
        self.script: list[Any] | None = None

    def _changed(self, _name: str) -> None:
        self.changed.set()

    def _ended(self, job: Job, result: RunResult) -> None:
        self.ends.append((job, result))
        self.changed.set()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait for news until *condition* holds."""
        async with asyncio.timeout(10):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def phase(self, phase: Phase, name: str = "home") -> None:
        await self.until(lambda: self.service.views.of(name).phase is phase)

    async def result(self, number: int = 0) -> RunResult:
        await self.until(lambda: len(self.ends) > number)
        return self.ends[number][1]


@pytest.fixture
def play(
    tmp_path: Path, said: Journal, sweeps: Sweeps, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[World], Awaitable[None]]], None]:
    monkeypatch.setattr(entries, "keep_markers", lambda _entries: None)
    exists = os.path.exists
    monkeypatch.setattr(
        os.path, "exists", lambda path: str(path).startswith("/dev/sd") or exists(path)
    )
    for name, uuid in (("home", "AAAA-BBBB"), ("work", "CCCC-DDDD")):
        file = tmp_path / f"{name}.toml"
        file.write_text(f'uuid = "{uuid}"\n[backup]\ninclude = ["/etc"]\n')
        file.chmod(0o644)

    def run(scene: Callable[[World], Awaitable[None]]) -> None:
        async def main() -> None:
            mistakes: list[Any] = []
            asyncio.get_running_loop().set_exception_handler(
                lambda _loop, context: mistakes.append(context)
            )
            world = World(tmp_path, said, sweeps)
            submit = Supervisor.submit

            def scripted(supervisor: Supervisor, job: Job) -> None:
                if world.script is not None:
                    job.options = {**job.options, "script": world.script}
                submit(supervisor, job)

            monkeypatch.setattr(Supervisor, "submit", scripted)
            descriptors = len(os.listdir("/proc/self/fd"))
            await scene(world)
            await world.service.supervisor.stop_all()
            await children._abandoned.all_ended()
            assert mistakes == []
            assert len(os.listdir("/proc/self/fd")) == descriptors
            world.history.close()

        asyncio.run(main())

    return run


HANG: list[Any] = [["phase", "syncing"], ["hang"]]
WAIT: list[Any] = [["phase", "syncing"], ["stop"]]
Play = Callable[[Callable[[World], Awaitable[None]]], None]


def test_a_known_drive_runs_once_an_insertion(play: Play) -> None:
    async def scene(world: World) -> None:
        world.service.arrived(stick())
        assert (await world.result()).outcome is Outcome.DONE
        world.service.arrived(stick())  # a `change`, as closing a written device makes it
        assert world.service.views.of("home").state is State.IDLE
        world.service.left("/dev/sdx1")
        world.service.arrived(stick(diskseq=8))
        await world.result(1)
        assert world.said.outcomes() == ["done", "done"]
        assert world.said.texts()[0] == "home: backup begun on /dev/sdx1 (SanDisk Ultra)."
        assert "home: got secret from test" in world.said.texts()
        assert world.sweeps.names == []

    play(scene)


def test_a_stop_that_comes_too_late_loses_nothing(play: Play) -> None:
    async def scene(world: World) -> None:
        world.script = [["phase", "proving"], ["ignore"]]
        world.service.arrived(stick())
        await world.phase(Phase.PROVING)
        world.service.requests.cancel("home")
        assert (await world.result()).outcome is Outcome.DONE
        assert world.said.outcomes() == ["done"]

    play(scene)


def test_an_unknown_drive_is_nobodys_business(play: Play) -> None:
    async def scene(world: World) -> None:
        world.service.arrived(stick("FFFF-FFFF"))
        assert world.said.lines == []
        assert list(world.service.supervisor.jobs()) == []

    play(scene)


def test_a_filesystem_made_late_counts(play: Play) -> None:
    async def scene(world: World) -> None:
        world.service.arrived(stick(""))
        assert list(world.service.supervisor.jobs()) == []
        world.service.arrived(stick())
        assert (await world.result()).outcome is Outcome.DONE

    play(scene)


def test_two_drives_with_one_uuid_are_both_refused(play: Play) -> None:
    async def scene(world: World) -> None:
        one, two = stick(diskseq=1), stick(diskseq=2, node="/dev/sdy1")
        world.service.resync([one, two])
        world.service.arrived(two)
        assert list(world.service.supervisor.jobs()) == []
        assert len(world.said.lines) == 2
        assert "several devices show the UUID" in world.said.texts()[0]
        with pytest.raises(Refused, match="Several devices"):
            world.service.requests.run("home")
        world.service.left("/dev/sdy")
        assert (await world.result()).outcome is Outcome.DONE

    play(scene)


def test_drives_side_by_side_and_entries_of_one_disk_in_turn(play: Play) -> None:
    async def scene(world: World) -> None:
        world.script = WAIT
        world.service.arrived(stick())
        world.service.arrived(stick("CCCC-DDDD", 7, "/dev/sdx2"))
        await world.phase(Phase.SYNCING)
        assert world.service.views.of("work").state is State.QUEUED
        world.service.requests.cancel("home")
        await world.phase(Phase.SYNCING, "work")
        assert world.service.views.of("home").state is State.IDLE
        assert world.service.views.of("home").safe is False  # the other one is on the same disk
        world.service.requests.cancel("work")
        await world.result(1)
        assert world.service.views.of("home").safe
        world.service.arrived(stick(diskseq=8))
        world.service.arrived(stick("CCCC-DDDD", 9, "/dev/sdy1"))
        await world.phase(Phase.SYNCING)
        await world.phase(Phase.SYNCING, "work")

    play(scene)


@pytest.mark.parametrize("gone", ["/dev/sdx1", "/dev/sdx"])
def test_a_pulled_drive_ends_its_worker_at_once(play: Play, gone: str) -> None:
    async def scene(world: World) -> None:
        world.script = HANG
        world.service.arrived(stick())
        await world.phase(Phase.SYNCING)
        world.service.left(gone)
        result = await world.result()
        assert (result.outcome, result.error) == (Outcome.FAILED, "DriveAbsent")
        assert "the last complete version is whole" in result.sentence
        assert world.sweeps.names == ["home"]
        assert world.service.views.of("home").state is State.ABSENT
        text, priority, fields = world.said.lines[-1]
        assert fields["message"] == "run_interrupted"
        assert priority == 4
        assert "unplugged" not in text

    play(scene)


def test_a_pull_that_the_kernel_tells_of_is_that_disks_alone(play: Play) -> None:
    async def scene(world: World) -> None:
        world.script = HANG
        world.service.arrived(stick(diskseq=8))
        await world.phase(Phase.SYNCING)
        world.service.pulled(7)  # had the same name, and is told of late
        assert world.service.views.of("home").state is State.RUNNING
        world.service.pulled(8)
        result = await world.result()
        assert (result.outcome, result.error) == (Outcome.FAILED, "DriveAbsent")
        assert world.service.views.of("home").state is State.ABSENT
        world.service.left("/dev/sdx")
        assert world.said.outcomes() == ["failed"]

    play(scene)


def test_errors_of_a_drive_that_was_pulled_are_told_as_the_pull(play: Play) -> None:
    async def scene(world: World) -> None:
        world.script = [["phase", "syncing"], ["fail", "DriveFailed"]]
        world.service.arrived(stick())
        await world.phase(Phase.SYNCING)
        (job,) = world.service.supervisor.running()
        while job.finished is None:
            await asyncio.sleep(0.01)
        world.service.left("/dev/sdx")
        result = await world.result()
        assert (result.outcome, result.error) == (Outcome.FAILED, "DriveAbsent")

    play(scene)


def test_what_was_plugged_in_anew_is_not_said_to_be_free(play: Play) -> None:
    async def scene(world: World) -> None:
        world.script = [["phase", "proving"]]
        world.service.arrived(stick())
        await world.phase(Phase.PROVING)
        (job,) = world.service.supervisor.running()
        while job.finished is None:
            await asyncio.sleep(0.01)
        world.service.left("/dev/sdx")
        world.script = WAIT
        world.service.arrived(stick(diskseq=8))
        result = await world.result()
        assert (result.outcome, result.safe) == (Outcome.DONE, False)
        assert "may unplug" not in world.said.texts()

    play(scene)


def test_a_drive_that_powers_itself_off_was_not_pulled(play: Play) -> None:
    async def scene(world: World) -> None:
        world.script = [["phase", "powering-off"], ["sleep", 0.3]]
        world.service.arrived(stick())
        await world.phase(Phase.POWERING_OFF)
        world.service.left("/dev/sdx")
        assert (await world.result()).outcome is Outcome.DONE
        assert world.sweeps.names == []

    play(scene)


def test_a_waiting_job_whose_drive_leaves_is_dropped(play: Play) -> None:
    async def scene(world: World) -> None:
        world.script = WAIT
        world.service.arrived(stick())
        world.service.arrived(stick("CCCC-DDDD", 7, "/dev/sdx2"))
        await world.phase(Phase.SYNCING)
        world.service.left("/dev/sdx2")
        job, result = world.ends[0]
        assert (job.name, result.error) == ("work", "DriveAbsent")
        assert world.history.runs("work") == []

    play(scene)


def test_a_worker_that_dies_is_swept_after_before_its_end_is_told(play: Play) -> None:
    async def scene(world: World) -> None:
        world.script = [["phase", "syncing"], ["warn", "A file."], ["die"]]
        world.service.arrived(stick())
        result = await world.result()
        assert result.outcome is Outcome.FAILED
        assert "was killed by SIGKILL while syncing" in result.sentence
        assert result.warnings == ["A file."]
        assert world.sweeps.names == ["home"]
        assert world.history.runs()[0].interrupted
        assert world.said.outcomes() == ["failed"]

    play(scene)


def test_what_cannot_be_locked_is_not_called_locked(play: Play) -> None:
    async def scene(world: World) -> None:
        world.script = [["die"]]
        world.sweeps.answer = Swept(stuck=("The mapping cryptback-home is in use.",))
        world.service.arrived(stick())
        result = await world.result()
        assert "in use" in result.sentence
        assert world.said.outcomes() == []
        view = world.service.views.of("home")
        assert (view.state, view.safe) == (State.NOT_ANSWERING, False)
        world.sweeps.answer = Swept()
        world.script = None
        world.service.requests.run("home")
        assert (await world.result(1)).outcome is Outcome.DONE
        assert world.sweeps.names == ["home", "home"]
        assert world.service.views.of("home").state is State.IDLE

    play(scene)


def test_a_worker_that_talks_nonsense_is_ended(play: Play) -> None:
    async def scene(world: World) -> None:
        world.script = [["babble"], ["hang"]]
        world.service.arrived(stick())
        result = await world.result()
        assert "said something that is not understood" in result.sentence
        assert world.sweeps.names == ["home"]

    play(scene)


def test_cancel(play: Play) -> None:
    async def scene(world: World) -> None:
        world.script = WAIT
        world.service.arrived(stick())
        await world.phase(Phase.SYNCING)
        with pytest.raises(Busy):
            world.service.requests.run("home")
        ids = world.service.requests.cancel("home")
        assert (await world.result()).outcome is Outcome.CANCELLED
        assert ids == [world.ends[0][0].id]
        world.service.arrived(stick())
        assert list(world.service.supervisor.jobs()) == []
        with pytest.raises(Refused, match="Nothing is going on"):
            world.service.requests.cancel("home")
        with pytest.raises(UnknownDrive):
            world.service.requests.cancel("other")

    play(scene)


def test_a_cancelled_waiting_job_had_its_run(play: Play) -> None:
    async def scene(world: World) -> None:
        world.script = WAIT
        world.service.arrived(stick())
        world.service.arrived(stick("CCCC-DDDD", 7, "/dev/sdx2"))
        world.service.requests.cancel("work")
        assert world.history.runs("work")[0].outcome is Outcome.CANCELLED
        world.service.arrived(stick("CCCC-DDDD", 7, "/dev/sdx2"))
        assert world.service.views.of("work").state is State.IDLE

    play(scene)


def test_a_waiting_job_that_is_cancelled_proves_nothing(play: Play) -> None:
    async def scene(world: World) -> None:
        world.script = [["phase", "syncing"], ["stop", "unproven"]]
        world.service.arrived(stick())
        world.service.arrived(stick("CCCC-DDDD", 7, "/dev/sdx2"))
        await world.phase(Phase.SYNCING)
        world.service.requests.cancel("work")
        world.service.requests.cancel("home")
        await world.result(1)
        assert not world.service.views.of("home").safe
        assert not world.service.views.of("work").safe

    play(scene)


def test_eject_ends_everything_on_the_disk(play: Play) -> None:
    async def scene(world: World) -> None:
        world.script = WAIT
        world.service.arrived(stick())
        world.service.arrived(stick("CCCC-DDDD", 7, "/dev/sdx2"))
        await world.phase(Phase.SYNCING)
        assert len(world.service.requests.eject("work")) == 2
        await world.result(1)
        assert [(job.name, r.outcome) for job, r in world.ends] == [
            ("work", Outcome.CANCELLED),
            ("home", Outcome.CANCELLED),
        ]
        world.service.arrived(stick())
        world.service.arrived(stick("CCCC-DDDD", 7, "/dev/sdx2"))
        assert list(world.service.supervisor.jobs()) == []
        assert world.service.views.of("home").safe
        world.script = None
        world.service.requests.run("home")  # asked for, it runs
        assert (await world.result(2)).outcome is Outcome.DONE
        assert (
            len(world.service.requests.eject("home")) == 1
        )  # idle: only the proof remains to be made
        assert (await world.result(3)).outcome is Outcome.DONE
        assert world.ends[3][0].kind is JobKind.RELEASE
        world.service.left("/dev/sdx")
        with pytest.raises(DriveAbsent):
            world.service.requests.eject("home")

    play(scene)


def test_a_stop_of_the_service_is_taken_up_again(play: Play) -> None:
    async def scene(world: World) -> None:
        world.script = WAIT
        world.service.arrived(stick())
        world.service.arrived(stick("CCCC-DDDD", 7, "/dev/sdx2"))
        await world.phase(Phase.SYNCING)
        await world.service.supervisor.stop_all()
        world.script = None
        (kept,) = world.history.runs()
        assert (kept.entry, kept.outcome, kept.interrupted) == ("home", Outcome.CANCELLED, True)
        after = Service(world.history, "boot", lambda _name: None, world._ended)
        after.store.directory = world.service.store.directory
        after.supervisor.sources = lambda: [Secret()]
        after.arrived(stick())
        await world.result(2)
        assert world.ends[2][1].outcome is Outcome.DONE

    play(scene)


def test_a_question_ends_with_its_job(play: Play) -> None:
    async def scene(world: World) -> None:
        patient = Patient()
        world.sources = [patient]
        world.script = [["phase", "unlocking"], ["key", "open", ""], ["hang"]]
        world.service.arrived(stick())
        await world.phase(Phase.UNLOCKING)
        while not patient.waiting:
            await asyncio.sleep(0.01)
        world.service.left("/dev/sdx")
        await world.result()
        assert patient.waiting == 0

    play(scene)


def test_a_refused_key_is_told_and_the_next_source_asked(play: Play) -> None:
    async def scene(world: World) -> None:
        world.sources = [Secret("wrong"), Secret("right")]
        world.script = [["key", "open", ""], ["key", "open", "wrong"]]
        world.service.arrived(stick())
        await world.result()
        told = [f.get("message") for _t, p, f in world.said.lines if p == 4]
        assert told == ["key_source_failed"]
        assert "home: got secret from right" in world.said.texts()

    play(scene)


def test_an_init_uses_the_passphrase_of_its_pipes(play: Play) -> None:
    async def scene(world: World) -> None:
        blank = stick("", 9, "/dev/sdz1")
        job = world.service.requests.init(blank, {"name": "new", "include": ["/etc"]})
        writers = [world.service.requests.hand_over(job.id, p) for p in ("format", "first-open")]
        for fd in writers:
            os.write(fd, b"pass phrase\n")
            os.close(fd)
        assert (await job.over).outcome is Outcome.DONE
        assert world.said.texts().count("new: got pass phrase from enrolment") == 2
        assert job.options["container"] == "backup.luks"

    play(scene)


@pytest.mark.parametrize(
    ("enrolled", "told"), [(False, "was not enrolled"), (True, "is enrolled, without a backup yet")]
)
def test_an_init_that_is_pulled_is_told_as_what_it_was(
    play: Play, enrolled: bool, told: str
) -> None:
    async def scene(world: World) -> None:
        said = [["say", "enrolled.", "enrolled"]] if enrolled else []
        world.script = [*said, ["phase", "formatting"], ["hang"]]
        world.service.requests.init(stick("", 9, "/dev/sdz1"), {"name": "new", "owner": "me"})
        await world.phase(Phase.FORMATTING, "new")
        view = world.service.views.of("new")
        assert (view.job, view.owner) == (JobKind.INIT, "me")
        world.service.left("/dev/sdz")
        result = await world.result()
        assert (result.outcome, result.error) == (Outcome.FAILED, "DriveAbsent")
        assert told in result.sentence

    play(scene)


@pytest.mark.parametrize(
    ("changed", "told"), [(False, "nothing was changed"), (True, "finished at the next plug")]
)
@pytest.mark.parametrize("end", ["pulled", "killed"])
def test_a_change_of_passphrases_that_was_not_made_is_not_said_to_be_finished(
    play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: bool, told: str, end: str
) -> None:
    """Or who removed one would take it for gone."""
    monkeypatch.setattr(paths, "HEADERS", tmp_path / "headers")
    header = tmp_path / "headers" / "home"
    header.parent.mkdir()
    header.touch()

    async def scene(world: World) -> None:
        world.service.arrived(stick())
        await world.result()
        world.script = [["phase", "changing"], ["key", "current", ""], ["hang"]]
        if end == "killed":
            world.script[2:] = [["die"]]
        job = world.service.requests.passphrase("home", {"action": "remove"})
        await world.phase(Phase.CHANGING)
        if changed:
            (tmp_path / "new").touch()
            (tmp_path / "new").rename(header)
        os.close(world.service.requests.hand_over(job.id, "current"))
        if end == "pulled":
            world.service.left("/dev/sdx")
        result = await world.result(1)
        assert result.outcome is Outcome.FAILED
        assert told in result.sentence
        assert not world.history.runs()[0].interrupted  # or it would be begun again by itself

    play(scene)


def test_an_init_ends_with_who_asked_for_it(play: Play) -> None:
    async def scene(world: World) -> None:
        world.script = [["phase", "formatting"], ["stop"]]
        blank = stick("", 9, "/dev/sdz1")
        job = world.service.requests.init(blank, {"name": "new"})
        writers = [world.service.requests.hand_over(job.id, p) for p in ("format", "first-open")]
        with pytest.raises(Busy):
            world.service.requests.init(blank, {"name": "other"})
        await world.phase(Phase.FORMATTING, "new")
        for fd in writers:
            os.close(fd)
        world.service.requests.client_left(job)
        assert job.stop is StopReason.CANCEL
        assert (await job.over).outcome is Outcome.CANCELLED
        world.service.requests.client_left(job)

    play(scene)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"name": "home"}, "already"),
        ({"name": "x", "colour": 1}, "colour"),
        ({"name": "x", "diskseq": 8}, "is not the drive any more that was shown"),
    ],
)
def test_an_init_that_cannot_be(play: Play, options: dict[str, Any], says: str) -> None:
    async def scene(world: World) -> None:
        with pytest.raises(Refused, match=says):
            world.service.requests.init(stick("", 9, "/dev/sdz1"), options)

    play(scene)


def test_a_survey_is_no_run(play: Play) -> None:
    async def scene(world: World) -> None:
        found = await world.service.requests.survey(stick("", 9, "/dev/sdz1"), {})
        assert found["model"] == "SanDisk Ultra"
        assert world.said.lines == []
        assert world.history.runs() == []
        assert [view.name for view in world.service.views.all()] == ["home", "work"]

    play(scene)


def test_not_again_within_at_most(play: Play, tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        file = tmp_path / "home.toml"
        file.write_text(file.read_text() + '[when]\nat_most = "1h"\n')
        world.service.arrived(stick())
        await world.result()
        world.service.left("/dev/sdx")
        world.service.arrived(stick(diskseq=8))
        assert world.said.outcomes() == ["done", "skipped"]
        world.service.arrived(stick(diskseq=8))
        assert len(world.history.runs()) == 2

    play(scene)


def test_events_that_were_lost_are_made_good(play: Play) -> None:
    async def scene(world: World) -> None:
        world.script = HANG
        world.service.arrived(stick())
        await world.phase(Phase.SYNCING)
        world.script = None
        world.service.resync([stick(diskseq=8), stick("CCCC-DDDD", 9, "/dev/sdy1")])
        assert (await world.result()).error == "DriveAbsent"
        await world.until(lambda: len(world.ends) == 3)
        assert world.service.views.of("work").state is State.IDLE

    play(scene)


KEYS: list[Any] = [["phase", "changing"], ["key", "current", ""], ["key", "new", ""]]


def test_a_change_of_passphrases_uses_those_of_its_pipes(play: Play) -> None:
    async def scene(world: World) -> None:
        world.service.arrived(stick())
        await world.result()
        world.script = KEYS
        job = world.service.requests.passphrase("home", {"action": "change"})
        with pytest.raises(Busy):
            world.service.requests.passphrase("home", {"action": "change"})
        for purpose in ("current", "new"):
            fd = world.service.requests.hand_over(job.id, purpose)
            os.write(fd, purpose.encode())
            os.close(fd)
        with pytest.raises(Refused):
            world.service.requests.hand_over(job.id, "new")
        assert (await job.over).outcome is Outcome.DONE
        assert "home: got new from enrolment" in world.said.texts()
        assert "home: change of what opens it begun on /dev/sdx1 (SanDisk Ultra)." in (
            world.said.texts()
        )
        assert [run.job for run in world.history.runs()] == [JobKind.PASSPHRASE, JobKind.BACKUP]

    play(scene)


def test_a_change_of_length_is_a_run_of_its_own(play: Play) -> None:
    async def scene(world: World) -> None:
        with pytest.raises(DriveAbsent):
            world.service.requests.resize("home", "max")
        world.service.arrived(stick())
        await world.result()
        with pytest.raises(Refused, match="is not a size"):
            world.service.requests.resize("home", "much")
        with pytest.raises(Refused, match="the partition itself is encrypted"):
            world.service.requests.resize("home", "+1G")
        world.script = [["phase", "resizing"], ["stop"]]
        run = world.service.requests.resize("home", "max")
        with pytest.raises(Busy):
            world.service.requests.resize("home", "max")
        await world.phase(Phase.RESIZING)
        assert world.service.requests.cancel("home") == [run]
        await world.result(1)
        assert "home: change of its length begun on /dev/sdx1 (SanDisk Ultra)." in (
            world.said.texts()
        )
        assert [run.job for run in world.history.runs()] == [JobKind.RESIZE, JobKind.BACKUP]

    play(scene)


def test_a_recovery_key_comes_out_of_the_other_end(play: Play) -> None:
    async def scene(world: World) -> None:
        world.service.arrived(stick())
        await world.result()
        world.script = [["give", "recovery-key", "ebjj-nkue"]]
        job = world.service.requests.passphrase("home", {"action": "recovery-key"})
        reading = world.service.requests.hand_over(job.id, "recovery-key")
        await job.over
        assert os.read(reading, 100) == b"ebjj-nkue"
        assert os.read(reading, 100) == b""
        os.close(reading)
        assert not any("ebjj" in text for text in world.said.texts())

    play(scene)


def test_a_change_of_passphrases_ends_with_who_asked_for_it(play: Play) -> None:
    async def scene(world: World) -> None:
        world.service.arrived(stick())
        await world.result()
        world.script = [["phase", "changing"], ["stop"]]
        job = world.service.requests.passphrase("home", {"action": "add"})
        await world.phase(Phase.CHANGING)
        world.service.requests.client_left(job)
        assert (await job.over).outcome is Outcome.CANCELLED

    play(scene)


@pytest.mark.parametrize(
    "options",
    [{}, {"action": "explode"}, {"action": "add", "colour": 1}, {"action": "add", "pin": "yes"}],
)
def test_a_change_of_passphrases_that_cannot_be(play: Play, options: dict[str, Any]) -> None:
    async def scene(world: World) -> None:
        with pytest.raises(Refused):
            world.service.requests.passphrase("home", options)
        with pytest.raises(DriveAbsent):
            world.service.requests.passphrase("home", {"action": "add"})

    play(scene)


def test_a_look_at_the_header_is_no_run(play: Play) -> None:
    async def scene(world: World) -> None:
        world.service.arrived(stick())
        await world.result()
        assert await world.service.requests.look("home") == {"difference": ""}
        assert len(world.history.runs()) == 1

    play(scene)


@pytest.mark.parametrize("proven", [True, False])
def test_what_an_eject_proves_is_remembered(play: Play, proven: bool) -> None:
    async def scene(world: World) -> None:
        world.script = [["fail", "DriveFailed"]] if proven else None
        world.service.arrived(stick())
        await world.result()
        assert world.service.views.of("home").safe is not proven
        world.script = None if proven else [["fail", "DriveFailed"]]
        world.service.requests.eject("home")
        await world.result(1)
        assert world.ends[1][0].kind is JobKind.RELEASE
        assert world.service.views.of("home").safe is proven
        world.script = None
        world.service.requests.run("home")
        await world.result(2)
        assert world.service.views.of("home").safe

    play(scene)


# Mistakes, and what is too much.


def test_a_mistake_with_one_job_ends_that_job_and_no_other(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(world: World) -> None:
        start = Job.start
        world.script = WAIT
        world.service.arrived(stick("CCCC-DDDD", 9, "/dev/sdy1"))
        await world.phase(Phase.SYNCING, "work")
        too_long = {"script": WAIT, "at": "x" * 200_000}
        monkeypatch.setattr(
            Job,
            "start",
            lambda job, *told, **more: start(attrs.evolve(job, options=too_long), *told, **more),
        )
        world.service.arrived(stick())
        result = await world.result()
        assert (result.outcome, result.error) == (Outcome.FAILED, "CryptbackError")
        assert result.sentence == (
            "cryptbackd made a mistake while starting; the last complete version is whole."
        )
        assert any("ProtocolError: a message of" in text for text in world.said.texts())
        assert world.sweeps.names == ["home"]
        assert not world.history.runs("home")[0].interrupted
        assert world.service.views.of("work").state is State.RUNNING
        monkeypatch.setattr(Job, "start", start)
        world.script = None
        world.service.arrived(stick())  # once an insertion
        assert world.service.views.of("home").state is State.IDLE
        world.service.requests.run("home")
        assert (await world.result(1)).outcome is Outcome.DONE

    play(scene)


@pytest.mark.parametrize("where", ["_heard", "_give_key"])
def test_a_mistake_beside_a_job_ends_it(
    play: Play, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    async def scene(world: World) -> None:
        def wrong(*_args: Any) -> None:
            raise ZeroDivisionError

        async def wrong_later(*_args: Any) -> None:
            raise ZeroDivisionError

        later = where == "_give_key"
        monkeypatch.setattr(Supervisor, where, wrong_later if later else wrong)
        world.script = [["key", "open", ""], ["hang"]]
        world.service.arrived(stick())
        assert (await world.result()).error == "CryptbackError"
        assert "ZeroDivisionError" in world.said.texts()
        assert world.sweeps.names == ["home"]

    play(scene)


def test_a_computer_without_room_for_a_worker_fails_the_job(play: Play) -> None:
    async def scene(world: World) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        world.service.arrived(stick("FFFF-FFFF"))  # what is imported late is imported
        highest = max(map(int, os.listdir("/proc/self/fd")))
        taken = [os.open("/dev/null", os.O_RDONLY)]
        while taken[-1] <= highest:
            taken.append(os.dup(taken[0]))
        resource.setrlimit(resource.RLIMIT_NOFILE, (taken[-1] + 2, hard))  # one is left
        try:
            world.service.arrived(stick())
            result = await world.result()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for fd in taken:
                os.close(fd)
        assert (result.outcome, result.error) == (Outcome.FAILED, "ToolFailed")
        assert result.sentence == "A worker could not be started: Too many open files."
        world.service.requests.run("home")
        assert (await world.result(1)).outcome is Outcome.DONE

    play(scene)


def test_what_is_too_much_to_be_told_to_a_worker_is_refused(play: Play) -> None:
    async def scene(world: World) -> None:
        world.service.arrived(stick())
        await world.result()
        asked = world.service.requests
        groups = list(range(100_000, 165_536))
        for ask in (
            lambda: asked.verify("home", {"at": "x" * 200_000}),
            lambda: asked.restore("home", "", 1000, groups),
            lambda: asked.browse("home", 1000, groups),
            lambda: asked.resize("home", "max" + " " * 200_000),
            lambda: asked.passphrase("home", {"action": "remove", "what": "x" * 200_000}),
            lambda: asked.init(
                stick("", 9, "/dev/sdz1"), {"name": "n", "include": ["/x"] * 40_000}
            ),
            lambda: asked.recover(stick("", 9, "/dev/sdz1"), {"fingerprint": "x" * 200_000}),
        ):
            with pytest.raises(Refused):
                ask()
        with pytest.raises(ConfigError):
            await asked.survey(stick("", 9, "/dev/sdz1"), {"name": "x" * 300})
        assert list(world.service.supervisor.jobs()) == []
        assert len(world.ends) == 1

    play(scene)


def test_one_restore_of_each_user_waits_for_its_turn(play: Play) -> None:
    async def scene(world: World) -> None:
        world.script = WAIT
        world.service.arrived(stick())
        await world.phase(Phase.SYNCING)
        for user in (1000, 1001):
            world.service.requests.restore("home", "", user, [user])
            with pytest.raises(Busy, match="waits for its turn already"):
                world.service.requests.restore("home", "", user, [user])
        world.service.requests.cancel("home")
        await world.result(2)
        job = world.service.requests.restore("home", "", 1000, [1000])
        world.service.requests.restore("home", "", 1000, [1000])  # the other one has its turn
        world.service.requests.cancel("home")
        await job.over

    play(scene)
