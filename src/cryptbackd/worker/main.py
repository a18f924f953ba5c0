"""The worker's two processes, and how each ends.

What the daemon starts is a *stub*: it leaves the mount and PID namespaces, forks the real
worker, which is process 1 of the new PID namespace, waits for it and ends as it ended.  So
the stub's end means that nothing of the job is alive any more: the kernel reaps a PID
namespace before its first process can be waited for (pid_namespaces(7)).  Both die when
their parent dies.

Mounts propagate from the host into the worker (slave), never back, and vanish with it.

What only a job needs is imported when there is one: until a sweep is through, a volume may
be open.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

from .. import kernel, secret

if TYPE_CHECKING:
    from ..model import RunResult
    from ..protocol import Start
    from .control import Control

_DESCRIPTORS = 1 << 16
"""As many as the files of a container, and the sources that users' lists name, may take: three for
each of the former, one for each of the latter."""
_USAGE = """\
usage: cryptbackd.worker --socket FD      do the job that comes over FD
       cryptbackd.worker --sweep [NAME]   lock what a dead worker (of that entry) left open"""


def main() -> int:
    """Do what the command line says; the exit status tells the daemon nothing more."""
    secret.secretive()
    match sys.argv[1:]:
        case ["--socket", fd]:
            _stub(int(fd))
        case ["--sweep", *names] if len(names) <= 1:
            from .sweep import main as sweep

            return sweep(names[0] if names else None)
    print(_USAGE, file=sys.stderr)
    return 2


def _stub(fd: int) -> NoReturn:
    daemon = os.getppid()
    kernel.die_with_parent(signal.SIGKILL)
    if os.getppid() != daemon:
        os._exit(1)
    kernel.unshare(kernel.CLONE_NEWNS | kernel.CLONE_NEWPID)
    kernel.set_propagation("/", kernel.MS_REC | kernel.MS_SLAVE)
    stub = os.pidfd_open(os.getpid())
    child = os.fork()
    if child == 0:
        kernel.die_with_parent(signal.SIGKILL)
        if _has_ended(stub):
            os._exit(1)
        os.close(stub)
        os._exit(_worker(fd))
    os.close(fd)
    _pid, status = os.waitpid(child, 0)
    # There is nothing to tidy up that would be worth the time.
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _has_ended(pidfd: int) -> bool:
    """Whether the parent ended before we asked to die with it (it is not in our namespace,
    so getppid() can't tell).
    """
    return bool(select.select([pidfd], [], [], 0)[0])


def _worker(fd: int) -> int:
    from .. import protocol
    from .control import Control

    # Process 1 of a namespace ignores every signal that it has no handler for.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    os.umask(0o077)
    _allow_descriptors()
    # Our PID namespace needs a /proc of its own (bubblewrap looks its child up there).  It is
    # read-only: a fresh one that isn't would undo the service's ProtectKernelTunables=.
    safe = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    kernel.mount("proc", "/proc", safe | kernel.MS_RDONLY)
    with socket.socket(fileno=fd) as sock:
        control = Control(sock)
        try:
            start = control.start()
        except protocol.ProtocolError as exc:
            print(f"cryptbackd worker: {exc}", file=sys.stderr)
            return 1
        control.finish(_do(start, control))
    return 0


def _allow_descriptors() -> None:
    """Have more than the usual 1,024: select(2), which can't tell of others, is used for pipes and
    sockets that are there before.

    glibc does it by prlimit(2), which the service may call (@default of SystemCallFilter=).
    """
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(_DESCRIPTORS, hard), hard))


def _job(start: Start) -> Callable[[Start, Control], RunResult]:
    """The job's function, of which alone the code is loaded."""
    from ..model import JobKind

    match start.job:
        case JobKind.BACKUP:
            from .jobs.backup import backup as job
        case JobKind.INIT if start.options.get("adopt"):
            from .jobs.adopt import enrol_again as job
        case JobKind.INIT:
            from .jobs.init import init as job
        case JobKind.RELEASE:
            from .jobs.release import let_go as job
        case JobKind.PASSPHRASE:
            from .jobs.passphrase import passphrase as job
        case JobKind.ADOPT:
            from .jobs.adopt import adopt as job
        case JobKind.REPAIR:
            from .jobs.repair import repair as job
        case JobKind.BROWSE:
            from .jobs.browse import browse as job
        case JobKind.RESIZE:
            from .jobs.resize import resize as job
        case JobKind.RESTORE:
            from .jobs.restore import restore as job
        case JobKind.RECOVER:
            from .jobs.recover import recover as job
        case JobKind.LOOK:
            from .jobs.look import look as job
        case JobKind.VERIFY:
            from .jobs.verify import verify as job
        case JobKind.SURVEY:
            from .jobs.survey import survey as job
    return job


def _do(start: Start, control: Control) -> RunResult:
    from ..errors import CryptbackError, DriveFailed
    from ..model import Outcome, RunResult
    from .control import cause

    try:
        return _job(start)(start, control)
    except CryptbackError as exc:
        return control.failed(exc)
    except OSError as exc:
        # An errno that no layer expected: the drive's fault more often than ours, but the
        # traceback is what a bug report needs.
        _print_traceback()
        return control.failed(
            DriveFailed(
                f"An operation failed unexpectedly: {cause(exc)}.",
                "Try once more. If it fails again, report it, with what the journal has.",
            )
        )
    except Exception as exc:
        _print_traceback()
        return RunResult(
            Outcome.FAILED,
            f"cryptbackd made a mistake: {type(exc).__name__}.",
            "The journal has the details; please report it.",
            error="CryptbackError",
            warnings=control.warnings.told,
        )


def _print_traceback() -> None:
    import traceback

    traceback.print_exc()
