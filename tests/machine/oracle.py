"""Looks, from outside of the program under test, for what a test left behind in a machine."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.machine.machine import Machine

SCRIPT = (Path(__file__).parent / "guest" / "leftovers.py").read_bytes()
PATIENCE = 5.0
"""Seconds within which what is left must have gone."""


class Leftovers(AssertionError):
    """A test left something behind, or the journal has complaints that it didn't expect."""


@dataclass(frozen=True)
class Found:
    """What is left and what the journal complains about, without what a test expects."""

    left: list[str]
    complaints: list[str]
    locked: float
    """Since when nothing was open any more, processes not counted (Unix time in the machine)."""


def check(vm: Machine, patience: float = PATIENCE) -> float:
    """Raise `Leftovers` if there are any that the test didn't expect; else `Found.locked`."""
    found = look(vm, patience)
    if found.left or found.complaints:
        raise Leftovers(
            "\n".join(
                [
                    "left behind in the machine:",
                    *found.left,
                    "complaints in its journal:",
                    *found.complaints,
                ]
            )
        )
    return found.locked


def look(vm: Machine, patience: float = 0) -> Found:
    """What is left right now, or still left after so many seconds."""
    # From standard input, not a file: nothing of this is to stay in the machine.
    command = ["python3", "-I", "-", vm.cursor, str(patience)]
    found = json.loads(vm.run(command, input=SCRIPT).out)
    left = _unexpected(found["left"], vm.expected_leftovers)
    return Found(left, _unexpected(found["complaints"], vm.expected_journal), found["locked"])


def _unexpected(lines: list[str], expected: list[str]) -> list[str]:
    return [line for line in lines if not any(re.search(pattern, line) for pattern in expected)]
