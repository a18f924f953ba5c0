"""The daemon's heart: what an arrival, a pull and a request lead to.

It knows which devices are here, asks the policy, and hands jobs to the supervisor.  The bus
and the udev monitor only translate.  It lives as long as the daemon.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable
from typing import Any

import attrs

from .. import config
from ..errors import (
    BY_NAME,
    Busy,
    ConfigError,
    CryptbackError,
    DriveAbsent,
    Refused,
)
from ..model import Device, JobKind, Outcome, RunResult, StopReason
from ..text import ago, printable
from . import entries, jobs, journal, policy, reports
from .agents import Agents
from .history import History, Insertion, Run
from .jobs import Job
from .keys import sources
from .policy import Verdict
from .status import DriveView, State
from .supervisor import Supervisor
from .tasks import Tasks
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
}
"""What an init can be told, with the defaults (see ``protocol.Start``)."""


@attrs.define
class Service:
    """Call :meth:`start` once the sweep is through, then feed it arrivals and removals.

    *drive_changed* gets the name of each drive about which something is new, and
    *job_finished* each job that is over.
    """

    history: History
    boot_id: str
    drive_changed: Callable[[str], None]
    job_finished: Callable[[Job, RunResult], None]
    supervisor: Supervisor = attrs.field(init=False)
    store: entries.EntryStore = attrs.field(init=False)
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
        self.store = entries.EntryStore(_complain, _keep_markers, _remark)

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
        for uuid in sorted({seen.device.uuid for seen in by_node.values()}):
            self._consider(uuid)

    def reload(self) -> None:
        """Read every entry anew, and look again at what is plugged in."""
        self.store.forget()
        for uuid in {entry.uuid for entry in self.store.now().good.values()}:
            self._consider(uuid)

    # What people ask.

    def run(self, name: str, *, full: bool = False, accept: bool = False) -> str:
        """Back up to *name* now; the id of the run.

        Raises UnknownDrive, ConfigError, DriveAbsent, Busy and Refused.
        """
        entry = self.store.get(name)
        if any(job.name == name for job in self.supervisor.jobs()):
            raise Busy(
                f"Something is already going on with {name}.",
                f"See `cryptback status {name}`; `cryptback cancel {name}` stops it.",
            )
        seen = self._the_one(name, entry)
        return self._submit_backup(name, entry, seen, {"full": full, "accept": accept})

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
        """What is on a device.  Raises Busy, and whatever the worker ended with."""
        self._want_idle(seen)
        job = self._job(JobKind.SURVEY, str(options.get("name") or "survey"), seen)
        job.options = options
        self.supervisor.submit(job)
        result = await job.over
        if result.outcome is not Outcome.DONE:
            raise BY_NAME.get(result.error, CryptbackError)(result.sentence, result.hint)
        return result.data

    def init(self, seen: Seen, options: dict[str, Any]) -> Job:
        """Enrol a device; its passphrase is to come through ``hand_over``.

        Raises Busy, Refused and ConfigError.
        """
        unknown = set(options) - set(INIT_OPTIONS)
        if unknown:
            raise Refused(f"An init has no option {printable(sorted(unknown)[0], 40)}.")
        options = {**INIT_OPTIONS, **options}
        options["container"] = options["container"] or None  # D-Bus has no null
        name = config.check_name(str(options["name"]))
        known = self.store.now()
        if name in known.good or name in known.bad:
            raise Refused(
                f'There is an entry "{name}" already.', "Choose another name, or remove it first."
            )
        self._want_idle(seen)
        job = self._job(JobKind.INIT, name, seen)
        job.options = options
        for purpose in ("format", "first-open"):
            job.enrolment[purpose], job.writers[purpose] = os.pipe2(os.O_CLOEXEC)
        self.supervisor.submit(job)
        return job

    def hand_over(self, run: str, purpose: str) -> int:
        """The write end of the pipe for the passphrase that the init *run* needs for *purpose*.

        The caller's to close; each is given away once.  Raises Refused.
        """
        for job in self.supervisor.jobs():
            if job.id == run and purpose in job.writers:
                return job.writers.pop(purpose)
        raise Refused("No passphrase is wanted for that (any more).")

    def client_left(self, job: Job) -> None:
        """Who asked for the init *job* is gone: without them it can't be enrolled."""
        if not job.over.done() and not job.enrolled:
            self.supervisor.stop(job, StopReason.CANCEL)

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
            last_outcome=last.outcome if last is not None else None,
            last_sentence=last.sentence if last is not None else "",
            last_hint=last.hint if last is not None else "",
            last_finished=last.finished if last is not None else 0.0,
            last_success=self.history.last_success(name),
            warnings=tuple(job.warnings)
            if job is not None
            else (last.warnings if last is not None else ()),
            safe=state is State.IDLE and device is not None and self._may_unplug(device),
            problem=problem,
            owner=(entry.owner or "") if entry is not None else "",
            remind=(entry.when.remind or 0) if entry is not None else 0,
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

    def _consider(self, uuid: str) -> None:
        """A device with this UUID is here, or is the only one now: should something run?"""
        here = policy.candidates(self._devices(), uuid)
        if not here:
            return
        for name, entry in sorted(self.store.now().good.items()):
            if entry.uuid != uuid:
                continue
            self.drive_changed(name)
            if any(job.name == name for job in self.supervisor.jobs()):
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
            at_most=entry.when.at_most,
        )
        if verdict is Verdict.RUN:
            self._submit_backup(name, entry, seen, {"full": False, "accept": False})
            return True
        if verdict is Verdict.TOO_SOON:
            self._skip(name, insertion, time.time() - last)
        self._tell(verdict, name, seen.device)
        return False

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

    def _want_idle(self, seen: Seen) -> None:
        going_on = self.supervisor.on_disk(seen.device.diskseq)
        if going_on:
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
        # Plugged in anew while the worker of the last insertion was still dying?
        entry = self.store.now().good.get(job.name)
        if entry is not None and job.device.diskseq not in {
            device.diskseq for device in policy.candidates(self._devices(), entry.uuid)
        }:
            self._consider(entry.uuid)

    def _job_changed(self, job: Job) -> None:
        if job.recorded:
            self.drive_changed(job.name)

    async def _sweep_stuck(self) -> None:
        names = list(self.supervisor.stuck)
        await self.supervisor.sweep_stuck()
        for name in names:
            self.drive_changed(name)


def _absent(name: str) -> DriveAbsent:
    return DriveAbsent(f"The drive {name} is not plugged in.", "Plug it in, and try again.")


def _complain(name: str, fault: ConfigError) -> None:
    journal.log(str(fault), journal.Priority.WARNING, message="config_bad", drive=name)


def _remark(name: str, keys: tuple[str, ...]) -> None:
    journal.log(
        f"{name}: {', '.join(keys)} in its entry has no effect in this version: every version is"
        " kept, and a backup is made when the drive is plugged in or `cryptback run` asks for it.",
        journal.Priority.WARNING,
        drive=name,
    )


def _keep_markers(known: config.Entries) -> None:
    try:
        entries.keep_markers(known)
    except OSError as exc:
        journal.log(
            f"The markers for the udev rules can't be written: {exc}.", journal.Priority.WARNING
        )
