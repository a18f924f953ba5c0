"""Whether a run may be quick: what has to be so, that the drive holds what is remembered.

In any doubt a run is a full comparison.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from ...model import LedgerEntry
from ..versions.record import Version

KIND = "comparison"
"""The field of a version's record with the kind of its run."""
QUICK, FULL = "quick", "full"
WHY = "why_full"
"""The field with why it was a full one, as the end of a sentence."""
SINCE = "since_full"
"""The field with how many quick runs there were, this one included, since the last full one."""

DOUBTS = "doubts"
"""The field with those of its warnings after which it was not certain what the drive holds."""


@attrs.frozen
class Circumstances:
    """What a run finds."""

    ledger: LedgerEntry | None
    last: Version | None
    """The newest version on the drive."""
    entry: str
    sources: Mapping[str, str]
    lists: Mapping[str, list[str]]
    skipped: tuple[str, ...]
    untouched: bool
    """Whether the target is as the last version is."""
    programs: Mapping[str, str]
    every: int
    """Every so many runs one is full; 0: none is for that reason."""
    asked_full: bool
    accept: bool


def why_full(found: Circumstances) -> str:
    """Why the run has to be a full comparison, as the end of a sentence; "" when it needn't."""
    last = found.last
    if found.asked_full:
        return "it was asked for"
    if last is None or found.ledger is None:
        return "nothing is remembered of this drive yet"
    if last.ledger != found.ledger:
        return "the drive's newest version is not the one that this computer remembers"
    if not found.untouched:
        return "the last run was interrupted, or something else has written to the drive"
    return _by_record(found, last.record)


def _by_record(found: Circumstances, record: Mapping[str, Any]) -> str:
    if found.accept:
        return "changes were to be accepted"
    if record.get("entry") != found.entry:
        return "the entry was changed"
    if (record.get("sources"), record.get("lists")) != (dict(found.sources), dict(found.lists)):
        return "the sources are not what they were"
    if sorted(record.get("skipped_mounts") or ()) != sorted(found.skipped):
        return "other filesystems are mounted below the sources than before"
    if record.get("warnings") and record.get(DOUBTS, True):
        return "the last run had warnings, by which it is not certain what the drive holds"
    if _program(record) != _program({"programs": found.programs}):
        return "another version of cryptbackd or rsync made the last version"
    since = record.get(SINCE)
    if not isinstance(since, int) or since < 0:
        return "it is not known when there was one last"
    if found.every and since + 1 >= found.every:
        return f"one in {found.every} runs is" if found.every > 1 else "every run is"
    return ""


def _program(record: Mapping[str, Any]) -> tuple[object, object]:
    programs = record.get("programs")
    if not isinstance(programs, dict):
        return None, None
    return programs.get("cryptbackd"), programs.get("rsync")
