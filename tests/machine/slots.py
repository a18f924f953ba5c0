"""No more tests at once than the computer has processors, whoever runs them.

Emulated machines that share a processor make each other's deadlines pass.  A test holds one of
the slots, a locked file in the cache directory, from before its first machine to its end.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator

from tests.machine import cache


@contextlib.contextmanager
def slot() -> Iterator[None]:
    """Hold a slot; waits until there is one.  It goes with the process, however that ends."""
    number = max(2, os.cpu_count() or 1)
    with contextlib.ExitStack() as stack:
        paths = [cache.directory() / f".slot-{n}.lock" for n in range(number)]
        files = [stack.enter_context(open(path, "w")) for path in paths]
        for file in files:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
        else:
            fcntl.flock(files[os.getpid() % number], fcntl.LOCK_EX)
        yield
