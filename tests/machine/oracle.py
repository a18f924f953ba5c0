"""Looks, from outside of the program under test, for what a test left behind in a machine."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.machine.machine import Machine

SCRIPT = (Path(__file__).parent / "guest" / "leftovers").read_text()
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
    # The script is an argument, not a file: nothing of this is to stay in the machine.
    shown = vm.run(["/bin/sh", "-c", SCRIPT, "sh", vm.cursor, f"{100 * patience:.0f}"]).out
    lines = shown.split("\n")
    entries = [json.loads(line) for line in lines if line.startswith("{")]
    told = [line.partition(":") for line in lines if line and not line.startswith("{")]
    (locked,) = (float(what) for where, _, what in told if where == "locked")
    programs = dict(what.split(" ", 1) for where, _, what in told if where == "program")
    left: dict[str, str] = {}
    for where, _, what in told:
        if line := _left(where, what, programs):
            left.setdefault(line.partition(" (seen by ")[0], line)
    complaints = {entry["__CURSOR"]: _complaint(entry) for entry in entries}
    return Found(
        _unexpected(list(left.values()), vm.expected_leftovers),
        _unexpected(list(complaints.values()), vm.expected_journal),
        locked,
    )


def _left(where: str, what: str, programs: dict[str, str]) -> str:
    """What a line of the script says is left, if it does."""
    match where.split("/"):
        case ["", "sys", "block", _, "dm", "name"]:
            return f"mapping {what}"
        case ["", "sys", "block", loop, "loop", "backing_file"]:
            return f"loop device {loop} on {what}"
        case ["", "proc", pid, "mountinfo"]:
            fields = what.split(" ")
            place, source = fields[4], fields[fields.index("-") + 2]
            return f"mount of {source} on {place} (seen by process {pid}: {programs.get(pid)})"
        case ["cookie"]:
            return f"udev cookie {int(what) & 0xFFFFFFFF:#x}"
        case ["process"]:
            return f"process {what} of cryptbackd.service: {programs.get(what)}"
    return ""


def _complaint(entry: dict[str, Any]) -> str:
    message = entry.get("MESSAGE") or ""
    if isinstance(message, list):  # what is no text, or has several values
        is_bytes = isinstance(message[0], int)
        message = bytes(message).decode(errors="replace") if is_bytes else str(message)
    return f"{entry.get('SYSLOG_IDENTIFIER', '?')}: {message}"


def _unexpected(lines: list[str], expected: list[str]) -> list[str]:
    return [line for line in lines if not any(re.search(pattern, line) for pattern in expected)]
