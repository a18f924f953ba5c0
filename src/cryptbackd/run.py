"""The one place that starts a process.

Every program runs by argument list and absolute path, with a fixed environment, no shell,
nothing on its standard input but what is given, and a deadline.  Nothing secret is ever an
argument or in the environment: a key is a descriptor that becomes standard input, unread.

A :class:`Child` ends before its ``with`` block does, whatever happens inside.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, NamedTuple

from .errors import ToolFailed
from .text import printable

ENVIRONMENT: Mapping[str, str] = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "HOME": "/nonexistent",
}

Interrupt = tuple[int, Callable[[], None]]
"""A descriptor to watch while a program runs, and what to call when it can be read."""

Tick = tuple[float, Callable[[], None]]
"""A number of seconds, and what to call when nothing was heard for so long."""

Stdin = int | bytes | None
"""A descriptor, the bytes to feed, or nothing (``/dev/null``)."""


_WHERE_TO_LOOK = "dmesg(1) may have more information"
"""In the last line of mount(8), which doesn't say what is wrong."""


class Ended(NamedTuple):
    """How a program ended.  ``status`` is its exit status, or minus the signal's number."""

    argv: tuple[str, ...]
    status: int
    out: bytes
    err: bytes

    @property
    def complaint(self) -> str:
        """The last line of its standard error, harmless to print; or what killed it."""
        if self.status < 0:
            return death(self.status)
        lines = self.err.decode("utf-8", "surrogateescape").splitlines()
        lines = [line.strip() for line in lines if line.strip() and _WHERE_TO_LOOK not in line]
        return printable(lines[-1]) if lines else f"it ended with status {self.status}"


def death(status: int) -> str:
    """How a program ended that a signal killed: *status* is minus the signal's number."""
    try:
        return f"it was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"it was killed by signal {-status}"


def spawn(
    argv: Sequence[str],
    *,
    stdin: int | None = None,
    stdout: int | None = subprocess.PIPE,
    stderr: int | None = subprocess.PIPE,
    pass_fds: Sequence[int] = (),
    environment: Mapping[str, str] | None = None,
    confine: Callable[[], None] | None = None,
) -> subprocess.Popen[bytes]:
    """Start ``argv[0]`` (an absolute path) and return at once.

    *environment* is another one than the fixed one, for what belongs to a user's session.
    *confine* is called in the new process before the program is; there may be no thread then.

    Raises ToolFailed when the program is not installed, or could not be confined or started:
    fork(2) may fail, too.
    """
    if not argv[0].startswith("/"):
        raise ValueError(f"not an absolute path: {argv[0]}")
    try:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=stdout,
            stderr=stderr,
            env=dict(ENVIRONMENT if environment is None else environment),
            cwd="/",
            pass_fds=pass_fds,
            preexec_fn=confine,  # noqa: PLW1509
        )
    except subprocess.SubprocessError as exc:
        raise ToolFailed(f"{argv[0]} could not be confined, and was not started.") from exc
    except FileNotFoundError as exc:
        raise ToolFailed(
            f"The program {argv[0]} is not installed.",
            "Install the Debian package that holds it (see the dependencies of cryptbackd).",
        ) from exc
    except OSError as exc:
        raise not_started(argv[0], exc) from exc


def not_started(what: str, exc: OSError) -> ToolFailed:
    """The error of a program that the computer has no room for, or that it doesn't let us run."""
    return ToolFailed(
        f"{what} could not be started: {exc.strerror}.",
        "Try it again when less is going on on this computer.",
    )


def run(
    argv: Sequence[str],
    *,
    stdin: Stdin = None,
    stdout: int | None = None,
    pass_fds: Sequence[int] = (),
    environment: Mapping[str, str] | None = None,
    deadline: float = 60.0,
    ok: Sequence[int] | None = (0,),
    interrupt: Interrupt | None = None,
    tick: Tick | None = None,
) -> Ended:
    """Run a program to its end and return what it said.

    *stdout* is a descriptor that its standard output goes to instead, unread by us.
    *environment* is as for :func:`spawn`.  *deadline* is in seconds.  *interrupt* is
    a descriptor to watch meanwhile and what to call when it can be read, and *tick* is a number
    of seconds and what to call when nothing was heard for so long; what these raise ends the
    program.  Raises ToolFailed when the status is not among *ok* (None: any will
    do), or the deadline passes.
    """
    out: list[bytes] = []
    err: list[bytes] = []
    started = child(
        argv,
        stdin=stdin,
        stdout=subprocess.PIPE if stdout is None else stdout,
        pass_fds=pass_fds,
        environment=environment,
    )
    with started as running:
        for stream, chunk in running.read(deadline, interrupt, tick):
            (out if stream == "out" else err).append(chunk)
        status = running.wait()
    ended = Ended(tuple(argv), status, b"".join(out), b"".join(err))
    if ok is not None and status not in ok:
        raise ToolFailed(f"{argv[0]} failed: {ended.complaint}")
    return ended


class Child:
    """A running program whose output is read as it comes."""

    def __init__(self, process: subprocess.Popen[bytes], feed: bytes) -> None:
        self._process = process
        self._feed = feed
        self.pid = process.pid

    def read(
        self,
        deadline: float | None = None,
        interrupt: Interrupt | None = None,
        tick: Tick | None = None,
    ) -> Iterator[tuple[str, bytes]]:
        """Yield ``("out"|"err", bytes)`` until both streams are closed.  What was left unread can
        be read by another call.

        *tick* is a number of seconds and what to call when nothing came for so long.
        Raises ToolFailed when *deadline* (seconds from now) passes.
        """
        end = None if deadline is None else time.monotonic() + deadline
        process = self._process
        with selectors.DefaultSelector() as selector:
            for name, stream in (("out", process.stdout), ("err", process.stderr)):
                if stream is not None:
                    selector.register(stream, selectors.EVENT_READ, name)
            if interrupt is not None:
                selector.register(interrupt[0], selectors.EVENT_READ, "interrupt")
            if process.stdin is not None and not process.stdin.closed:
                selector.register(process.stdin, selectors.EVENT_WRITE, "in")
            while any(key.data in ("out", "err") for key in selector.get_map().values()):
                wait = None if end is None else max(0.0, end - time.monotonic())
                if tick is not None:
                    wait = tick[0] if wait is None else min(wait, tick[0])
                ready = selector.select(wait)
                if not ready:
                    if end is not None and time.monotonic() >= end:
                        raise ToolFailed(
                            f"{process.args[0]!s} did not end within {deadline:.0f} seconds."  # type: ignore[index]
                        )
                    if tick is not None:
                        tick[1]()
                for key, _events in ready:
                    if key.data == "interrupt":
                        assert interrupt is not None
                        interrupt[1]()
                    elif key.data == "in":
                        self._write(selector)
                    else:
                        chunk = os.read(key.fd, 65_536)
                        if chunk:
                            yield key.data, chunk
                        else:
                            selector.unregister(key.fileobj)

    def _write(self, selector: selectors.BaseSelector) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        try:
            self._feed = self._feed[os.write(stdin.fileno(), self._feed[:65_536]) :]
        except BrokenPipeError:
            self._feed = b""
        if not self._feed:
            selector.unregister(stdin)
            stdin.close()

    def wait(self) -> int:
        """The exit status (minus the signal's number when one killed it)."""
        return self._process.wait()

    def terminate(self, patience: float) -> None:
        """SIGTERM, and SIGKILL when that had no effect within *patience* seconds."""
        self._process.terminate()
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()


@contextmanager
def child(
    argv: Sequence[str],
    *,
    stdin: Stdin = None,
    stdout: int = subprocess.PIPE,
    pass_fds: Sequence[int] = (),
    environment: Mapping[str, str] | None = None,
    confine: Callable[[], None] | None = None,
) -> Iterator[Child]:
    """A program that runs while the block does; still running at its end, it is killed.

    *environment* and *confine* are as for :func:`spawn`.
    """
    feed = stdin if isinstance(stdin, bytes) else b""
    process = spawn(
        argv,
        stdin=subprocess.PIPE if isinstance(stdin, bytes) else stdin,
        stdout=stdout,
        pass_fds=pass_fds,
        environment=environment,
        confine=confine,
    )
    try:
        yield Child(process, feed)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
        streams: tuple[IO[bytes] | None, ...] = (process.stdin, process.stdout, process.stderr)
        for stream in streams:
            if stream is not None:
                stream.close()
