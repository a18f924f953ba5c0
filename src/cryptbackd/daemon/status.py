"""What is going on with each drive, and the line that ``systemctl status`` shows.  Pure."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import attrs

from ..model import JobKind, Outcome, Phase, Progress
from ..text import ago, clock, count, size


class State(StrEnum):
    """The state of a drive, as ``cryptback status`` names it."""

    ABSENT = "absent"
    IDLE = "idle"
    QUEUED = "queued"
    RUNNING = "running"
    NOT_ANSWERING = "not-answering"
    BAD = "bad"
    """Its entry can't be used."""


@attrs.frozen
class DriveView:
    """A drive as it is shown: the keys and types of a drive on the bus.

    Times are Unix times (0: never), sizes bytes, ``left`` seconds (-1: not known).
    """

    name: str
    state: State
    uuid: str = ""
    container: str = ""
    device: str = ""
    phase: Phase | None = None
    progress: Progress | None = None
    run: str = ""
    job: JobKind | None = None
    last_outcome: Outcome | None = None
    last_sentence: str = ""
    last_hint: str = ""
    last_finished: float = 0.0
    last_success: float = 0.0
    last_verified: float = 0.0
    """When the last verification ended that came to an end."""
    last_verified_outcome: str = ""
    last_verified_sentence: str = ""
    warnings: tuple[str, ...] = ()
    safe: bool = False
    """It is plugged in, and may be unplugged now."""
    problem: str = ""
    owner: str = ""
    """Whose it is; empty: everybody's who sits at the computer."""
    shown_to: str = ""
    """The user for whom its versions are open; empty: they are not."""
    reminded: float = 0.0
    """When it was last said that it has not been backed up for long, if that is still so."""


def line(views: Sequence[DriveView], now: float) -> str:
    """The status line at *now* (Unix time), ASCII: what goes on, or what was last."""
    busy = [_busy(view) for view in views if view.state in _BUSY]
    return "; ".join(busy) if busy else _idle(views, now)


_BUSY = (State.RUNNING, State.NOT_ANSWERING, State.QUEUED)


def _busy(view: DriveView) -> str:
    if view.state is State.NOT_ANSWERING:
        return f"{view.name}: the drive does not answer"
    if view.state is State.QUEUED or view.phase is None:
        return f"{view.name}: waiting for its turn"
    if view.phase is Phase.BROWSING:
        return f"{view.name}: open for browsing by {view.shown_to}"
    words = f"{view.name}: {view.phase.value.replace('-', ' ')}"
    progress = view.progress
    if progress is None or progress.total <= 0:
        return words
    share = min(100, 100 * progress.done // progress.total)
    parts = [f"{words} {share} % of {size(progress.total)}"]
    if progress.rate > 0:
        parts.append(f"{progress.rate / 1e6:.0f} MB/s")
    if progress.left >= 0:
        parts.append(f"{clock(progress.left)} left")
    return ", ".join(parts)


def _idle(views: Sequence[DriveView], now: float) -> str:
    bad = sum(view.state is State.BAD for view in views)
    parts = ["idle", f"{count(len(views) - bad, 'drive')} known"]
    last = max(views, key=lambda view: view.last_success, default=None)
    if last is not None and last.last_success > 0:
        parts.append(f"last backup of {last.name} {ago(max(0.0, now - last.last_success))}")
    if bad:
        parts.append(f"{bad} bad {'entry' if bad == 1 else 'entries'}")
    return ", ".join(parts)
