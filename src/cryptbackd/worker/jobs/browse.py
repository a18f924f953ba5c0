"""Browsing: the whole stack read-only, and a server of the versions on the asker's mount.

It lasts until the mount is gone or the job is stopped; both are its good end.  The drive can
be pulled meanwhile without harm: nothing on it is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ... import protocol
from ...config import parse
from ...errors import Cancelled, Refused
from ...model import Outcome, Phase, RunResult
from .. import header as headers
from .. import workspace
from ..control import Control
from ..versions import VERSIONS, record
from ..view import sandbox
from .backup import proven_free, unlocked


def browse(start: protocol.Start, control: Control) -> RunResult:
    """Show the versions of the entry ``start.name``; see ``protocol.Start``."""
    viewer = sandbox.Viewer(int(start.options["user"]), tuple(start.options["groups"]))
    who = str(start.options["who"])
    sandbox.want_library()
    entry = parse(start.entry, start.name)
    header = headers.load(start.name)
    place = workspace.make(start.name)
    control.phase(Phase.ATTACHING)
    with (
        proven_free(start.device, control, writes=False),
        unlocked(start.name, entry, start.device, header, place, control, untouched=True) as tree,
        _locking_after(control),
    ):
        versions = tree.path / VERSIONS
        names = [version.path.name for version in record.versions(versions)]
        if not names:
            raise Refused(
                "There is no version on the drive yet.",
                f"`cryptback run {start.name}` makes the first one.",
            )
        control.phase(Phase.BROWSING)
        _key, fuse = control.key("browse")
        control.say(f"its versions are open for browsing by {who}.", "browsing")
        with suppress(Cancelled):  # which is how it usually ends
            sandbox.serve(versions, names, fuse, viewer, control)
    control.phase(Phase.FINISHED)
    return RunResult(
        Outcome.WARNINGS if control.warnings else Outcome.DONE,
        f"Its versions were open for browsing by {who}.",
        safe=control.safe,
        warnings=control.warnings.told,
    )


@contextmanager
def _locking_after(control: Control) -> Iterator[None]:
    try:
        yield
    finally:
        control.phase(Phase.LOCKING)
