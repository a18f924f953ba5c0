"""What the manifest says after a quick run of the paths that it dealt with.

What was listed before the copy is told only where source and copy are still like it; else the
next run finds a difference, and looks again.
"""

from __future__ import annotations

import os
import stat

from ...manifest import Record
from .changes import Changes
from .transfer import Place, Transferred
from .within import Within, within

_KINDS = {
    stat.S_IFREG: "f", stat.S_IFDIR: "d", stat.S_IFLNK: "l", stat.S_IFIFO: "p",
    stat.S_IFSOCK: "s", stat.S_IFBLK: "b", stat.S_IFCHR: "c",
}  # fmt: skip

_GRAIN = 2.0


def account(
    what: Changes, done: Transferred, place: Place, began: float
) -> dict[bytes, bytes | None]:
    """Path to its record (None: nothing is there any more).

    *began* is the time of day before the sources were listed.
    """
    told: dict[bytes, bytes | None] = dict.fromkeys(what.before)
    now = {path: Record.parse(raw) for path, raw in what.now.items()}
    before = {path: Record.parse(raw) for path, raw in what.before.items()}
    sums = _checksums(now, before, done)
    with within(place.target) as target:
        for path, record in now.items():
            status = target.status(path)
            if status is None:
                told[path] = None
                continue
            surely = path not in done.failed and (
                not done.doubtful or path in done.received or record.kind == "d"
            )
            if surely and _is_as_listed(place, path, record) and _is_like(record, status):
                kept = record._replace(xxh128=sums.get(path))
                if record.kind != "d" and is_unsettled(record.ctime_ns, began):
                    kept = kept._replace(ctime_ns=None)
                told[path] = kept.raw()
            else:
                told[path] = _of(target, path, status, before.get(path), done).raw()
        for path in what.above:
            status = target.status(path)
            if status is not None and path not in now:
                told[path] = _of(target, path, status, None, done).raw()
    return told


def _checksums(
    now: dict[bytes, Record], before: dict[bytes, Record], done: Transferred
) -> dict[bytes, str]:
    """Of each file that came, or that was found to be right as it was.

    rsync tells that of a file with several names once.
    """
    known: dict[bytes, str] = {}
    names: dict[tuple[object, ...], list[bytes]] = {}
    for path, record in now.items():
        if record.kind == "f":
            names.setdefault((record.inode, record.ctime_ns, record.size), []).append(path)
    for paths in names.values():
        came = {done.received[path] for path in paths if path in done.received}
        if not came:
            was = [before.get(path) for path in paths]
            came = {old.xxh128 for old in was if old and old.kind == "f" and old.xxh128 is not None}
            if any(old is not None and old.xxh128 is None for old in was):
                continue
        if len(came) == 1:
            known |= dict.fromkeys(paths, came.pop())
    return known


def is_unsettled(ctime_ns: int | None, began: float) -> bool:
    """Whether a later change could have left this time of change: it was just when the listing
    was made, which some filesystems tell to the second or two.
    """
    return ctime_ns is not None and ctime_ns >= (began - _GRAIN) * 1e9


def _is_as_listed(place: Place, path: bytes, record: Record) -> bool:
    try:
        status = os.lstat(place.source(path))
    except OSError:
        return False
    return (status.st_ino, status.st_ctime_ns) == (record.inode, record.ctime_ns)


def _is_like(record: Record, status: os.stat_result) -> bool:
    """Whether the copy is what was listed, as far as it shows."""
    if (_kind(status), status.st_uid, status.st_gid) != (record.kind, record.uid, record.gid):
        return False
    if record.kind == "l":
        return True
    if stat.S_IMODE(status.st_mode) != record.mode:
        return False
    if record.kind == "f" and status.st_size != record.size:
        return False
    return status.st_mtime_ns == record.mtime_ns


def _kind(status: os.stat_result) -> str:
    return _KINDS[stat.S_IFMT(status.st_mode)]


def _of(
    tree: Within, path: bytes, status: os.stat_result, before: Record | None, done: Transferred
) -> Record:
    """The record of a copy that is not as the source was listed."""
    kind = _kind(status)
    checksum = done.received.get(path)
    same = (kind, status.st_size, status.st_mtime_ns)
    if checksum is None and before and same == (before.kind, before.size, before.mtime_ns):
        checksum = before.xxh128 if kind == "f" else None
    return Record(
        path, kind, status.st_size, status.st_mtime_ns, None, None,
        stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, 1,
        checksum, tree.target(path) if kind == "l" else b"",
    )  # fmt: skip
