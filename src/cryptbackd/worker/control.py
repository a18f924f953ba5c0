"""The worker's side of the conversation with the daemon.

A :class:`Control` lives as long as its socket.  ``check`` (called between steps and while
programs run) is the only way in which a job ends early: it raises Cancelled once the
daemon asked for a stop.  Undoing never calls it.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable

from .. import protocol
from ..errors import Cancelled, CryptbackError, WrongPassphrase
from ..model import Outcome, Phase, Progress, RunResult, StopReason
from ..run import Interrupt
from ..text import printable
from ..warned import Warnings

PROGRESS_EVERY = 0.25
"""Seconds between two progress messages."""

_LONGEST = 100 * 366 * 86_400
"""Seconds beyond which no time that is left is told: next to nothing is getting on."""
_MOST = 10**18
"""Bytes, and bytes a second, beyond which no more are told: files with holes come to any number."""

_STOPPED = {
    StopReason.CANCEL: "It was cancelled.",
    StopReason.EJECT: "It was stopped because the drive was to be ejected.",
    StopReason.SERVICE_STOP: "It was interrupted because the service was stopped.",
    StopReason.SLEEP: "It was interrupted because the computer goes to sleep or shuts down.",
}


def _nothing() -> None:
    """For what concerns nobody."""


class Control:
    """What a job says, asks and is told."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._stop: StopReason | None = None
        self._end_of_phase: Callable[[], None] = _nothing
        self._spoke = 0.0
        self.warnings = Warnings()
        self.doubts = Warnings()
        """Those of the warnings after which it is not certain what the drive holds."""
        self.safe = False
        """Set by ``release`` once every condition of "you may unplug" is proven."""
        self.once_safe: Callable[[], None] = _nothing
        """Called by ``release`` then."""

    def start(self) -> protocol.Start:
        """The first message: what to do."""
        message, fd = self._receive()
        if fd is not None or not isinstance(message, protocol.Start):
            raise protocol.ProtocolError("the first message is not a start")
        return message

    def phase(self, phase: Phase) -> None:
        """The job enters *phase*."""
        self._end_of_phase()
        self._end_of_phase = _nothing
        self._spoke = 0.0
        self._send(protocol.PhaseChanged(phase))

    def on_phase_end(self, call: Callable[[], None]) -> None:
        """Have *call* called when the job enters its next phase, or finishes."""
        self._end_of_phase = call

    def progress(self, progress: Progress) -> None:
        """How far it is; said at most every ``PROGRESS_EVERY`` seconds."""
        now = time.monotonic()
        if now - self._spoke >= PROGRESS_EVERY:
            self._spoke = now
            self._send(protocol.Progressed(progress))

    def say(self, text: str, message: str = "", priority: int = 6) -> None:
        """A sentence for the journal."""
        self._send(protocol.Said(text, message, priority))

    def warn(self, text: str, message: str = "", *, doubt: bool = True, many: bool = False) -> None:
        """A sentence that makes the run end with warnings.

        *doubt*: and the next one compare in full, since it is not certain what the drive holds.
        *many*: there may be one for every file or source, and then some are only counted; the
        journal is told of each, and takes what its limit for warnings of a service lets through
        (RateLimitBurst=, journald.conf(5)).
        """
        self.warnings.add(text, many=many)
        if doubt:
            self.doubts.add(text, many=True)
        self._send(protocol.Warned(text, message, many))

    def key(self, purpose: str, refused: str = "") -> tuple[protocol.Key, int]:
        """A key for the volume and its descriptor (-1 with a token), the caller's to close.

        Blocks until a source has one.  Raises WrongPassphrase when none has (any more),
        and Cancelled.
        """
        self._send(protocol.KeyWanted(purpose, refused))
        while True:
            message, fd = self._receive()
            if isinstance(message, protocol.Key):
                if fd is None and message.token < 0:
                    raise WrongPassphrase(
                        message.source, "`cryptback run` tries again without replugging."
                    )
                return message, -1 if fd is None else fd
            self._take(message)
            self.check()

    def check(self) -> None:
        """Raise Cancelled if the daemon asked for a stop."""
        while self._stop is None and select.select([self._sock], [], [], 0)[0]:
            message, fd = self._receive()
            if fd is not None:
                os.close(fd)
            self._take(message)
        if self._stop is not None:
            raise Cancelled(_STOPPED[self._stop])

    @property
    def interrupt(self) -> Interrupt:
        """For ``run``: what to watch while a program runs, and what to do then."""
        return self._sock.fileno(), self.check

    def failed(self, error: CryptbackError) -> RunResult:
        """The result of a job that ended with *error*."""
        return RunResult(
            Outcome.CANCELLED if isinstance(error, Cancelled) else Outcome.FAILED,
            error.sentence,
            error.hint,
            error=type(error).__name__,
            safe=self.safe,
            warnings=self.warnings.told,
        )

    def finish(self, result: RunResult) -> None:
        """The last message."""
        self._end_of_phase()
        self._send(protocol.Finished(result))

    def _take(self, message: protocol.Message) -> None:
        if isinstance(message, protocol.Stop):
            self._stop = message.reason

    def _send(self, message: protocol.Message) -> None:
        try:
            protocol.send(self._sock, message)
        except (BrokenPipeError, ConnectionResetError):
            os._exit(1)

    def _receive(self) -> tuple[protocol.Message, int | None]:
        try:
            received = protocol.receive(self._sock)
        except ConnectionResetError:
            received = None
        if received is None:
            # The daemon is gone.  Nothing that we could still do is better than what the
            # kernel does now: mounts, mapping and loop device go with us.
            os._exit(1)
        return received


class Meter:
    """Turns byte counts into progress with a rate and a time left.

    The rate is an average that forgets with a time constant of some five seconds.
    """

    def __init__(self, control: Control, total: int, done: int = 0) -> None:
        self._control = control
        self._total = min(total, _MOST)
        self._rate = 0.0
        self._done = done
        self._at = time.monotonic()

    def at(self, done: int) -> None:
        """*done* bytes are through."""
        now = time.monotonic()
        passed = now - self._at
        if passed >= 0.5:
            fresh = max(0, done - self._done) / passed
            weight = min(1.0, passed / 5) if self._rate else 1.0
            self._rate = min(self._rate + (fresh - self._rate) * weight, _MOST)
            self._at, self._done = now, done
        # There may be more than was expected.
        through = max(0, min(done, self._total))
        left = (self._total - through) / self._rate if self._rate > 0 else -1.0
        if left > _LONGEST:
            left = -1.0
        self._control.progress(Progress(through, self._total, self._rate, left))


def escaped(path: str | bytes) -> str:
    """A file's name as it may stand in a sentence."""
    return f'"{printable(path)}"'


def cause(error: OSError) -> str:
    """What went wrong, and with which file where that is known."""
    # It is a number where a file was open already.
    name = error.filename if isinstance(error.filename, (str, bytes)) else ""
    where = f" ({escaped(name)})" if name else ""
    return f"{error.strerror or escaped(str(error))}{where}"
