"""What may be asked of a verification, and what is known of the last one.  Pure but for history."""

from __future__ import annotations

from typing import Any

from .. import moment
from ..errors import Refused
from ..text import printable
from .history import History

_TYPES: dict[str, type] = {"full": bool, "sample": float, "at": str}


def check(options: dict[str, Any]) -> None:
    """Raise Refused for options of a verification that make no sense (``jobs.verify``)."""
    for key, value in options.items():
        if key not in _TYPES or type(value) is not _TYPES[key]:
            raise Refused(f"A verification has no such option: {printable(key, 40)}.")
    moment.want_short(options.get("at", ""))
    if "sample" in options and not 0 < options["sample"] <= 1:
        raise Refused("A sample is more than 0% and at most 100%.")
    if options.get("full") and ("sample" in options or "at" in options):
        raise Refused("A full verification reads all files of all versions.")


def last(history: History, name: str) -> dict[str, Any]:
    """The last verification of the drive *name*, as fields of a ``DriveView``."""
    run = history.last_verification(name)
    if run is None:
        return {}
    return {
        "last_verified": run.finished,
        "last_verified_outcome": run.outcome.value if run.outcome is not None else "",
        "last_verified_sentence": run.sentence,
    }
