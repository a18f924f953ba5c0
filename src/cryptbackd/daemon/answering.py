"""Does the disk answer?

A disk that has requests in flight and completes none for a while hangs, and takes every
process that waits for it along, uninterruptibly.  The kernel's counters tell; nothing is sent
to the disk to find out.  Looked at only while a job runs.
"""

from __future__ import annotations

import os

import attrs

INTERVAL = 5.0
"""Seconds between two looks."""
PATIENCE = 10.0
"""So many seconds in which nothing is completed, and the disk is called not answering."""


@attrs.frozen
class Counters:
    """Requests of a disk: under way now, and completed since it came."""

    inflight: int
    completed: int


def read_counters(disk: str) -> Counters | None:
    """The kernel's counters of the disk node *disk*; None when the disk is gone.

    ``/sys/class/block/DISK/{inflight,stat}``, see Documentation/block/stat.rst.
    """
    directory = f"/sys/class/block/{os.path.basename(disk)}"
    try:
        with open(f"{directory}/inflight", encoding="ascii") as file:
            inflight = sum(int(word) for word in file.read().split())
        with open(f"{directory}/stat", encoding="ascii") as file:
            fields = [int(word) for word in file.read().split()]
    except OSError:
        return None
    completed = sum(fields[i] for i in (0, 4, 11, 15) if i < len(fields))
    return Counters(inflight, completed)


@attrs.define
class Watch:
    """Judges one disk by what is seen of it."""

    answering: bool = True
    _completed: int = -1
    _since: float = 0.0

    def look(self, now: float, seen: Counters | None, *, doomed: bool = False) -> bool:
        """Take in what was *seen* at *now* (monotonic seconds); whether it answers.

        *doomed*: its worker was killed and should be gone; as long as it isn't, and the disk
        shows no progress, it hangs in the kernel.
        """
        if seen is None:
            waiting, completed = doomed, self._completed
        else:
            waiting, completed = seen.inflight > 0 or doomed, seen.completed
        if not waiting or completed != self._completed:
            self._since = now
        self._completed = completed
        self.answering = now - self._since < PATIENCE
        return self.answering
