"""What still has to be written while everything is being locked.

``syncfs`` and ``umount`` block and tell nothing.  Meanwhile a thread reads how many bytes
that this service wrote are still in memory (``file_dirty`` and ``file_writeback`` of its
control group, cgroup-v2.rst) and tells the daemon.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..model import Phase, Progress
from .control import PROGRESS_EVERY, Control


@contextmanager
def told(control: Control) -> Iterator[None]:
    """Enter innermost: when the block is left, tell what remains until the process goes on."""
    try:
        yield
    finally:
        control.phase(Phase.LOCKING)
        tell(control)


def tell(control: Control) -> None:
    """Tell what remains until the job enters its next phase; the thread is gone then."""
    statistics = _statistics()
    if statistics is None:
        return
    over = threading.Event()
    thread = threading.Thread(
        target=_tell, args=(control, statistics, over), daemon=True, name="remaining"
    )

    def end() -> None:
        over.set()
        thread.join()

    with suppress(RuntimeError):  # no thread is to be had: then nothing is told
        thread.start()
        control.on_phase_end(end)


def _statistics() -> Path | None:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            path = Path("/sys/fs/cgroup", line[4:], "memory.stat")
            return path if path.exists() else None
    return None


def _unwritten(statistics: Path) -> int:
    fields = dict(line.split() for line in statistics.read_text().splitlines())
    return int(fields.get("file_dirty", 0)) + int(fields.get("file_writeback", 0))


def _tell(control: Control, statistics: Path, over: threading.Event) -> None:
    total = _unwritten(statistics)
    while not over.wait(PROGRESS_EVERY):
        left = _unwritten(statistics)
        total = max(total, left)
        control.progress(Progress(total - left, total))
