"""No more tests at once than the computer has processors, whoever runs them.

Emulated machines that share a processor make each other's deadlines pass.  A test holds one of
the slots, a locked file in the cache directory, from before its first machine to its end.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from typing import IO

from tests.machine import cache


@contextlib.contextmanager
def slot(*, alone: bool = False) -> Iterator[None]:
    """Hold a slot; waits until there is one.  It goes with the process, however that ends.

    *alone*: hold all of them, for what measures how long something takes.
    """
    number = max(2, os.cpu_count() or 1)
    with contextlib.ExitStack() as stack:
        paths = [cache.directory() / f".slot-{n}.lock" for n in range(number)]
        files = [stack.enter_context(open(path, "w")) for path in paths]
        if alone:
            for file in files:
                fcntl.flock(file, fcntl.LOCK_EX)
        else:
            _take_one(files)
        yield
    # Whoever waits is woken, and must be there before this one comes again.
    time.sleep(0.05)


def _take_one(files: Sequence[IO[str]]) -> None:
    for file in files:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
    fcntl.flock(files[os.getpid() % len(files)], fcntl.LOCK_EX)
