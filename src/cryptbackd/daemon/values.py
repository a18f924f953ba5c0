"""What the daemon knows, as it is told on the bus: drives, runs and results.

Warnings name files, and are for whom the drive is for: whoever else asks, and whoever hears a
signal, is told how many there are (``texts`` is false), and of a sentence what comes before a
file's name.
"""

from __future__ import annotations

import json
import re

from dbus_fast import Variant

from ..model import JobKind, RunResult
from ..text import printable
from .history import Run
from .jobs import Job
from .status import DriveView

_NAMED = re.compile(r"""[ (]*["']/.*""", re.DOTALL)
"""A file's name, as we and our tools quote it, and what follows."""
HISTORY_ROOM = 2 << 20
"""Bytes of warnings in one answer about past runs."""


def drive_values(view: DriveView, *, texts: bool) -> dict[str, Variant]:
    """A drive, as it is told on the bus."""
    progress = view.progress
    return {
        "name": Variant("s", view.name),
        "state": Variant("s", view.state.value),
        "uuid": Variant("s", view.uuid),
        "container": Variant("s", view.container),
        "device": Variant("s", view.device),
        "phase": Variant("s", view.phase.value if view.phase is not None else ""),
        "done": _count(progress.done if progress is not None else 0),
        "total": _count(progress.total if progress is not None else 0),
        "rate": Variant("d", progress.rate if progress is not None else 0.0),
        "left": Variant("d", progress.left if progress is not None else -1.0),
        "run": Variant("s", view.run),
        "job": Variant("s", view.job.value if view.job is not None else ""),
        "last_outcome": Variant("s", view.last_outcome.value if view.last_outcome else ""),
        "last_sentence": Variant("s", _said(view.last_sentence, texts)),
        "last_hint": Variant("s", _said(view.last_hint, texts)),
        "last_finished": Variant("t", int(view.last_finished)),
        "last_success": Variant("t", int(view.last_success)),
        "last_verified": Variant("t", int(view.last_verified)),
        "last_verified_outcome": Variant("s", view.last_verified_outcome),
        "last_verified_sentence": Variant("s", _said(view.last_verified_sentence, texts)),
        **_warnings(view.warnings, texts),
        "safe": Variant("b", view.safe),
        "problem": Variant("s", _text(view.problem)),
        "owner": Variant("s", view.owner),
        "shown_to": Variant("s", view.shown_to),
        "reminded": Variant("t", int(view.reminded)),
    }


def run_values(run: Run, *, texts: bool) -> dict[str, Variant]:
    """A run of the history, as it is told on the bus."""
    return {
        "id": Variant("s", run.id),
        "name": Variant("s", run.entry),
        "job": Variant("s", run.job.value),
        "started": Variant("t", int(run.started)),
        "finished": Variant("t", int(run.finished)),
        "outcome": Variant("s", run.outcome.value if run.outcome is not None else ""),
        **_common_values(run, run.interrupted, run.warnings, texts),
    }


def short_enough(runs: list[Run]) -> list[Run]:
    """Of *runs*, the youngest first, as many as one answer has room for.

    Each may have warned of hundreds of files, and whoever says too much at once is thrown off the
    bus (dbus-daemon(1), ``max_message_size``).
    """
    room = HISTORY_ROOM
    for number, run in enumerate(runs):
        room -= sum(len(warning.encode("utf-8", "surrogateescape")) for warning in run.warnings)
        if room < 0:
            return runs[: max(1, number)]
    return runs


def result_values(job: Job, result: RunResult, *, texts: bool) -> dict[str, Variant]:
    """How a job ended, as it is told on the bus."""
    told = texts and job.kind is JobKind.VERIFY
    return {
        "id": Variant("s", job.id),
        "name": Variant("s", job.name),
        "job": Variant("s", job.kind.value),
        "seconds": Variant("d", job.seconds),
        "outcome": Variant("s", result.outcome.value),
        "data": Variant("s", json.dumps(result.data) if told else ""),
        **_common_values(result, job.interrupted, tuple(result.warnings), texts),
    }


def _common_values(
    end: Run | RunResult, interrupted: bool, warnings: tuple[str, ...], texts: bool
) -> dict[str, Variant]:
    return {
        "interrupted": Variant("b", interrupted),
        "error": Variant("s", _text(end.error)),
        "sentence": Variant("s", _said(end.sentence, texts)),
        "hint": Variant("s", _said(end.hint, texts)),
        **_warnings(warnings, texts),
        "version": Variant("s", _text(end.version)),
        "files": _count(end.files),
        "size": _count(end.size),
        "changed_files": _count(end.changed_files),
        "changed_bytes": _count(end.changed_bytes),
        "safe": Variant("b", end.safe),
        "touched": Variant("b", end.touched),
        "powered_off": Variant("b", end.powered_off),
    }


def _said(text: str, texts: bool) -> str:
    return _text(text if texts else _NAMED.sub(" …", text))


def _warnings(warnings: tuple[str, ...], texts: bool) -> dict[str, Variant]:
    return {
        "warned": Variant("u", len(warnings)),
        "warnings": Variant("as", [_text(warning) for warning in warnings if texts]),
        "withheld": Variant("b", not texts),
    }


def _count(number: int) -> Variant:
    """*number* as the bus can tell it: what a worker counts may come to less than nothing."""
    return Variant("t", max(0, number))


def _text(text: str) -> str:
    """*text* as a D-Bus string can hold it: no NUL, no lone surrogate."""
    return printable(text, 4000)
