"""What people ask of drives: each request becomes a job, or is refused at once.

What is asked for is decided here alone; whether the asker may, the bus has decided before.  It
lives as long as the daemon.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable
from typing import Any

import attrs

from .. import config, kits, protocol, sizes
from ..errors import BY_NAME, Busy, CryptbackError, DriveAbsent, Refused, ToolFailed
from ..model import JobKind, Outcome, RunResult, StopReason
from ..text import printable
from . import browsing, entries, forgetting, init_options, jobs, journal, keyslots, verification
from .history import History, Insertion
from .jobs import Job
from .mounts import Mounts
from .presence import Presence, absent
from .supervisor import Supervisor
from .watch import Seen


@attrs.define
class Requests:
    """Everything that can be asked, a method each."""

    history: History
    boot_id: str
    supervisor: Supervisor
    store: entries.EntryStore
    present: Presence
    ejected: Callable[[int], None]
    """Is told of each insertion in which nothing is to be begun by itself any more."""
    _mounts: Mounts = attrs.field(factory=Mounts)

    def run(self, name: str, *, full: bool = False, accept: bool = False) -> str:
        """Back up to *name* now; the id of the run.

        Raises UnknownDrive, ConfigError, DriveAbsent, Busy and Refused.
        """
        entry = self.store.get(name)
        self._want_awake()
        if self.is_busy(name):
            if self._shown(name):
                raise Busy(f"{name} is open for browsing.", f"`cryptback close {name}` ends that.")
            raise Busy(
                f"Something is already going on with {name}.",
                f"See `cryptback status {name}`; `cryptback cancel {name}` stops it.",
            )
        seen = self.present.the_one(name, entry)
        return self.submit_backup(name, entry, seen, {"full": full, "accept": accept})

    def verify(self, name: str, options: dict[str, Any]) -> str:
        """Read back what is on the drive *name*; the id of the run.

        Raises UnknownDrive, ConfigError, DriveAbsent, Busy and Refused.
        """
        verification.check(options)
        job = self._for_entry(JobKind.VERIFY, name)
        job.options = options
        self._submit(job)
        return job.id

    def cancel(self, name: str) -> list[str]:
        """Stop what goes on with *name*; the ids of its runs.

        Raises UnknownDrive, ConfigError and Refused.
        """
        found = [job for job in self.supervisor.jobs() if job.name == name and job.recorded]
        return self._cancelled(name, found, f"Nothing is going on with {name}.")

    def _cancelled(self, name: str, jobs: list[Job], nothing: str) -> list[str]:
        if not jobs:
            self.store.get(name)
            raise Refused(nothing)
        for job in jobs:
            self.supervisor.stop(job, StopReason.CANCEL)
        return [job.id for job in jobs]

    def eject(self, name: str) -> list[str]:
        """Let go of the disk that *name* is on; the ids of the runs that must end first.

        Nothing is begun by itself on that disk before it is plugged in anew.  Raises
        UnknownDrive, ConfigError and DriveAbsent.
        """
        seen = [job.seen for job in self.supervisor.jobs() if job.name == name]
        if not seen:
            seen = self.present.showing(self.store.get(name).uuid)
        if not seen:
            raise absent(name)
        ending = []
        for disk in {each.device.diskseq: each for each in seen}.values():
            diskseq = disk.device.diskseq
            self.history.eject(Insertion(self.boot_id, diskseq))
            self.ejected(diskseq)
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
        """What is on a device.  Raises Busy, Refused, ConfigError, and whatever the worker
        ended with.
        """
        init_options.check(options)
        name = str(options.get("name") or "survey")
        config.check_name(name)
        self._want_idle(seen)
        kind = JobKind.LOOK if options.get("adopt") else JobKind.SURVEY
        job = self._job(kind, name, seen)
        job.options = options
        return await self._answer(job)

    async def look(self, name: str) -> dict[str, object]:
        """What is different about the header on the drive *name*.

        Raises UnknownDrive, ConfigError, DriveAbsent and Busy, and whatever the worker ended
        with.
        """
        return await self._answer(self._for_entry(JobKind.LOOK, name))

    async def _answer(self, job: Job) -> dict[str, object]:
        self._submit(job)
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
        if self.is_busy(name) or name in self.supervisor.stuck:
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
        init_options.check(options)
        options = {**init_options.INIT_OPTIONS, **options}
        options["container"] = options["container"] or None  # D-Bus has no null
        name = config.check_name(str(options["name"]))
        known = self.store.now()
        # To adopt a copy of its container moves an entry to another drive.
        if name in known.bad or (name in known.good and not options["adopt"]):
            raise Refused(
                f'There is an entry "{name}" already.', "Choose another name, or remove it first."
            )
        if options["diskseq"] not in (None, seen.device.diskseq):
            raise Refused(
                f"{seen.device.node} is not the drive any more that was shown, or it was plugged in"
                " anew; nothing was changed.",
                "Begin anew, and look at what is shown.",
            )
        self._want_idle(seen)
        if self.is_busy(name):
            raise Busy(f"Something is already going on with {name}.", "See `cryptback status`.")
        job = self._job(JobKind.INIT, name, seen)
        job.options = options
        job.entry_text = known.texts.get(name, "")
        self._submit(job, init_options.purposes(options))
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
        self._submit(job, ("current", "settings", *header))
        return job

    def passphrase(self, name: str, options: dict[str, Any]) -> Job:
        """Change what opens the drive *name*; passphrases are to come through ``hand_over``.

        Raises UnknownDrive, ConfigError, DriveAbsent, Busy and Refused.
        """
        purposes = keyslots.purposes(options)
        job = self._for_entry(JobKind.PASSPHRASE, name)
        job.options = options
        self._submit(job, purposes)
        return job

    def adopt(self, name: str) -> Job:
        """Store the header that is on the drive *name*; a passphrase of it is to come through
        ``hand_over``.  Raises what :meth:`passphrase` does.
        """
        job = self._for_entry(JobKind.ADOPT, name)
        self._submit(job, ("current",))
        return job

    def repair(self, name: str, seen: Seen | None = None) -> str:
        """Write the stored header to the drive *name*, or to the partition *seen* that shows no
        UUID any more; the id of the run.  Raises what :meth:`passphrase` does.
        """
        job = self._for_entry(JobKind.REPAIR, name, seen)
        self._submit(job)
        return job.id

    def browse(self, name: str, user: int, groups: list[int]) -> Job:
        """Show the versions on *name* to a user, on a mount that is to come through
        what ``hand_over`` gives for ``mount``.

        Raises UnknownDrive, ConfigError, DriveAbsent, Busy and Refused.
        """
        job = self._for_entry(JobKind.BROWSE, name)
        job.options = {"user": user, "groups": groups, "who": browsing.name_of(user)}
        job.mount = asyncio.get_running_loop().create_future()
        self._submit(job)
        return job

    def close(self, name: str) -> list[str]:
        """End the browsing of *name*; the ids of the jobs that end.

        Raises UnknownDrive, ConfigError and Refused.
        """
        return self._cancelled(name, self._shown(name), f"{name} is not open for browsing.")

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
        self._submit(job)
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
        self._want_no_other_restore(name, user)
        job = self._job(JobKind.RESTORE, name, self.present.the_one(name, entry))
        job.entry = entry
        job.entry_text = self.store.now().texts[name]
        job.options = {"at": at, "user": user, "groups": groups}
        self._submit(job, ("files",))
        return job

    def _want_no_other_restore(self, name: str, user: int) -> None:
        """Raise Busy where one of *user* waits already: each holds descriptors of ours."""
        waiting = [job for job in self.supervisor.jobs() if job.name == name and not job.begun]
        if any(job.kind is JobKind.RESTORE and job.options["user"] == user for job in waiting):
            raise Busy(
                f"A restore of yours from {name} waits for its turn already.",
                f"See `cryptback status {name}`; `cryptback cancel {name}` stops it.",
            )

    def _submit(self, job: Job, purposes: Iterable[str] = ()) -> None:
        """Have *job* done, for which *purposes* something is handed over.

        Raises Refused where somebody said more than a worker can be told, and ToolFailed.
        """
        if not protocol.fits(job.start(self.history.ledger(job.name))):
            raise Refused(
                "That is more than can be asked for at a time.",
                "Say it in fewer words; paths can be put into a list, for `include_from`.",
            )
        try:
            job.open_enrolment(purposes)
        except OSError as exc:
            job.close_enrolment()
            raise ToolFailed(
                f"There is no way to hand over what it needs: {exc.strerror}.",
                "Try it again when less is going on.",
            ) from exc
        self.supervisor.submit(job)

    def _for_entry(self, kind: JobKind, name: str, seen: Seen | None = None) -> Job:
        entry = self.store.get(name)
        seen = seen or self.present.the_one(name, entry)
        self._want_idle(seen)
        job = self._job(kind, name, seen)
        job.entry = entry
        job.entry_text = self.store.now().texts[name]
        return job

    def hand_over(self, run: str, purpose: str) -> int:
        """The end of the pipe for what the job *run* needs, or has to give, for *purpose*.

        The caller's to close; each is given away once.  Raises Refused and ToolFailed.
        """
        for job in self.supervisor.jobs():
            if job.id == run and purpose in job.writers:
                return job.writers.pop(purpose)
            if job.id == run and purpose == "mount" and job.mount is not None and not job.mounting:
                way = self._mounts.take(job, job.mount)
                job.mounting = True
                return way
        raise Refused("No passphrase is wanted for that (any more).")

    def client_left(self, job: Job) -> None:
        """Who asked for *job*, and has its passphrases, is gone."""
        if not job.over.done() and not job.enrolled:
            self.supervisor.stop(job, StopReason.CANCEL)

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

    def is_busy(self, name: str) -> bool:
        """Whether anything goes on with the drive *name*, or waits for its turn."""
        return any(job.name == name for job in self.supervisor.jobs())

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

    def submit_backup(
        self, name: str, entry: config.Entry, seen: Seen, options: dict[str, Any]
    ) -> str:
        """Have a backup made; the id of the run."""
        job = self._job(JobKind.BACKUP, name, seen)
        job.entry = entry
        job.entry_text = self.store.now().texts[name]
        job.options = options
        self.supervisor.submit(job)
        return job.id
