"""A job of the daemon: what is asked of a worker, and what is known of it until it is over."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import time
from typing import Any

import attrs

from ..config import Entry
from ..model import Device, JobKind, Outcome, Phase, Progress, RunResult, StopReason
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
    """The read ends of an init's pipes by the purpose of the key; owned."""
    writers: dict[str, int] = attrs.field(factory=dict)
    """Their write ends, until they are given away; owned."""
    worker: WorkerProcess | None = None
    chain: Chain | None = None
    asking: asyncio.Task[None] | None = None
    phase: Phase = Phase.STARTING
    progress: Progress | None = None
    warnings: list[str] = attrs.field(factory=list)
    stop: StopReason | None = None
    pulled: bool = False
    broke_off: str = ""
    """What it said that was no message, if it was killed for that."""
    answering: bool = True
    finished: RunResult | None = None
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
        return self.kind in (JobKind.INIT, JobKind.BACKUP)

    @property
    def doomed(self) -> bool:
        """Whether its worker was killed and only has to be gone."""
        return self.pulled or bool(self.broke_off)

    def close_enrolment(self) -> None:
        """Close the pipes that no key was asked from."""
        for ends in (self.enrolment, self.writers):
            for fd in ends.values():
                os.close(fd)
            ends.clear()


def pulled_result(queued: bool) -> RunResult:
    """How a job ends whose drive has left."""
    return RunResult(
        Outcome.FAILED,
        "The drive was pulled out before its turn came; nothing was touched."
        if queued
        else "The drive was pulled out in the middle of the backup; the last complete version is"
        " whole.",
        hint="Plug the drive in again.",
        error="DriveAbsent",
    )


def death_result(status: int, phase: Phase, broke_off: str) -> RunResult:
    """How a job ends whose worker was gone before it was finished.

    *status* is the stub's exit status; it tells a signal as 256 less its number.
    """
    if broke_off:
        how = f"said something that is not understood ({broke_off})"
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
        f"The worker {how} while {phase.value.replace('-', ' ')}; the last complete version is"
        " whole.",
        hint="`journalctl -u cryptbackd` may tell why.",
    )


def cancelled_result(sentence: str) -> RunResult:
    """How a job ends that was stopped before its turn came."""
    return RunResult(Outcome.CANCELLED, sentence, error="Cancelled", safe=True)
