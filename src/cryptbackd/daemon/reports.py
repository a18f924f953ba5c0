"""What the journal says of a run, in sentences for people.  Pure: lines from facts."""

from __future__ import annotations

import attrs

from ..model import JobKind, Outcome, RunResult
from ..text import clock, count, size
from .journal import Priority

_EXPECTED = frozenset(
    {"Busy", "Cancelled", "ConfigError", "DriveAbsent", "DriveFull", "Refused", "WrongPassphrase"}
)
"""Errors that say nothing bad of program or drive: a warning, not an error, in the journal."""
_SHOWN_WARNINGS = 3
_WHAT = {
    JobKind.INIT: "enrolment",
    JobKind.PASSPHRASE: "change of what opens it",
    JobKind.RESIZE: "change of its length",
    JobKind.ADOPT: "adoption of its header",
    JobKind.REPAIR: "repair of its header",
    JobKind.VERIFY: "verification",
    JobKind.BROWSE: "browsing",
    JobKind.RESTORE: "restore",
}


@attrs.frozen
class Line:
    """One entry of the journal."""

    text: str
    priority: Priority = Priority.INFO
    message: str = ""
    outcome: Outcome | None = None


def begun(name: str, kind: JobKind, node: str, label: str) -> Line:
    """The first line of a run."""
    what = _WHAT.get(kind, "backup")
    return Line(
        f"{name}: {what} begun on {node}{f' ({label})' if label else ''}.", message="run_begun"
    )


def summary(result: RunResult, seconds: float) -> str:
    """``412 files, 2.1 GiB; 3 files changed (1.2 MiB) in 0:42``."""
    return (
        f"{count(result.files, 'file')}, {size(result.size)};"
        f" {count(result.changed_files, 'file')} changed ({size(result.changed_bytes)})"
        f" in {clock(seconds)}"
    )


def ended(
    name: str,
    result: RunResult,
    *,
    seconds: float,
    interrupted: bool,
    present: bool,
    stuck: tuple[str, ...] = (),
    asleep: bool = False,
) -> list[Line]:
    """The last lines of a run; the very last has its outcome.

    *asleep*: it was interrupted for the computer's sleep, and not by the end of the service.
    *present*: the drive is still here.  With something *stuck* (not locked) no line has an
    outcome: it is not over.
    """
    lines = [Line(f"{name}: {sentence}", Priority.ERROR, "not_answering") for sentence in stuck]
    if result.powered_off and result.safe:
        lines.append(Line(f"{name} is powered off. You may unplug it now.", message="may_unplug"))
    elif result.safe:
        lines.append(Line(f"You may unplug {name} now.", message="may_unplug"))
    elif present and not stuck and result.touched:
        lines.append(Line(f"It was not proven that {name} may be unplugged.", Priority.WARNING))
    outcome = None if stuck else result.outcome
    lines.append(attrs.evolve(_last(name, result, seconds, interrupted, asleep), outcome=outcome))
    return lines


def _last(name: str, result: RunResult, seconds: float, interrupted: bool, asleep: bool) -> Line:
    told = f"{result.sentence} {result.hint}".strip()
    numbers = f"{summary(result, seconds)}." if result.version else told
    match result.outcome:
        case Outcome.DONE:
            return Line(f"{name}: finished: {numbers}", message="run_done")
        case Outcome.WARNINGS:
            shown = " ".join(result.warnings[:_SHOWN_WARNINGS])
            more = len(result.warnings) - _SHOWN_WARNINGS
            rest = f" ({more} more)" if more > 0 else ""
            return Line(
                f"{name}: finished with {count(len(result.warnings), 'warning')}: {numbers}"
                f" {shown}{rest}",
                Priority.WARNING,
                "run_warnings",
            )
        case Outcome.SKIPPED:
            return Line(f"{name}: skipped: {told}")
        case Outcome.CANCELLED if interrupted and asleep:
            return Line(
                f"{name}: interrupted, because the computer goes to sleep or shuts down; it begins"
                " again when it is back.",
                message="run_interrupted",
            )
        case Outcome.CANCELLED if interrupted:
            return Line(
                f"{name}: interrupted, because the service stops; it begins again with it.",
                message="run_interrupted",
            )
        case Outcome.CANCELLED:
            return Line(f"{name}: cancelled: {told}", message="run_cancelled")
        case Outcome.FAILED:
            if result.error == "Damaged":
                return Line(f"{name}: damaged: {told}", Priority.ERROR, "damaged")
            expected = result.error in _EXPECTED
            return Line(
                f"{name}: failed: {told}",
                Priority.WARNING if expected else Priority.ERROR,
                "run_interrupted" if interrupted else "run_failed",
            )
