"""Files of which no checksum is known: rsync reads them on both sides once more, and tells.

A file gets its name before what rsync said of it is kept.  Where the worker was killed in between,
the copy is there and right, and nothing would ever tell later what was in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

from ..model import Phase
from .control import Control
from .layers.mounted import Mounted
from .quick.transfer import reader
from .recording import Recording
from .remaining import tell
from .rsync_job import Job
from .sync import Synced, copy_named, temporary

_MOST = 4 << 30
"""Bytes after which the rest is left to the next full run."""


def recorded(
    taken: Recording,
    version: Path,
    syncs: Sequence[Job],
    synced: Synced,
    tree: Mounted,
    control: Control,
) -> dict[str, object]:
    """Write the manifest of what is to become *version*, once more if checksums were missing.

    That is of a full run, which *syncs* did.  What a file then turns out to differ in is copied,
    and counted in *synced*.  Returns and raises what ``Recording.write`` does, and ``sync``.
    """
    target, compared = syncs[0].target, syncs[0].contents
    described = taken.write(version, target, compared=compared)
    if not taken.unsummed:
        return described
    # Which also ends the thread that tells what remains: there may be none when rsync is confined.
    control.phase(Phase.COMPARING)
    found = _compared(taken.unsummed, syncs, control)
    synced.changed_files += found.changed_files
    synced.changed_bytes += found.changed_bytes
    control.phase(Phase.KEEPING)
    tell(control)
    tree.sync()
    return taken.write(version, target, compared=compared)


def _compared(unsummed: Mapping[bytes, int], syncs: Sequence[Job], control: Control) -> Synced:
    """Have the jobs' ``received`` told of the content of *unsummed*, path to size."""
    shares: dict[Path, tuple[Job, list[bytes]]] = {}
    read = 0
    for path, size in sorted(unsummed.items()):
        job = reader(syncs, path)
        if job is not None and read < _MOST:
            shares.setdefault(job.stage, (job, []))[1].append(path)
            read += size
    synced = Synced()
    with temporary(syncs[0].target):
        for job, paths in shares.values():
            named = attrs.evolve(job, names=tuple(paths), contents=True, tell_same=True)
            synced.add(copy_named(named, control, 0))
    return synced
