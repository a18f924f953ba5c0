"""What the agent says: to the journal of its user, by way of standard error."""

from __future__ import annotations

import os
import sys
from enum import IntEnum

from ..text import printable


class Priority(IntEnum):
    """The levels of syslog(3) that are used here."""

    WARNING = 4
    INFO = 6


def say(text: str, priority: int = Priority.INFO) -> None:
    """One line; in front of it the level, as sd-daemon(3) has it, where nobody reads along."""
    level = "" if os.isatty(2) else f"<{int(priority)}>"
    print(f"{level}{printable(text, 1000)}", file=sys.stderr, flush=True)
