"""The proof that the drive may be pulled.

Runs when every layer is down.  Only here is ``control.safe`` set: whatever else happened in
the run, "you may unplug" is said if, and only if, each condition held.
"""

from __future__ import annotations

from ..errors import DriveFailed
from ..model import Device, Phase
from .control import Control
from .device import flush, prove_free


def release(
    device: Device, fd: int, control: Control, failure: BaseException | None = None
) -> None:
    """Have the drive write out its cache, and prove that nobody holds it.

    *fd* is the block device, opened before the first layer; *failure*: what ended the job, if
    anything did.  Raises DriveFailed.
    """
    control.phase(Phase.PROVING)
    flush(fd, device.node)
    prove_free(device.disk)
    control.safe = not _lost_writes(failure)
    if control.safe:
        control.once_safe()


def _lost_writes(failure: BaseException | None) -> bool:
    """Whether a filesystem did not keep what was written, whatever went wrong after it."""
    while failure is not None:
        if isinstance(failure, DriveFailed) and failure.lost_writes:
            return True
        failure = failure.__context__
    return False
