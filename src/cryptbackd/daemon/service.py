"""The daemon's heart: what an arrival, a pull, the clock and the end of a job lead to.

It asks the policy, and has jobs begun; what people ask for is in ``requests``.  The bus
and the udev monitor only translate.  It lives as long as the daemon.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from typing import Any

import attrs

from .. import config, paths
from ..errors import ConfigError
from ..model import Device, JobKind, Outcome, Phase, RunResult
from ..text import ago, count
from . import entries, jobs, journal, policy, reports
from .agents import Agents
from .history import History, Insertion, Run
from .jobs import Job
from .keys import sources
from .latecomers import Latecomers
from .policy import Again, Verdict
from .presence import Presence
from .requests import Requests
from .sleep import Sleep
from .supervisor import Supervisor
from .tasks import Tasks
from .timetable import Timetable
from .views import Views
from .watch import Seen

PLAIN_RUN: dict[str, Any] = {"full": False, "accept": False}
"""What a run that nobody asked for is told."""


@attrs.define
class Service:
    """Feed it arrivals and removals, once the sweep is through; what people ask is in ``requests``.

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
    latecomers: Latecomers = attrs.field(init=False)
    agents: Agents = attrs.field(factory=Agents)
    present: Presence = attrs.field(factory=Presence)
    requests: Requests = attrs.field(init=False)
    views: Views = attrs.field(init=False)
    _told: set[tuple[int, str, Verdict]] = attrs.field(factory=set)
    _tasks: Tasks = attrs.field(factory=Tasks)

    def __attrs_post_init__(self) -> None:
        self.supervisor = Supervisor(
            self.history,
            self.boot_id,
            lambda: sources(self.agents),
            changed=self._job_changed,
            ended=self._ended,
            present=self.present.has,
        )
        self.store = entries.EntryStore(_complain, self._entries_changed)
        self.requests = Requests(
            self.history, self.boot_id, self.supervisor, self.store, self.present, self._ejected
        )
        self.timetable = Timetable(
            self.history,
            self.store,
            self._again,
            self._begin_again,
            self.requests.is_busy,
            self._remind,
        )
        self.views = Views(
            self.history, self.boot_id, self.supervisor, self.store, self.present, self.timetable
        )
        self.sleep = Sleep(self.supervisor, self._take_up, self._consider_all)
        self.latecomers = Latecomers(self.agents, self._ask_again)
        self.agents.came = self.latecomers.came

    # What udev tells.

    def arrived(self, seen: Seen) -> None:
        """A device came, or something about it changed."""
        node = seen.device.node
        before = self.present.seen.get(node)
        if before is not None and before.device.diskseq != seen.device.diskseq:
            self.left(before.device.disk)  # its removal was missed
        if not seen.device.uuid:
            if self.present.seen.pop(node, None) is not None and before is not None:
                self._changed_uuid(before.device.uuid)
            return
        self.present.seen[node] = seen
        self.timetable.soon()
        if before is not None and before.device.uuid != seen.device.uuid:
            self._changed_uuid(before.device.uuid)
        self._consider(seen.device.uuid)

    def left(self, node: str) -> None:
        """The device *node* is gone, and with a disk its partitions."""
        self._gone(lambda device: node in (device.node, device.disk))

    def pulled(self, diskseq: int) -> None:
        """The disk with this sequence number is gone, and perhaps a new one in its place."""
        self._gone(lambda device: device.diskseq == diskseq)

    def _gone(self, is_gone: Callable[[Device], bool]) -> None:
        gone = [seen for seen in self.present.seen.values() if is_gone(seen.device)]
        for seen in gone:
            del self.present.seen[seen.device.node]
        self.supervisor.pulled(is_gone)
        for uuid in {seen.device.uuid for seen in gone}:
            self._changed_uuid(uuid)
            self._consider(uuid)
        self.timetable.soon()
        if self.supervisor.stuck:
            self._tasks.start(self._sweep_stuck())

    def resync(self, found: Iterable[Seen]) -> None:
        """*found* is everything that is here: what isn't among it has left unseen."""
        by_node = {seen.device.node: seen for seen in found}
        for node, seen in list(self.present.seen.items()):
            now = by_node.get(node)
            if now is None or now.device.diskseq != seen.device.diskseq:
                self.left(node)
        self.supervisor.pulled(lambda device: not os.path.exists(device.node))
        # All of them first: a second device with the same UUID must be seen before one runs.
        self.present.seen.update(by_node)
        self._consider_all()

    def reload(self) -> None:
        """Read every entry anew, and look again at what is plugged in."""
        self.store.forget()
        self.store.now()
        self._consider_all()

    def owner(self, name: str) -> str | None:
        """Whose the drive *name* is; None: nobody's in particular.  Raises UnknownDrive.

        Where that can't be told (a bad entry, or none yet) it is root's.
        """
        known = self.store.now()
        if name in known.bad or (name not in known.good and self.requests.is_busy(name)):
            return "root"
        return self.store.get(name).owner

    # How it is done.

    def _changed_uuid(self, uuid: str) -> None:
        for name, entry in self.store.now().good.items():
            if entry.uuid == uuid:
                self.drive_changed(name)

    def _consider_all(self) -> None:
        for uuid in sorted({device.uuid for device in self.present.devices()}):
            self._consider(uuid)
        self.timetable.soon()

    def _consider(self, uuid: str) -> None:
        """A device with this UUID is here, or is the only one now: should something run?"""
        if self.supervisor.refuses:
            return
        here = policy.candidates(self.present.devices(), uuid)
        if not here:
            return
        for name, entry in sorted(self.store.now().good.items()):
            if entry.uuid != uuid:
                continue
            self.drive_changed(name)
            if self.requests.is_busy(name):
                continue
            for device in here:
                if self._begin_if_wanted(name, entry, self.present.seen[device.node], len(here)):
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
            self.requests.submit_backup(name, entry, seen, PLAIN_RUN)
            return True
        if verdict is Verdict.TOO_SOON:
            self._skip(name, insertion, time.time() - last)
        self._tell(verdict, name, seen.device)
        return False

    # What the clock asks for.

    def _again(self, name: str, entry: config.Entry) -> Again:
        """Whether the clock may begin a run of an entry, as things are now."""
        here = policy.candidates(self.present.devices(), entry.uuid)
        if len(here) != 1 or self.supervisor.refuses:
            return Again.NOT
        insertion = Insertion(self.boot_id, here[0].diskseq)
        return policy.again(
            self.history.past(name, insertion), ejected=self.history.ejected(insertion)
        )

    def _begin_again(self, name: str, entry: config.Entry) -> None:
        self.requests.submit_backup(name, entry, self.present.the_one(name, entry), PLAIN_RUN)

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
        """Do again what was interrupted, or not unlocked, if its drive is still in."""
        entry = self.store.now().good.get(job.name)
        seen = self.present.seen.get(job.device.node)
        if entry is None or seen is None or self.requests.is_busy(job.name):
            return
        if job.begins_again and seen.device.diskseq == job.device.diskseq:
            # An enrolment is not done again, but its first backup is.
            options = job.options if job.kind is JobKind.BACKUP else PLAIN_RUN
            self.requests.submit_backup(job.name, entry, seen, options)

    def _ask_again(self, job: Job) -> None:
        """Do again for what nobody could be asked, unless the drive is wanted for nothing more."""
        here = policy.candidates(self.present.devices(), job.device.uuid)
        insertion = Insertion(self.boot_id, job.device.diskseq)
        if len(here) == 1 and not self.supervisor.refuses and not self.history.ejected(insertion):
            self._take_up(job)

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

    def _ejected(self, diskseq: int) -> None:
        self.sleep.forget(diskseq)
        self.latecomers.forget(diskseq)
        self.timetable.soon()

    def _ended(self, job: Job, result: RunResult) -> None:
        if job.kind is JobKind.INIT:
            if result.ledger is None and result.outcome in (Outcome.DONE, Outcome.WARNINGS):
                self.history.set_ledger(job.name, None)
            self.store.now()  # makes the marker of the new drive
        self.job_finished(job, result)
        self._job_changed(job)
        self.work_changed()
        self.sleep.job_ended(job, result)
        self.latecomers.job_ended(job, result)
        self.timetable.soon()
        # Plugged in anew while the worker of the last insertion was still dying, or another one
        # with its UUID meanwhile?
        entry = self.store.now().good.get(job.name)
        if entry is not None and {job.device.diskseq} != {
            device.diskseq for device in policy.candidates(self.present.devices(), entry.uuid)
        }:
            self._consider(entry.uuid)

    def _entries_changed(self, known: config.Entries) -> None:
        _keep_markers(known)
        self.timetable.soon()

    def _job_changed(self, job: Job) -> None:
        if job.phase is Phase.STARTING:
            self.work_changed()
            self.timetable.soon()
        if job.recorded:
            self.drive_changed(job.name)

    async def _sweep_stuck(self) -> None:
        names = list(self.supervisor.stuck)
        await self.supervisor.sweep_stuck()
        for name in names:
            self.drive_changed(name)


def _is_pending(name: str) -> bool:
    """Whether a change was cut off, which whoever opens the drive next brings to an end."""
    return paths.pending_header(name).exists() or paths.unfinished(name).exists()


def _complain(name: str, fault: ConfigError) -> None:
    journal.log(str(fault), journal.Priority.WARNING, message="config_bad", drive=name)


def _keep_markers(known: config.Entries) -> None:
    try:
        entries.keep_markers(known)
    except OSError as exc:
        journal.log(
            f"The markers for the udev rules can't be written: {exc}.", journal.Priority.WARNING
        )
