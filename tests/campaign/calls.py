"""The Nth system call of the worker that changes something fails, or kills it: N = 1, 2, 3, …

strace(1) injects that, in the worker's own code alone: a process that executes another program is
let go.  One case is a machine that takes some of these points, one after another, each followed
by a run to which nothing is done.

A point is a call's name and a number, for strace counts the calls of each name, of each process
by itself.  Where several processes of a run come so far, a call of each fails, and the first one
is killed.
"""

from __future__ import annotations

import re
from collections import Counter

from tests.campaign.case import PATIENCE, Case
from tests.vm.failing import Hold

POINTS = 8
"""How many of them a case takes."""

CHANGING = (
    "mount", "umount2", "move_mount", "open_tree", "mount_setattr", "pivot_root", "chroot",
    "unshare", "setns", "ioctl", "openat", "fallocate", "ftruncate", "write", "writev", "pwrite64",
    "copy_file_range", "sendfile", "rename", "renameat", "renameat2", "unlink", "unlinkat", "mkdir",
    "mkdirat", "rmdir", "link", "linkat", "symlink", "symlinkat", "chmod", "fchmod", "fchmodat",
    "chown", "fchown", "lchown", "fchownat", "setxattr", "lsetxattr", "fsetxattr", "utimensat",
    "fsync", "fdatasync", "syncfs", "fork", "vfork", "clone", "clone3",
)  # fmt: skip
# Python asks of each file that it opens whether that is a terminal.
CHANGES_NOTHING = re.compile(r"ioctl\(\d+, TCGETS|openat\((?!.*(O_CREAT|O_TRUNC))")
ENDS = {"fails": "error=EIO", "kills": "signal=KILL"}

SMALL_CHANGE = "date +%N > /home/me/documents/now; date +%N > /home/me/photos/later"
# A run whose worker stands at its first instruction, until strace has it (or not, without "$1").
RUN = """
cryptback run home > /run/told 2>&1 &
run=$!
pid=$(sed 's/.*"pid": \\([0-9]*\\).*/\\1/' /run/hold/told)
if [ "$1" ]; then
    setsid strace -f -p "$pid" --detach-on=execve -qq -o /run/calls -e trace="$1" $2 < /dev/null &
    until grep -q '^TracerPid:.*[1-9]' "/proc/$pid/status"; do sleep 0.01; done
fi
kill -CONT "$pid"
wait $run
code=$?
date +%s.%N
grep -cE '\\(INJECTED\\)|killed by SIGKILL' /run/calls
[ $code = 0 ] || cat /run/told >&2
exit $code
"""
_CALL = re.compile(r"^(\d+) +(\w+)\(")


def calls(case: Case, *, end: str) -> None:
    """The seed says which points."""
    case.errors_injected = end == "fails"
    case.plug()
    case.until_clear()
    enough = 2 * (POINTS + 1)
    hold = Hold(case.vm, "/usr/bin/python3", "cryptbackd.worker --socket", times=enough)
    traced_run(case, "")
    points = changing(case.vm.pull("/run/calls").decode(errors="replace"))
    mine = points[case.verdict.seed * POINTS :][:POINTS]
    case.verdict.phase = f"{len(points)} points: " + ", ".join(f"{name} {n}" for name, n in mine)
    for name, number in mine:
        if not traced_run(case, f"-e inject={name}:{ENDS[end]}:when={number}"):
            case.verdict.faults.append(f"the run never came to {name} {number}")
        case.until_told()
        case.all_locked()
        case.outcome()
        plain_run(case)
    hold.end()
    case.stick.pull()
    case.succeed()


def changing(trace: str) -> list[tuple[str, int]]:
    """What can be hit: each call that changes something, with its number among its like."""
    counts: Counter[tuple[str, str]] = Counter()
    points = set()
    for line in trace.splitlines():
        if found := _CALL.match(line):
            process, name = found.groups()
            counts[process, name] += 1
            if not CHANGES_NOTHING.search(line):
                points.add((name, counts[process, name]))
    return sorted(points)


def traced_run(case: Case, injection: str) -> int:
    """A run whose worker is traced, from its first instruction to its end; how often it was hit."""
    case.vm.run(SMALL_CHANGE)
    case.mark()
    words = ["/bin/sh", "-c", RUN, "sh", ",".join(CHANGING), injection]
    clock, hits = case.vm.run(words, check=False, timeout=PATIENCE).out.split()
    case.hit = float(clock)
    return int(hits)


def plain_run(case: Case) -> None:
    """A run to which nothing is done succeeds."""
    case.vm.run(["/bin/sh", "-c", RUN, "sh", ""], timeout=PATIENCE)
