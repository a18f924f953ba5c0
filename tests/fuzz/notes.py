"""What was tried, noted run by run; for :mod:`tests.fuzz.report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PLACE = Path(__file__).parents[2] / "build" / "fuzz"
"""One file a kind, a line of JSON a run."""
BUS = "bus"
"""The name under which ``tests/vm/test_bus_fuzz.py`` notes what it has tried."""


def note(line: dict[str, Any]) -> None:
    """Add a run to what was tried."""
    PLACE.mkdir(parents=True, exist_ok=True)
    with (PLACE / f"{line['name']}.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def newest(name: str) -> dict[str, Any] | None:
    """The last run of one kind."""
    try:
        lines = (PLACE / f"{name}.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return None
    found: dict[str, Any] = json.loads(lines[-1])
    return found
