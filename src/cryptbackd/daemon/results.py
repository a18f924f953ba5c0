"""How the last jobs ended, for whom a signal does not tell all of it.

What is kept here lives as long as the daemon.
"""

from __future__ import annotations

import attrs

from ..model import RunResult
from .jobs import Job

_MOST = 16


@attrs.define
class Results:
    """The last ones, by the ids of their jobs."""

    _last: dict[str, tuple[Job, RunResult]] = attrs.field(factory=dict)

    def add(self, job: Job, result: RunResult) -> None:
        """Keep one; the oldest may go."""
        self._last[job.id] = job, result
        if len(self._last) > _MOST:
            del self._last[next(iter(self._last))]

    def of(self, run: str) -> tuple[Job, RunResult] | None:
        """The job with that id, and how it ended; None where none is kept."""
        return self._last.get(run)
