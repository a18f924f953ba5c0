"""Warnings of a run, of which there may be one for every file that there is.

:class:`Warnings` live as long as their job.  They go into the version's record, the history and
messages on the bus, whole: so there are only as many of them as fit there.
"""

from __future__ import annotations

import json

MANY = 64 << 10
"""Bytes, as JSON, up to which sentences are kept of which there may be very many."""
MOST = 96 << 10
"""Bytes, as JSON, up to which any is: less than a packet of ``protocol`` has beside the rest."""


class Warnings(list[str]):
    """Those that are kept; ``more`` is how many were only counted."""

    def __init__(self) -> None:
        super().__init__()
        self.more = 0
        self._taken = 0

    def add(self, text: str, *, many: bool = False) -> None:
        """Keep *text* where there is room, else count it.

        *many*: it is one of very many, perhaps, which leave room for those of another kind.
        """
        taken = self._taken + len(json.dumps(text)) + len(", ")
        if taken > (MANY if many else MOST):
            self.more += 1
            return
        self._taken = taken
        self.append(text)

    @property
    def number(self) -> int:
        """How many there were."""
        return len(self) + self.more

    @property
    def told(self) -> list[str]:
        """What a person is told: the last line says how many are missing, if any."""
        return [*self, f"… and {self.more:,} more."] if self.more else list(self)
