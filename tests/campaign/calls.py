"""The Nth system call of the worker that changes something fails, or kills it: N = 1, 2, 3, …

strace(1) injects that, in the worker's own code alone: a process that executes another program is
let go.  One case is a machine that takes some of these points, one after another, each followed
by a run to which nothing is done.
"""

from __future__ import annotations

import re
from collections import Counter

from tests.campaign.case import PATIENCE, Case
from tests.vm.failing import Hold

POINTS = 8
"""How many of them a case takes."""

CHANGING = (
    "mount", "umount2", "move_mount", "open_tree", "mount_setattr", "unshare", "ioctl",
    "fallocate", "ftruncate", "write", "pwrite64", "rename", "renameat", "renameat2", "unlink",
    "unlinkat", "mkdir", "mkdirat", "rmdir", "link", "linkat", "symlink", "symlinkat", "chmod",
    "fchmod", "fchmodat", "chown", "fchown", "lchown", "fchownat", "setxattr", "lsetxattr",
    "fsetxattr", "utimensat", "fsync", "fdatasync", "syncfs", "fork", "vfork", "clone", "clone3",
)  # fmt: skip
ENDS = {"fails": "error=EIO", "kills": "signal=KILL"}

SMALL_CHANGE = "date +%N > /home/me/documents/now; date +%N > /home/me/photos/later"
TRACE = """
setsid strace -f -p "$1" --detach-on=execve -qq -o /run/calls -e trace="$2" $3 < /dev/null &
until grep -q '^TracerPid:.*[1-9]' "/proc/$1/status"; do sleep 0.01; done
kill -CONT "$1"
"""
_CALL = re.compile(r"^(\d+) +(\w+)\(")


def calls(case: Case, *, end: str) -> None:
    """The seed says which points."""
    case.errors_injected = end == "fails"
    case.plug()
    case.until_clear()
    points = enumerate_points(case)
    mine = points[case.verdict.seed * POINTS :][:POINTS]
    case.verdict.phase = f"{len(points)} points: " + ", ".join(f"{name} {n}" for name, n in mine)
    for name, number in mine:
        traced_run(case, f"-e inject={name}:{ENDS[end]}:when={number}")
        case.strike()
        case.all_locked()
        case.outcome()
        plain_run(case)
    case.stick.pull()
    case.succeed()


def enumerate_points(case: Case) -> list[tuple[str, int]]:
    """What can be hit: each call of the worker in a whole run, with its number among its like."""
    traced_run(case, "")
    by_process: dict[str, Counter[str]] = {}
    for line in case.vm.pull("/run/calls").decode(errors="replace").splitlines():
        if found := _CALL.match(line):
            by_process.setdefault(found[1], Counter())[found[2]] += 1
    # The worker is who makes most of them; the stub above it mounts and forks but once.
    counts = max(by_process.values(), key=Counter.total)
    return [(name, n) for name in sorted(counts) for n in range(1, counts[name] + 1)]


def traced_run(case: Case, injection: str) -> None:
    """A run whose worker is traced, from its first instruction to its end."""
    case.vm.run(SMALL_CHANGE)
    hold = Hold(case.vm, "/usr/bin/python3", "cryptbackd.worker --socket")
    case.begin("cryptback run home")
    stub = hold.wait()
    words = ["/bin/sh", "-c", TRACE, "sh", str(stub.pid), ",".join(CHANGING), injection]
    case.vm.run(words)
    case.until_told()


def plain_run(case: Case) -> None:
    """A run to which nothing is done succeeds."""
    case.vm.run(["cryptback", "run", "home"], timeout=PATIENCE)
