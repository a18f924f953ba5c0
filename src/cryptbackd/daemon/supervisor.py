"""Jobs and their workers: a queue a disk, one job at a time on each, disks side by side.

A job is over, recorded and told, when its worker is really gone and (where it died) what it
left has been swept; not before.  A worker that hangs in the kernel therefore keeps its own
disk's queue, and nobody else's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial

import attrs

from .. import protocol
from ..errors import ToolFailed
from ..model import Device, JobKind, Outcome, Phase, RunResult, StopReason
from . import answering, jobs, journal, reports
from .history import History, Insertion, Run
from .jobs import Job
from .keys import Chain, Key, Source, SourceFailed
from .keys.stored import luks_uuid
from .sweep import is_due, sweep
from .tasks import Tasks
from .worker_process import WorkerProcess

_ASLEEP = "The computer goes to sleep or shuts down."
_UDEV_IS_LATE = 2.0
"""Seconds between the first errors of a drive that is pulled and udev's event, at most."""
_MOUNTING = 60.0
"""Seconds that whoever wants to browse has to mount it."""
_OPENED = (Phase.MOUNTING, Phase.RESIZING)
"""Phases that follow the unlocking when the passphrase was right."""
_LET_GO = (Phase.POWERING_OFF, Phase.FINISHED)
"""Phases in which nothing of the drive is needed any more: it may leave, or is made to."""


@attrs.define
class Supervisor:
    """Give it jobs by :meth:`submit`; each job's ``over`` tells its end.

    *changed* is called when something about a job is new, *ended* when one is over.
    *present* tells whether a device is still plugged in.
    """

    history: History
    boot_id: str
    sources: Callable[[], Sequence[Source]]
    changed: Callable[[Job], None]
    ended: Callable[[Job, RunResult], None]
    present: Callable[[Device], bool]
    stuck: dict[str, tuple[str, ...]] = attrs.field(factory=dict)
    """What could not be locked after a worker's death, by the name of its entry."""
    _running: dict[int, Job] = attrs.field(factory=dict)
    _queues: dict[int, deque[Job]] = attrs.field(factory=dict)
    _tasks: Tasks = attrs.field(factory=Tasks)
    _company: Tasks = attrs.field(factory=Tasks)
    """What accompanies jobs, and is cancelled at their end."""
    _sweeps: dict[str, asyncio.Lock] = attrs.field(factory=dict)
    refuses: str = ""
    """Why nothing is begun now; ends a sentence."""

    def jobs(self) -> Iterator[Job]:
        """Every job that is not over, those that run first."""
        yield from list(self._running.values())
        for queue in list(self._queues.values()):
            yield from list(queue)

    def running(self) -> list[Job]:
        """The jobs whose worker is at work."""
        return list(self._running.values())

    def on_disk(self, diskseq: int) -> list[Job]:
        """The jobs of one disk that are not over."""
        return [job for job in self.jobs() if job.device.diskseq == diskseq]

    def insertion(self, job: Job) -> Insertion:
        """The insertion that *job* belongs to."""
        return Insertion(self.boot_id, job.device.diskseq)

    def submit(self, job: Job) -> None:
        """Do *job* as soon as its disk is free."""
        sequence = job.device.diskseq
        if self.refuses:
            self._drop(job, jobs.cancelled_result(self.refuses))
        elif sequence in self._running:
            self._queues.setdefault(sequence, deque()).append(job)
            self.changed(job)
        else:
            self._begin(job)

    def stop(self, job: Job, reason: StopReason) -> None:
        """Ask *job* to stop in order; one that waits for its turn is over at once."""
        if job.worker is None and job not in self._running.values():
            self._queues[job.device.diskseq].remove(job)
            result = jobs.cancelled_result("It was stopped before its turn came.")
            if reason is StopReason.CANCEL and job.recorded:
                self._record_begin(job)
                self._record_end(job, result)
            self._drop(job, result)
        elif job.stop is None:
            job.stop = reason
            self._stop_asking(job)
            if job.worker is not None:
                job.worker.send(protocol.Stop(reason))

    def pulled(self, is_gone: Callable[[Device], bool]) -> None:
        """Of some devices *is_gone* says that they left: end what goes on with them, now."""
        for job in self.jobs():
            if not is_gone(job.device):
                continue
            job.left.set()
            if job not in self._running.values():
                self._queues[job.device.diskseq].remove(job)
                self._drop(job, jobs.absent_result())
                continue
            if job.worker is not None and not job.doomed:
                job.worker.drain()
                if job.finished is None and job.phase not in _LET_GO:
                    job.pulled = True
                    self._stop_asking(job)
                    job.worker.kill()

    async def stop_all(self) -> None:
        """Stop everything in order for the end of the service; returns when all is over."""
        self.refuses = "The service is being stopped."
        for job in list(self.jobs()):
            self.stop(job, StopReason.SERVICE_STOP)
        await self._tasks.all_ended()

    def fall_asleep(self) -> None:
        """Stop everything in order for the computer's sleep; begin nothing until it is over."""
        self.refuses = self.refuses or _ASLEEP
        # Those that wait first, or the end of the running one would begin them.
        for job in reversed(list(self.jobs())):
            self.stop(job, StopReason.SLEEP)

    def wake_up(self) -> None:
        """Begin jobs again, unless the service is being stopped."""
        if self.refuses == _ASLEEP:
            self.refuses = ""

    async def sweep_stuck(self) -> None:
        """Try again to lock what could not be locked before; what is clean is told."""
        busy = {job.name for job in self.running()}
        for name in [name for name in self.stuck if name not in busy]:
            await self._sweep(name)

    def _begin(self, job: Job) -> None:
        self._running[job.device.diskseq] = job
        job.begun = time.time()
        self._tasks.start(self._run(job))

    def _drop(self, job: Job, result: RunResult) -> None:
        job.close_enrolment()
        job.over.set_result(result)
        self.ended(job, result)

    async def _run(self, job: Job) -> None:
        clock = asyncio.get_running_loop().time
        started = clock()
        if job.recorded:
            self._record_begin(job)
            line = reports.begun(job.name, job.kind, job.device.node, job.seen.label)
            self._log(job, line)
        self.changed(job)
        looking = self._company.start(self._careful(job, partial(self._look, job)))
        try:
            result = await self._work(job)
        except Exception as exc:
            self._mistake(job, exc)
            result = await self._broken_off(job)
        finally:
            looking.cancel()
            job.close_enrolment()
        if result.safe and not result.powered_off and not self.present(job.device):
            # Plugged in anew, it would be of the next run's drive that it may be unplugged.
            result = attrs.evolve(result, safe=False)
        job.seconds = clock() - started
        if job.recorded:
            self._record_end(job, result)
        elif job.kind is JobKind.RELEASE and result.touched:
            self.history.proven(self.insertion(job), result.safe)
        del self._running[job.device.diskseq]
        job.over.set_result(result)
        self.ended(job, result)
        queue = self._queues.get(job.device.diskseq)
        if queue:
            self._begin(queue.popleft())
        else:
            self._queues.pop(job.device.diskseq, None)

    async def _work(self, job: Job) -> RunResult:
        """The worker's life; the result that is to be recorded."""
        if job.name in self.stuck:
            await self._sweep(job.name)
        if job.stop is not None or not self.present(job.device):
            # It was asked to, or the drive left, while that sweep went on.
            if job.stop is not None:
                job.interrupted = job.stop.is_taken_up and job.begins_again
                return jobs.cancelled_result("It was stopped before anything was touched.")
            return jobs.absent_result()
        try:
            job.worker = WorkerProcess(
                lambda message: self._hear(job, message), lambda exc: self._broke_off(job, exc)
            )
        except ToolFailed as exc:
            return RunResult(Outcome.FAILED, exc.sentence, exc.hint, error="ToolFailed")
        job.chain = Chain(
            self.sources(),
            job.name,
            job.entry,
            lambda name, exc: self._key_failed(job, name, exc),
            luks_uuid(job.name),
        )
        job.header = jobs.stored_header(job.name)
        job.worker.send(
            job.start(self.history.ledger(job.name), forgotten=self.history.has_forgotten(job.name))
        )
        await job.worker.ended()
        self._stop_asking(job)
        job.chain.over(opened=False)
        if job.finished is not None:
            result = job.finished
            if is_due(job.name):
                await self._sweep(job.name)
            if result.error == "DriveFailed" and await self._has_left(job):
                result = jobs.pulled_result(job)
                result.warnings = job.warnings.told
            if job.stop is not None and job.stop.is_taken_up:
                job.interrupted = result.outcome is Outcome.CANCELLED and job.begins_again
            return result
        return await self._broken_off(job)

    async def _broken_off(self, job: Job) -> RunResult:
        """The result of a job that was not finished, when nothing of its worker is left."""
        status = await job.worker.ended() if job.worker is not None else 0
        # Whatever a mistake was made with, it would be made again; and what somebody asked for, and
        # is no backup, is not begun again by itself.
        job.interrupted = not job.mistaken and job.kind in (JobKind.BACKUP, JobKind.INIT)
        if job.pulled:
            result = jobs.pulled_result(job)
        elif job.mistaken:
            result = jobs.mistake_result(job)
        else:
            result = jobs.death_result(job, status)
        result.warnings = job.warnings.told
        if job.worker is not None:
            await self._sweep(job.name)
        if job.name in self.stuck:
            result.sentence = f"{result.sentence} {' '.join(self.stuck[job.name])}"
        return result

    async def _careful(self, job: Job, work: Callable[[], Awaitable[None]]) -> None:
        """Do *work* that accompanies *job*: where it fails, that is the end of this job alone."""
        try:
            await work()
        except Exception as exc:
            self._mistake(job, exc)

    def _mistake(self, job: Job, exc: Exception) -> None:
        """Tell of a mistake of ours, and end the worker of the *job* with which it was made."""
        journal.mistake("a job is ended.", exc, drive=job.name, run=job.id if job.recorded else "")
        job.mistaken = True
        self._stop_asking(job)
        if job.worker is not None:
            job.worker.kill()

    async def _has_left(self, job: Job) -> bool:
        """Whether the drive is gone: its errors come before udev tells that it was pulled."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(job.left.wait(), _UDEV_IS_LATE)
        return job.left.is_set()

    def _hear(self, job: Job, message: protocol.Message) -> None:
        try:
            self._heard(job, message)
        except Exception as exc:
            self._mistake(job, exc)

    def _heard(self, job: Job, message: protocol.Message) -> None:
        match message:
            case protocol.PhaseChanged():
                if job.phase is Phase.UNLOCKING and job.chain is not None:
                    job.chain.over(opened=message.phase in _OPENED)
                job.phase = message.phase
                job.progress = None
            case protocol.Progressed():
                job.progress = message.progress
            case protocol.Said():
                job.enrolled = job.enrolled or message.message == "enrolled"
                self._say(job, message.text, message.priority, message.message)
                return
            case protocol.Warned():
                job.warnings.add(message.text, many=message.many)
                self._say(job, message.text, journal.Priority.WARNING, message.message)
            case protocol.KeyWanted():
                self._stop_asking(job)
                if job.stop is None:
                    job.asking = self._company.start(
                        self._careful(job, partial(self._give_key, job, message))
                    )
                return
            case protocol.Finished():
                job.finished = message.result
                return
            case _:
                self._broke_off(job, protocol.ProtocolError(f"{message.SAY} from a worker"))
                return
        self.changed(job)

    def _broke_off(self, job: Job, exc: protocol.ProtocolError) -> None:
        if not job.doomed and job.worker is not None:
            job.broke_off = str(exc)
            job.worker.kill()

    async def _give_key(self, job: Job, wanted: protocol.KeyWanted) -> None:
        assert job.worker is not None
        assert job.chain is not None
        if wanted.refused:
            self._say(
                job,
                f"The passphrase from the source “{wanted.refused}” is wrong.",
                journal.Priority.WARNING,
                "key_source_failed",
            )
        if wanted.purpose == "browse":
            await self._give_mount(job)
            return
        if wanted.purpose != "open":
            fd = job.enrolment.pop(wanted.purpose, None)
            if fd is None:
                job.worker.send(protocol.Key("No passphrase was handed over."))
                return
            job.worker.send(protocol.Key("enrolment"), fd)
            os.close(fd)
            return
        key = await job.chain.next(wanted.purpose, wanted.refused)
        if not isinstance(key, Key):
            job.worker.send(protocol.Key(key.why))
            return
        self._say(job, f"A passphrase came from the source “{key.source}”.")
        job.worker.send(protocol.Key(key.source, key.token), key.fd)
        key.close()

    async def _give_mount(self, job: Job) -> None:
        """Pass on the descriptor of the mount, as soon as whoever asked has it."""
        assert job.worker is not None
        assert job.mount is not None
        try:
            async with asyncio.timeout(_MOUNTING):
                fd = await asyncio.shield(job.mount)
        except TimeoutError:
            self._say(job, "Nobody mounted it in time.", journal.Priority.WARNING)
            self.stop(job, StopReason.CANCEL)
            return
        job.mount = None
        job.worker.send(protocol.Key("mount"), fd)
        os.close(fd)

    def _key_failed(self, job: Job, _name: str, exc: SourceFailed) -> None:
        self._say(job, str(exc), journal.Priority.WARNING, "key_source_failed")

    def _stop_asking(self, job: Job) -> None:
        if job.asking is not None:
            job.asking.cancel()
            job.asking = None

    async def _look(self, job: Job) -> None:
        watch = answering.Watch()
        while True:
            await asyncio.sleep(answering.INTERVAL)
            now = asyncio.get_running_loop().time()
            counters = answering.read_counters(job.device.disk)
            answers = watch.look(now, counters, doomed=job.doomed)
            if answers == job.answering:
                continue
            job.answering = answers
            if answers:
                self._say(job, "The drive answers again.", message="not_answering")
            else:
                self._say(
                    job,
                    f"The drive does not answer; nothing was completed for"
                    f" {answering.PATIENCE:.0f} seconds.",
                    journal.Priority.WARNING,
                    "not_answering",
                )
            self.changed(job)

    async def _sweep(self, name: str) -> None:
        async with self._sweeps.setdefault(name, asyncio.Lock()):
            swept = await sweep(name)
        for sentence in swept.locked:
            journal.log(sentence, journal.Priority.WARNING, message="swept", drive=name)
        was = self.stuck.pop(name, ())
        if swept.stuck:
            self.stuck[name] = swept.stuck
        elif was:
            journal.log(f"{name}: what could not be locked before is locked now.", drive=name)

    def _say(
        self,
        job: Job,
        text: str,
        priority: int = journal.Priority.INFO,
        message: str = "",
    ) -> None:
        journal.log(
            f"{job.name}: {text}",
            priority,
            message=message,
            drive=job.name,
            run=job.id if job.recorded else "",
            phase=job.phase,
        )

    def _log(self, job: Job, line: reports.Line) -> None:
        journal.log(
            line.text,
            line.priority,
            message=line.message,
            drive=job.name,
            run=job.id,
            phase=job.phase,
            outcome=line.outcome,
        )

    def _record_begin(self, job: Job) -> None:
        run = Run(job.id, job.name, job.kind, job.begun or time.time())
        self.history.begin(run, self.insertion(job))

    def _record_end(self, job: Job, result: RunResult) -> None:
        self.history.finish(job.id, result, job.interrupted, time.time())
        if result.ledger is not None:
            self.history.set_ledger(job.name, result.ledger)
        lines = reports.ended(
            job.name,
            result,
            seconds=job.seconds,
            interrupted=job.interrupted,
            asleep=job.stop is StopReason.SLEEP,
            present=self.present(job.device),
            stuck=self.stuck.get(job.name, ()),
        )
        for line in lines:
            self._log(job, line)
