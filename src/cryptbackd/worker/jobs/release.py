"""Letting go of a drive that nothing is going on with: only the proof that it may be pulled."""

from __future__ import annotations

from ... import protocol
from ...model import Outcome, Phase, RunResult
from ..control import Control
from ..device import opened
from ..release import release


def let_go(start: protocol.Start, control: Control) -> RunResult:
    """Have the drive write out its cache and prove that nobody holds it."""
    with opened(start.device) as fd:
        release(start.device, fd, control)
    control.phase(Phase.FINISHED)
    return RunResult(Outcome.DONE, "", safe=control.safe)
