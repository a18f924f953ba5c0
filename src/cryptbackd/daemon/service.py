"""The daemon's heart: what an arrival, a pull and a request lead to.

It knows which devices are here, asks the policy, and hands jobs to the supervisor.  The bus
and the udev monitor only translate.  It lives as long as the daemon.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import Callable, Iterable
from typing import Any

import attrs

from .. import config, kits, paths, sizes
from ..errors import (
    BY_NAME,
    Busy,
    ConfigError,
    CryptbackError,
    DriveAbsent,
    Refused,
)
from ..model import Device, JobKind, Outcome, Phase, RunResult, StopReason
from ..text import ago, count, printable
from . import browsing, entries, forgetting, jobs, journal, keyslots, policy, reports, verification
from .agents import Agents
from .history import History, Insertion, Run
from .jobs import Job
from .keys import sources
from .policy import Again, Verdict
from .sleep import Sleep
from .status import DriveView, State
from .supervisor import Supervisor
from .tasks import Tasks
from .timetable import Timetable
from .watch import Seen

INIT_OPTIONS: dict[str, object] = {
    "name": "",
    "container": "backup.luks",
    "size": None,
    "filesystem": "btrfs",
    "format": None,
    "include": [],
    "exclude": [],
    "owner": None,
    "run": True,
    "pbkdf_memory": None,
    "pbkdf_iterations": None,
    "part_size": None,
    "adopt": False,
    "detached": False,
    "header": False,
    "fingerprint": "",
    "settings": "",
}
"""What an init can be told, with the defaults (see ``protocol.Start``)."""
_NUMBERS = ("size", "pbkdf_memory", "pbkdf_iterations", "part_size")
PLAIN_RUN: dict[str, Any] = {"full": False, "accept": False}
"""What a run that nobody asked for is told."""


@attrs.define
class Service:
    """Call :meth:`start` once the sweep is through, then feed it arrivals and removals.

    *drive_changed* gets the name of each drive about which something is new, and
    *job_finished* each job that is over.  *work_changed* is called when a job has come or
    gone, *remind* gets the name of a drive that was not backed up for so many days.
    """

    history: History
    boot_id: str
    drive_changed: Callable[[str], None]
    job_finished: Callable[[Job, RunResult], None]
    work_changed: Callable[[], None] = lambda: None
    remind: Callable[[str, int], None] = lambda _name, _days: None
    supervisor: Supervisor = attrs.field(init=False)
    store: entries.EntryStore = attrs.field(init=False)
    timetable: Timetable = attrs.field(init=False)
    sleep: Sleep = attrs.field(init=False)
    agents: Agents = attrs.field(factory=Agents)
    _present: dict[str, Seen] = attrs.field(factory=dict)
    _told: set[tuple[int, str, Verdict]] = attrs.field(factory=set)
    _tasks: Tasks = attrs.field(factory=Tasks)

    def __attrs_post_init__(self) -> None:
        self.supervisor = Supervisor(
            self.history,
            self.boot_id,
            lambda: sources(self.agents),
            changed=self._job_changed,
            ended=self._ended,
            present=self._is_present,
        )
        self.store = entries.EntryStore(_complain, self._entries_changed)
        self.timetable = Timetable(
            self.history, self.store, self._again, self._begin_again, self._is_busy, self._remind
        )
        self.sleep = Sleep(self.supervisor, self._take_up, self._consider_all)

    # What udev tells.

    def arrived(self, seen: Seen) -> None:
        """A device came, or something about it changed."""
        node = seen.device.node
        before = self._present.get(node)
        if before is not None and before.device.diskseq != seen.device.diskseq:
            self.left(before.device.disk)  # its removal was missed
        if not seen.device.uuid:
            if self._present.pop(node, None) is not None and before is not None:
                self._changed_uuid(before.device.uuid)
            return
        self._present[node] = seen
        self.timetable.soon()
        if before is not None and before.device.uuid != seen.device.uuid:
            self._changed_uuid(before.device.uuid)
        self._consider(seen.device.uuid)

    def left(self, node: str) -> None:
        """The device *node* is gone, and with a disk its partitions."""
        gone = [
            seen for seen in self._present.values() if node in (seen.device.node, seen.device.disk)
        ]
        for seen in gone:
            del self._present[seen.device.node]
        self.supervisor.pulled(node)
        for uuid in {seen.device.uuid for seen in gone}:
            self._changed_uuid(uuid)
            self._consider(uuid)
        self.timetable.soon()
        if self.supervisor.stuck:
            self._tasks.start(self._sweep_stuck())

    def resync(self, found: Iterable[Seen]) -> None:
        """*found* is everything that is here: what isn't among it has left unseen."""
        by_node = {seen.device.node: seen for seen in found}
        for node, seen in list(self._present.items()):
            now = by_node.get(node)
            if now is None or now.device.diskseq != seen.device.diskseq:
                self.left(node)
        for job in self.supervisor.running():
            if not os.path.exists(job.device.node):
                self.supervisor.pulled(job.device.node)
        # All of them first: a second device with the same UUID must be seen before one runs.
        self._present.update(by_node)
        self._consider_all()

    def reload(self) -> None:
        """Read every entry anew, and look again at what is plugged in."""
        self.store.forget()
        self.store.now()
        self._consider_all()

    # What people ask.

    def run(self, name: str, *, full: bool = False, accept: bool = False) -> str:
        """Back up to *name* now; the id of the run.

        Raises UnknownDrive, ConfigError, DriveAbsent, Busy and Refused.
        """
        entry = self.store.get(name)
        self._want_awake()
        if self._is_busy(name):
            if self._shown(name):
                raise Busy(f"{name} is open for browsing.", f"`cryptback close {name}` ends that.")
            raise Busy(
                f"Something is already going on with {name}.",
                f"See `cryptback status {name}`; `cryptback cancel {name}` stops it.",
            )
        seen = self._the_one(name, entry)
        return self._submit_backup(name, entry, seen, {"full": full, "accept": accept})

    def verify(self, name: str, options: dict[str, Any]) -> str:
        """Read back what is on the drive *name*; the id of the run.

        Raises UnknownDrive, ConfigError, DriveAbsent, Busy and Refused.
        """
        verification.check(options)
        job = self._for_entry(JobKind.VERIFY, name)
        job.options = options
        self.supervisor.submit(job)
        return job.id

    def cancel(self, name: str) -> list[str]:
        """Stop what goes on with *name*; the ids of its runs.

        Raises UnknownDrive, ConfigError and Refused.
        """
        found = [job for job in self.supervisor.jobs() if job.name == name and job.recorded]
        if not found:
            self.store.get(name)
            raise Refused(f"Nothing is going on with {name}.")
        for job in found:
            self.supervisor.stop(job, StopReason.CANCEL)
        return [job.id for job in found]

    def eject(self, name: str) -> list[str]:
        """Let go of the disk that *name* is on; the ids of the runs that must end first.

        Nothing is begun by itself on that disk before it is plugged in anew.  Raises
        UnknownDrive, ConfigError and DriveAbsent.
        """
        seen = [job.seen for job in self.supervisor.jobs() if job.name == name]
        if not seen:
            here = policy.candidates(self._devices(), self.store.get(name).uuid)
            seen = [self._present[device.node] for device in here]
        if not seen:
            raise _absent(name)
        ending = []
        for disk in {each.device.diskseq: each for each in seen}.values():
            diskseq = disk.device.diskseq
            self.history.eject(Insertion(self.boot_id, diskseq))
            self.sleep.forget(diskseq)
            self.timetable.soon()
            going_on = self.supervisor.on_disk(diskseq)
            if not going_on:
                idle = self._job(JobKind.RELEASE, name, disk)
                self.supervisor.submit(idle)
                ending.append(idle.id)
            # Those that wait first, or the end of the running one would begin them.
            for job in reversed(going_on):
                ending.append(job.id)
                self.supervisor.stop(job, StopReason.EJECT)
        return ending

    async def survey(self, seen: Seen, options: dict[str, Any]) -> dict[str, object]:
        """What is on a device.  Raises Busy, Refused, and whatever the worker ended with."""
        _check_options(options)
        self._want_idle(seen)
        kind = JobKind.LOOK if options.get("adopt") else JobKind.SURVEY
        job = self._job(kind, str(options.get("name") or "survey"), seen)
        job.options = options
        return await self._answer(job)

    async def look(self, name: str) -> dict[str, object]:
        """What is different about the header on the drive *name*.

        Raises UnknownDrive, ConfigError, DriveAbsent and Busy, and whatever the worker ended
        with.
        """
        return await self._answer(self._for_entry(JobKind.LOOK, name))

    async def _answer(self, job: Job) -> dict[str, object]:
        self.supervisor.submit(job)
        result = await job.over
        if result.outcome is not Outcome.DONE:
            raise BY_NAME.get(result.error, CryptbackError)(result.sentence, result.hint)
        return result.data

    async def kit(self, name: str) -> tuple[dict[str, object], int]:
        """What a recovery kit of *name* is made of: facts, and the stored header opened.

        The drive need not be here, nor be in order.  Raises UnknownDrive, ConfigError and
        Refused.
        """
        known = forgetting.facts(name, self.store.get(name))
        header = forgetting.stored_header(name)
        try:
            seen = await self.look(name)
            known.update(size=seen["size"], problem=seen["difference"])
        except (DriveAbsent, Busy):
            pass
        except CryptbackError as exc:
            known["problem"] = str(exc)
        except BaseException:
            os.close(header)
            raise
        return known, header

    def kit_written(self, name: str, sha256: str) -> None:
        """There is a recovery kit with the header of *name* that has this SHA-256.

        Raises UnknownDrive, ConfigError and Refused.
        """
        self.store.get(name)
        kits.note(name, sha256)
        journal.log(f"{name}: a recovery kit was written.", message="kit_written", drive=name)

    def forget(self, name: str) -> forgetting.Forgotten:
        """Know nothing of *name* any more.  Raises UnknownDrive, Busy and Refused."""
        known = self.store.now()
        if name not in known.bad:
            self.store.get(name)
        if self._is_busy(name) or name in self.supervisor.stuck:
            raise Busy(
                f"Something is going on with {name}; nothing was forgotten.",
                f"`cryptback eject {name}` ends it.",
            )
        done = forgetting.forget(config.check_name(name), self.history)
        self.store.now()  # takes the marker of the drive away
        journal.log(f"{name}: forgotten. {done.why}", message="forgotten", drive=name)
        return done

    def init(self, seen: Seen, options: dict[str, Any]) -> Job:
        """Enrol a device; its passphrase is to come through ``hand_over``.

        Raises Busy, Refused and ConfigError.
        """
        _check_options(options)
        options = {**INIT_OPTIONS, **options}
        options["container"] = options["container"] or None  # D-Bus has no null
        name = config.check_name(str(options["name"]))
        known = self.store.now()
        # To adopt a copy of its container moves an entry to another drive.
        if name in known.bad or (name in known.good and not options["adopt"]):
            raise Refused(
                f'There is an entry "{name}" already.', "Choose another name, or remove it first."
            )
        self._want_idle(seen)
        if self._is_busy(name):
            raise Busy(f"Something is already going on with {name}.", "See `cryptback status`.")
        job = self._job(JobKind.INIT, name, seen)
        job.options = options
        job.entry_text = known.texts.get(name, "")
        job.open_enrolment(_purposes(options))
        self.supervisor.submit(job)
        return job

    def recover(self, seen: Seen, options: dict[str, Any]) -> Job:
        """Read the settings in the container on a device that is to be enrolled again.

        A passphrase is to come, and the settings go, through ``hand_over``.  Raises Busy and
        Refused.
        """
        self._want_idle(seen)
        known = self.store.now()
        names = ("recovering", *(f"recovering-{number}" for number in range(2, 100)))
        name = next(name for name in names if name not in (*known.good, *known.bad))
        job = self._job(JobKind.RECOVER, name, seen)
        job.options = options
        header = ("stored-header",) if options.get("header") else ()
        job.open_enrolment(("current", "settings", *header))
        self.supervisor.submit(job)
        return job

    def passphrase(self, name: str, options: dict[str, Any]) -> Job:
        """Change what opens the drive *name*; passphrases are to come through ``hand_over``.

        Raises UnknownDrive, ConfigError, DriveAbsent, Busy and Refused.
        """
        purposes = keyslots.purposes(options)
        job = self._for_entry(JobKind.PASSPHRASE, name)
        job.options = options
        job.open_enrolment(purposes)
        self.supervisor.submit(job)
        return job

    def adopt(self, name: str) -> Job:
        """Store the header that is on the drive *name*; a passphrase of it is to come through
        ``hand_over``.  Raises what :meth:`passphrase` does.
        """
        job = self._for_entry(JobKind.ADOPT, name)
        job.open_enrolment(("current",))
        self.supervisor.submit(job)
        return job

    def repair(self, name: str, seen: Seen | None = None) -> str:
        """Write the stored header to the drive *name*, or to the partition *seen* that shows no
        UUID any more; the id of the run.  Raises what :meth:`passphrase` does.
        """
        job = self._for_entry(JobKind.REPAIR, name, seen)
        self.supervisor.submit(job)
        return job.id

    def browse(self, name: str, user: int, groups: list[int]) -> Job:
        """Show the versions on *name* to a user, on a mount that is to come through ``show_on``.

        Raises UnknownDrive, ConfigError, DriveAbsent, Busy and Refused.
        """
        job = self._for_entry(JobKind.BROWSE, name)
        job.options = {"user": user, "groups": groups, "who": browsing.name_of(user)}
        job.mount = asyncio.get_running_loop().create_future()
        self.supervisor.submit(job)
        return job

    def show_on(self, run: str, fd: int) -> None:
        """Show what the job *run* has to show on the mount of the descriptor *fd*, which is
        copied.  Raises Refused.
        """
        for job in self.supervisor.jobs():
            if job.id == run and job.mount is not None and not job.mount.done():
                browsing.want_mount(fd)
                job.mount.set_result(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3))
                return
        raise Refused("No mount is wanted for that (any more).")

    def close(self, name: str) -> list[str]:
        """End the browsing of *name*; the ids of the jobs that end.

        Raises UnknownDrive, ConfigError and Refused.
        """
        found = self._shown(name)
        if not found:
            self.store.get(name)
            raise Refused(f"{name} is not open for browsing.")
        for job in found:
            self.supervisor.stop(job, StopReason.CANCEL)
        return [job.id for job in found]

    def _shown(self, name: str) -> list[Job]:
        return [job for job in self.supervisor.jobs() if job.name == name and job.shown_to]

    def resize(self, name: str, size: str) -> str:
        """Make the container of the drive *name* longer or shorter (``sizes.parse``); the id of
        the run.  Raises what :meth:`passphrase` does.
        """
        try:
            wanted = sizes.parse(size)
        except ValueError as exc:
            raise Refused(f"{printable(str(exc))}.") from exc
        sizes.want_possible(self.store.get(name).container, wanted)
        job = self._for_entry(JobKind.RESIZE, name)
        job.options = {"size": size}
        self.supervisor.submit(job)
        return job.id

    def restore(self, name: str, at: str, user: int, groups: list[int]) -> Job:
        """Let *user* read files of the version *at*, through what ``hand_over`` gives for
        ``files``.  It may have to wait for its turn: whoever lost a file plugs the drive in,
        and that begins a backup.

        Raises UnknownDrive, ConfigError, DriveAbsent, Busy and Refused.
        """
        entry = self.store.get(name)
        self._want_awake()
        if self._shown(name):
            raise Busy(
                f"{name} is open for browsing.", f"Copy what you want, or: cryptback close {name}"
            )
        job = self._job(JobKind.RESTORE, name, self._the_one(name, entry))
        job.entry = entry
        job.entry_text = self.store.now().texts[name]
        job.options = {"at": at, "user": user, "groups": groups}
        job.open_enrolment(("files",))
        self.supervisor.submit(job)
        return job

    def _for_entry(self, kind: JobKind, name: str, seen: Seen | None = None) -> Job:
        entry = self.store.get(name)
        seen = seen or self._the_one(name, entry)
        self._want_idle(seen)
        job = self._job(kind, name, seen)
        job.entry = entry
        job.entry_text = self.store.now().texts[name]
        return job

    def hand_over(self, run: str, purpose: str) -> int:
        """The end of the pipe for what the job *run* needs, or has to give, for *purpose*.

        The caller's to close; each is given away once.  Raises Refused.
        """
        for job in self.supervisor.jobs():
            if job.id == run and purpose in job.writers:
                return job.writers.pop(purpose)
        raise Refused("No passphrase is wanted for that (any more).")

    def client_left(self, job: Job) -> None:
        """Who asked for *job*, and has its passphrases, is gone."""
        if not job.over.done() and not job.enrolled:
            self.supervisor.stop(job, StopReason.CANCEL)

    def owner(self, name: str) -> str | None:
        """Whose the drive *name* is; None: nobody's in particular.  Raises UnknownDrive.

        Where that can't be told (a bad entry, or none yet) it is root's.
        """
        known = self.store.now()
        if name in known.bad or (name not in known.good and self._is_busy(name)):
            return "root"
        return self.store.get(name).owner

    def remembered(self, name: str | None) -> list[dict[str, object]]:
        """The drives whose catalogues are asked, and up to which version each counts.

        All of them, or the drive *name*: raises UnknownDrive then.
        """
        known = self.store.now()
        names = sorted({*known.good, *known.bad}) if name is None else [name]
        if name is not None and name not in known.good and name not in known.bad:
            self.store.get(name)
        ledgers = ((each, self.history.ledger(each)) for each in names)
        return [{"name": n, "up_to": ledger.sequence if ledger else 0} for n, ledger in ledgers]

    def views(self) -> list[DriveView]:
        """Every drive as it is now, by name: those with an entry, and those being enrolled."""
        known = self.store.now()
        names = {*known.good, *known.bad}
        names |= {job.name for job in self.supervisor.jobs() if job.recorded}
        return [self.view(name) for name in sorted(names)]

    def view(self, name: str) -> DriveView:
        """One drive as it is now; raises UnknownDrive."""
        known = self.store.now()
        job = next((j for j in self.supervisor.jobs() if j.name == name and j.recorded), None)
        entry = known.good.get(name)
        problem = ""
        if name in known.bad:
            problem = str(known.bad[name])
        elif entry is None and job is None:
            self.store.get(name)
        here = policy.candidates(self._devices(), entry.uuid) if entry is not None else []
        device = job.device if job is not None else here[0] if here else None
        last = self.history.last(name)
        stuck = self.supervisor.stuck.get(name)
        if job is not None:
            state = State.RUNNING if job.begun else State.QUEUED
            state = state if job.answering else State.NOT_ANSWERING
        elif stuck:
            state, problem = State.NOT_ANSWERING, " ".join(stuck)
        elif problem:
            state = State.BAD
        else:
            state = State.IDLE if device is not None else State.ABSENT
        return DriveView(
            name=name,
            state=state,
            uuid=entry.uuid if entry is not None else "",
            container=(entry.container or "") if entry is not None else "",
            device=device.node if device is not None else "",
            phase=job.phase if job is not None and job.begun else None,
            progress=job.progress if job is not None else None,
            run=job.id if job is not None else "",
            job=job.kind if job is not None else None,
            last_outcome=last.outcome if last is not None else None,
            last_sentence=last.sentence if last is not None else "",
            last_hint=last.hint if last is not None else "",
            last_finished=last.finished if last is not None else 0.0,
            last_success=self.history.last_success(name),
            **verification.last(self.history, name),
            warnings=tuple(job.warnings)
            if job is not None
            else (last.warnings if last is not None else ()),
            safe=state is State.IDLE and device is not None and self._may_unplug(device),
            problem=problem,
            owner=_owner(entry, job),
            shown_to=job.shown_to if job is not None else "",
            reminded=self.timetable.reminded(name),
        )

    # How it is done.

    def _may_unplug(self, device: Device) -> bool:
        """Whether nothing goes on with its disk, and the last run on it was proven safe."""
        if self.supervisor.on_disk(device.diskseq):
            return False
        insertion = Insertion(self.boot_id, device.diskseq)
        last = self.history.last_on(insertion)
        return last is not None and last.safe

    def _devices(self) -> list[Device]:
        return [seen.device for seen in self._present.values()]

    def _is_present(self, device: Device) -> bool:
        seen = self._present.get(device.node)
        if seen is not None:
            return seen.device.diskseq == device.diskseq
        # A device that is about to be enrolled shows no UUID yet.
        return os.path.exists(device.node)

    def _changed_uuid(self, uuid: str) -> None:
        for name, entry in self.store.now().good.items():
            if entry.uuid == uuid:
                self.drive_changed(name)

    def _consider_all(self) -> None:
        for uuid in sorted({device.uuid for device in self._devices()}):
            self._consider(uuid)
        self.timetable.soon()

    def _consider(self, uuid: str) -> None:
        """A device with this UUID is here, or is the only one now: should something run?"""
        if self.supervisor.refuses:
            return
        here = policy.candidates(self._devices(), uuid)
        if not here:
            return
        for name, entry in sorted(self.store.now().good.items()):
            if entry.uuid != uuid:
                continue
            self.drive_changed(name)
            if self._is_busy(name):
                continue
            for device in here:
                if self._begin_if_wanted(name, entry, self._present[device.node], len(here)):
                    break

    def _begin_if_wanted(self, name: str, entry: config.Entry, seen: Seen, candidates: int) -> bool:
        insertion = Insertion(self.boot_id, seen.device.diskseq)
        last = self.history.last_success(name)
        verdict = policy.automatic(
            self.history.past(name, insertion),
            ejected=self.history.ejected(insertion),
            candidates=candidates,
            since_success=time.time() - last if last else None,
            # A change of the drive which is not all on it yet is not put off.
            at_most=None if _is_pending(name) else entry.when.at_most,
        )
        if verdict is Verdict.RUN:
            self._submit_backup(name, entry, seen, PLAIN_RUN)
            return True
        if verdict is Verdict.TOO_SOON:
            self._skip(name, insertion, time.time() - last)
        self._tell(verdict, name, seen.device)
        return False

    # What the clock asks for.

    def _is_busy(self, name: str) -> bool:
        return any(job.name == name for job in self.supervisor.jobs())

    def _again(self, name: str, entry: config.Entry) -> Again:
        """Whether the clock may begin a run of an entry, as things are now."""
        here = policy.candidates(self._devices(), entry.uuid)
        if len(here) != 1 or self.supervisor.refuses:
            return Again.NOT
        insertion = Insertion(self.boot_id, here[0].diskseq)
        return policy.again(
            self.history.past(name, insertion), ejected=self.history.ejected(insertion)
        )

    def _begin_again(self, name: str, entry: config.Entry) -> None:
        self._submit_backup(name, entry, self._the_one(name, entry), PLAIN_RUN)

    def _remind(self, name: str, days: int) -> None:
        journal.log(
            f"{name} has not been backed up for {count(days, 'day') if days else 'some hours'}.",
            journal.Priority.WARNING,
            message="reminder",
            drive=name,
        )
        self.drive_changed(name)  # first: who is reminded looks at the drive
        self.remind(name, days)

    def _take_up(self, job: Job) -> None:
        """Do again what the computer's sleep has interrupted, if its drive is still in."""
        entry = self.store.now().good.get(job.name)
        seen = self._present.get(job.device.node)
        if entry is None or seen is None or self._is_busy(job.name):
            return
        if seen.device.diskseq == job.device.diskseq:
            self._submit_backup(job.name, entry, seen, job.options)

    def _skip(self, name: str, insertion: Insertion, since: float) -> None:
        now = time.time()
        result = RunResult(
            Outcome.SKIPPED, f"The last backup is recent enough ({ago(since)}).", touched=False
        )
        run = Run(jobs.new_id(now), name, JobKind.BACKUP, now)
        self.history.begin(run, insertion)
        self.history.finish(run.id, result, False, now)
        for line in reports.ended(name, result, seconds=0, interrupted=False, present=True):
            journal.log(
                line.text, line.priority, message=line.message, drive=name, run=run.id,
                outcome=line.outcome,
            )  # fmt: skip

    def _tell(self, verdict: Verdict, name: str, device: Device) -> None:
        """Say once in an insertion why nothing is begun, where a person must know."""
        key = (device.diskseq, name, verdict)
        if key in self._told or verdict not in (Verdict.AMBIGUOUS, Verdict.GAVE_UP):
            return
        self._told.add(key)
        if verdict is Verdict.AMBIGUOUS:
            text = (
                f"{name}: several devices show the UUID {device.uuid}; none of them is used."
                " Unplug all but the one that was enrolled."
            )
        else:
            text = (
                f"{name}: interrupted too often since it was plugged in; nothing more is begun by"
                f" itself. `cryptback run {name}` tries again."
            )
        journal.log(text, journal.Priority.WARNING, drive=name)

    def _the_one(self, name: str, entry: config.Entry) -> Seen:
        here = policy.candidates(self._devices(), entry.uuid)
        if not here:
            raise _absent(name)
        if len(here) > 1:
            nodes = ", ".join(device.node for device in here)
            raise Refused(
                f"Several devices show the UUID of {name}: {nodes}.",
                "Unplug all but the one that was enrolled.",
            )
        return self._present[here[0].node]

    def _want_awake(self) -> None:
        if self.supervisor.refuses:
            raise Refused(self.supervisor.refuses, "Try it again afterwards.")

    def _want_idle(self, seen: Seen) -> None:
        self._want_awake()
        going_on = self.supervisor.on_disk(seen.device.diskseq)
        if going_on:
            if going_on[0].shown_to:
                name = going_on[0].name
                raise Busy(f"{name} is open for browsing.", f"`cryptback close {name}` ends that.")
            raise Busy(
                f"A job for {going_on[0].name} is going on with this drive.",
                "See `cryptback status`.",
            )

    def _job(self, kind: JobKind, name: str, seen: Seen) -> Job:
        over: asyncio.Future[RunResult] = asyncio.get_running_loop().create_future()
        return Job(jobs.new_id(time.time()), kind, name, seen, over)

    def _submit_backup(
        self, name: str, entry: config.Entry, seen: Seen, options: dict[str, Any]
    ) -> str:
        job = self._job(JobKind.BACKUP, name, seen)
        job.entry = entry
        job.entry_text = self.store.now().texts[name]
        job.options = options
        self.supervisor.submit(job)
        return job.id

    def _ended(self, job: Job, result: RunResult) -> None:
        if job.kind is JobKind.INIT:
            if result.ledger is None and result.outcome in (Outcome.DONE, Outcome.WARNINGS):
                self.history.set_ledger(job.name, None)
            self.store.now()  # makes the marker of the new drive
        self.job_finished(job, result)
        self._job_changed(job)
        self.work_changed()
        self.sleep.job_ended(job, result)
        self.timetable.soon()
        # Plugged in anew while the worker of the last insertion was still dying?
        entry = self.store.now().good.get(job.name)
        if entry is not None and job.device.diskseq not in {
            device.diskseq for device in policy.candidates(self._devices(), entry.uuid)
        }:
            self._consider(entry.uuid)

    def _entries_changed(self, known: config.Entries) -> None:
        _keep_markers(known)
        self.timetable.soon()

    def _job_changed(self, job: Job) -> None:
        if job.phase is Phase.STARTING:
            self.work_changed()
        if job.recorded:
            self.drive_changed(job.name)

    async def _sweep_stuck(self) -> None:
        names = list(self.supervisor.stuck)
        await self.supervisor.sweep_stuck()
        for name in names:
            self.drive_changed(name)


def _purposes(options: dict[str, Any]) -> tuple[str, ...]:
    """What is handed over, or out, for an init with these *options*."""
    if options["adopt"]:
        return ("current", "stored-header") if options["header"] else ("current",)
    kit = ("header", "kit") if options["detached"] else ()
    return ("format", "first-open", *kit)


def _is_pending(name: str) -> bool:
    """Whether a change was cut off, which whoever opens the drive next brings to an end."""
    return paths.pending_header(name).exists() or paths.unfinished(name).exists()


def _check_options(options: dict[str, Any]) -> None:
    """Raise Refused for an option of an init that there is not, or that has a wrong type."""
    for key, value in options.items():
        if key not in INIT_OPTIONS:
            raise Refused(f"An init has no option {printable(key, 40)}.")
        wanted = type(INIT_OPTIONS[key])
        if INIT_OPTIONS[key] is None:
            wanted = int if key in _NUMBERS else str
        items = value if isinstance(value, list) else []
        if type(value) is not wanted or not all(isinstance(item, str) for item in items):
            raise Refused(f"The option {key} of an init has the wrong type.")


def _owner(entry: config.Entry | None, job: Job | None) -> str:
    """Whose a drive is; that which is being enrolled is already whose it is to be."""
    owner = entry.owner if entry is not None else job.options.get("owner") if job else None
    return printable(owner or "", 40)


def _absent(name: str) -> DriveAbsent:
    return DriveAbsent(f"The drive {name} is not plugged in.", "Plug it in, and try again.")


def _complain(name: str, fault: ConfigError) -> None:
    journal.log(str(fault), journal.Priority.WARNING, message="config_bad", drive=name)


def _keep_markers(known: config.Entries) -> None:
    try:
        entries.keep_markers(known)
    except OSError as exc:
        journal.log(
            f"The markers for the udev rules can't be written: {exc}.", journal.Priority.WARNING
        )
