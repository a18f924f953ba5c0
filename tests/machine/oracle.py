"""Looks, from outside of the program under test, for what a test left behind in a machine."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.machine.machine import Machine

SCRIPT = (Path(__file__).parent / "guest" / "leftovers.py").read_bytes()
PATIENCE = 5.0
"""Seconds within which what is left must have gone."""


class Leftovers(AssertionError):
    """A test left something behind, or the journal has complaints that it didn't expect."""


def check(vm: Machine, patience: float = PATIENCE) -> None:
    """Raise `Leftovers` if there are any that the test didn't expect."""
    deadline = time.monotonic() + patience
    while True:
        left, complaints = look(vm)
        if not left or time.monotonic() > deadline:
            break
        time.sleep(0.3)
    if left or complaints:
        raise Leftovers(
            "\n".join(
                ["left behind in the machine:", *left, "complaints in its journal:", *complaints]
            )
        )


def look(vm: Machine) -> tuple[list[str], list[str]]:
    """What is left right now, and the complaints since the resume; without what is expected."""
    # From standard input, not a file: nothing of this is to stay in the machine.
    found = json.loads(vm.run(["python3", "-I", "-", vm.cursor], input=SCRIPT).out)
    return _unexpected(found["left"], vm.expected_leftovers), _unexpected(
        found["complaints"], vm.expected_journal
    )


def _unexpected(lines: list[str], expected: list[str]) -> list[str]:
    return [line for line in lines if not any(re.search(pattern, line) for pattern in expected)]
