"""Should an arrival run?  One insertion is one run, unless its entry asks for more.

An insertion is (boot id, ``DISKSEQ``): it lasts from the plugging of a disk to its pulling.
What has come to an end in it, however it ended, isn't begun again by itself; what was
interrupted (the service was stopped or killed) is, a few times.  Everything here is pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum

import attrs

from ..model import Device, Outcome

MAX_INTERRUPTIONS = 3
"""So many interrupted runs in one insertion, and nothing begins by itself any more."""


class Verdict(Enum):
    """What is done about an arrival."""

    RUN = "run"
    FINISHED = "finished"
    """This insertion had its run, or was ended by an eject."""
    GOING_ON = "going on"
    GAVE_UP = "gave up"
    """It was interrupted too often."""
    AMBIGUOUS = "ambiguous"
    """Another device shows the same UUID; which one is meant can't be known."""
    TOO_SOON = "too soon"
    """The last success is younger than ``when.at_most``."""


@attrs.frozen
class Past:
    """A run of this entry in this insertion; ``outcome`` None while it goes on."""

    outcome: Outcome | None
    interrupted: bool = False


def automatic(
    past: Sequence[Past],
    *,
    ejected: bool = False,
    candidates: int = 1,
    since_success: float | None = None,
    at_most: float | None = None,
) -> Verdict:
    """Whether an entry whose drive has just arrived is run without being asked.

    *past* are its runs in this insertion; *ejected*: somebody asked for this disk to be let
    go; *candidates*: how many devices show its UUID now; *since_success*: seconds since its
    last success (None: never), *at_most*: the least such time that it wants.
    """
    if any(_goes_on(run) for run in past):
        return Verdict.GOING_ON
    if ejected or any(not run.interrupted for run in past):
        return Verdict.FINISHED
    if candidates > 1:
        return Verdict.AMBIGUOUS
    if len(past) >= MAX_INTERRUPTIONS:
        return Verdict.GAVE_UP
    if at_most is not None and since_success is not None and 0 <= since_success < at_most:
        return Verdict.TOO_SOON
    return Verdict.RUN


class Again(Enum):
    """What becomes of a drive that stays in and whose entry asks for ``when.repeat``."""

    NOW = "now"
    """A run that the clock began was broken off: it is taken up."""
    WHEN_DUE = "when due"
    NOT = "not"


def again(past: Sequence[Past], *, ejected: bool = False, candidates: int = 1) -> Again:
    """Whether the clock may begin a further run in this insertion; arguments as above."""
    if ejected or candidates != 1 or any(_goes_on(run) for run in past):
        return Again.NOT
    broken_off = 0
    for run in reversed(past):
        if not run.interrupted:
            break
        broken_off += 1
    if broken_off == len(past) or broken_off >= MAX_INTERRUPTIONS:
        return Again.NOT  # the first run of the insertion is not the clock's business
    return Again.NOW if broken_off else Again.WHEN_DUE


def _goes_on(run: Past) -> bool:
    return run.outcome is None and not run.interrupted


def candidates(devices: Iterable[Device], uuid: str) -> list[Device]:
    """The devices that show the filesystem *uuid*, in the order of their nodes."""
    return sorted((d for d in devices if d.uuid == uuid), key=lambda device: device.node)
