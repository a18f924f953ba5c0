"""A job of the daemon: what is asked of a worker, and what is known of it until it is over."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import time
from collections.abc import Iterable
from typing import Any

import attrs

from .. import paths, protocol
from ..config import Entry
from ..model import Device, JobKind, LedgerEntry, Outcome, Phase, Progress, RunResult, StopReason
from ..warned import Warnings
from .keys import Chain
from .watch import Seen
from .worker_process import WorkerProcess


def new_id(now: float) -> str:
    """The id of a run that is asked for at *now* (Unix time); sorts by time."""
    return f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(now))}-{secrets.token_hex(2)}"


@attrs.define(eq=False)
class Job:
    """One job, from its place in the queue to its end.  ``over`` has the result."""

    id: str
    kind: JobKind
    name: str
    seen: Seen
    over: asyncio.Future[RunResult]
    entry: Entry | None = None
    entry_text: str = ""
    options: dict[str, Any] = attrs.field(factory=dict)
    enrolment: dict[str, int] = attrs.field(factory=dict)
    """The worker's ends of the pipes for keys, by their purpose; owned."""
    writers: dict[str, int] = attrs.field(factory=dict)
    """The other ends, until they are given away; owned."""
    worker: WorkerProcess | None = None
    chain: Chain | None = None
    asking: asyncio.Task[None] | None = None
    phase: Phase = Phase.STARTING
    progress: Progress | None = None
    warnings: Warnings = attrs.field(factory=Warnings)
    stop: StopReason | None = None
    pulled: bool = False
    left: asyncio.Event = attrs.field(factory=asyncio.Event)
    """Set when its drive is gone."""
    broke_off: str = ""
    """What it said that was no message, if it was killed for that."""
    mistaken: bool = False
    """Whether it was ended because the daemon made a mistake with it."""
    answering: bool = True
    finished: RunResult | None = None
    mount: asyncio.Future[int] | None = None
    """Of browsing: gets the descriptor of the mount, which is the supervisor's to close."""
    mounting: bool = False
    """Whether a way to hand that over was given."""
    enrolled: bool = False
    """Whether an init has come so far that the drive is enrolled, whatever happens now."""
    header: int = 0
    """Which file was the stored header when the worker began; 0: none (:func:`stored_header`)."""
    begun: float = 0.0
    """Unix time; 0 while it waits for its turn."""
    seconds: float = 0.0
    """How long it took."""
    interrupted: bool = False

    @property
    def device(self) -> Device:
        """The device that it is about, as it was when the job was made."""
        return self.seen.device

    @property
    def recorded(self) -> bool:
        """Whether it is a run, which the history and the journal know; the others are not."""
        return self.kind not in (JobKind.SURVEY, JobKind.LOOK, JobKind.RECOVER, JobKind.RELEASE)

    @property
    def owner(self) -> str | None:
        """Whose it is what it is about; None: nobody's in particular."""
        if self.entry is not None:
            return self.entry.owner
        return self.options.get("owner") if self.kind is JobKind.INIT else "root"

    @property
    def shown_to(self) -> str:
        """The name of the user to whom it shows the versions; empty: it is something else."""
        return str(self.options["who"]) if self.kind is JobKind.BROWSE else ""

    @property
    def begins_again(self) -> bool:
        """Whether it is something that is done again by itself: it has an entry."""
        return self.kind is JobKind.BACKUP or self.enrolled

    @property
    def doomed(self) -> bool:
        """Whether its worker was killed and only has to be gone."""
        return self.pulled or self.mistaken or bool(self.broke_off)

    @property
    def has_changed(self) -> bool:
        """Whether it is a change of passphrases that is finished, whatever happens now."""
        if self.kind is not JobKind.PASSPHRASE or not self.header:
            return False
        return stored_header(self.name) not in (0, self.header)

    @property
    def remains(self) -> str:
        """What there is when its worker is gone before it was finished; ends a sentence."""
        match self.kind:
            case JobKind.BACKUP:
                return "the last complete version is whole"
            case JobKind.INIT if self.enrolled:
                return "the drive is enrolled, without a backup yet"
            case JobKind.INIT:
                return "the drive was not enrolled"
            case JobKind.PASSPHRASE if self.has_changed:
                return "what was begun is finished at the next plug"
            case JobKind.RESIZE:
                return "what was begun is finished or undone when the drive is opened next"
            case JobKind.REPAIR:
                return "the stored header is whole, and what was on the drive is kept beside it"
            case JobKind.ADOPT:
                return "the stored header is whole, the old one or the new"
            case JobKind.RESTORE:
                return "the versions are whole, and no file has its name before it is complete"
            case _:
                return "nothing was changed"

    def start(self, ledger: LedgerEntry | None, *, forgotten: bool = False) -> protocol.Start:
        """What its worker is told; *ledger*: what is remembered of its drive, if all of it is
        remembered and nothing was *forgotten*.
        """
        return protocol.Start(
            self.kind, self.name, self.device, self.entry_text, ledger, self.options, forgotten
        )

    def open_enrolment(self, purposes: Iterable[str]) -> None:
        """Make the pipes for what is handed over, or in some cases handed out."""
        for purpose in purposes:
            if purpose == "files":
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                self.enrolment[purpose], self.writers[purpose] = ours.detach(), theirs.detach()
                continue
            reading, writing = os.pipe2(os.O_CLOEXEC)
            if purpose in ("recovery-key", "header", "settings"):
                reading, writing = writing, reading
            self.enrolment[purpose], self.writers[purpose] = reading, writing

    def close_enrolment(self) -> None:
        """Close the pipes that no key was asked from."""
        for ends in (self.enrolment, self.writers):
            for fd in ends.values():
                os.close(fd)
            ends.clear()
        mount, self.mount = self.mount, None
        if mount is not None and not mount.cancel():
            os.close(mount.result())


def stored_header(name: str) -> int:
    """Which file is the stored header of *name*: another one after each change; 0: none."""
    try:
        return os.stat(paths.HEADERS / name).st_ino
    except OSError:
        return 0


_WORK = {
    JobKind.SURVEY: "while it was looked at",
    JobKind.INIT: "in the middle of its enrolment",
    JobKind.BACKUP: "in the middle of the backup",
    JobKind.PASSPHRASE: "while what opens it was changed",
    JobKind.RESIZE: "while the length of its container was changed",
    JobKind.ADOPT: "while its header was taken over",
    JobKind.REPAIR: "while its header was repaired",
    JobKind.VERIFY: "while it was read back",
    JobKind.RESTORE: "in the middle of the restore",
    JobKind.RECOVER: "while its settings were read",
    JobKind.LOOK: "while it was looked at",
    JobKind.BROWSE: "while its versions were open for browsing",
    JobKind.RELEASE: "while it was made ready for that",
}


def pulled_result(job: Job) -> RunResult:
    """How *job* ends whose drive has left in the middle."""
    work = "in the middle of its first backup" if job.enrolled else _WORK[job.kind]
    begun = job.kind in (JobKind.BACKUP, JobKind.RESIZE) or job.enrolled or job.has_changed
    return RunResult(
        Outcome.FAILED,
        f"The drive was pulled out {work}; {job.remains}.",
        hint="Plug the drive in again." if begun else "Plug the drive in, and try again.",
        error="DriveAbsent",
    )


def absent_result() -> RunResult:
    """How a job ends whose drive has left before anything was begun."""
    return RunResult(
        Outcome.FAILED,
        "The drive was pulled out before its turn came; nothing was touched.",
        hint="Plug the drive in again.",
        error="DriveAbsent",
        touched=False,
    )


def death_result(job: Job, status: int) -> RunResult:
    """How *job* ends whose worker was gone before it was finished.

    *status* is the stub's exit status; it tells a signal as 256 less its number.
    """
    if job.broke_off:
        how = f"said something that is not understood ({job.broke_off})"
    elif status < 0 or status > 192:
        number = -status if status < 0 else 256 - status
        try:
            how = f"was killed by {signal.Signals(number).name}"
        except ValueError:
            how = f"ended with status {status}"
    else:
        how = f"ended with status {status}"
    return RunResult(
        Outcome.FAILED,
        f"The worker {how} while {job.phase.value.replace('-', ' ')}; {job.remains}.",
        hint="`journalctl -u cryptbackd` may tell why.",
    )


def mistake_result(job: Job) -> RunResult:
    """How *job* ends with which we made a mistake."""
    return RunResult(
        Outcome.FAILED,
        f"cryptbackd made a mistake while {job.phase.value.replace('-', ' ')}; {job.remains}.",
        "The journal has the details; please report it.",
        error="CryptbackError",
    )


def cancelled_result(sentence: str) -> RunResult:
    """How a job ends that was stopped before its turn came."""
    return RunResult(Outcome.CANCELLED, sentence, error="Cancelled", touched=False)
