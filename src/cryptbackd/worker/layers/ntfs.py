"""Whether an NTFS was left in the middle of something.

Only reads, and keeps nothing open.  The kernel's driver refuses to write to such a filesystem
(ntfs3, "force" mount option) and says why in its log alone, so the mark is looked for here.

Layout: "$Boot", file record segments and VOLUME_INFORMATION, as in the kernel's fs/ntfs3/ntfs.h.
"""

from __future__ import annotations

import os
import struct

from ...errors import Refused
from ...text import printable

_SECTOR = 512
"""Bytes of a record that share a fixup, whatever the drive's own sectors are."""
_VOLUME = 3
"""The file record of $Volume."""
_VOLUME_INFORMATION = 0x70
_END = 0xFFFFFFFF
_DIRTY = 0x0001
_LARGEST_RECORD = 65_536


def want_clean(node: str) -> None:
    """Raise Refused when the NTFS on *node* is marked as dirty."""
    try:
        fd = os.open(node, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return  # whoever mounts it will tell
    try:
        dirty = _is_dirty(fd)
    except (OSError, struct.error, IndexError):
        dirty = False  # odd, but not for us to judge: the kernel does
    finally:
        os.close(fd)
    if dirty:
        raise Refused(
            f"The NTFS filesystem on {printable(node)} was not unmounted cleanly, and writing to"
            " it could harm what is on it.",
            "Let Windows check it (chkdsk /f) and remove it safely there; where there is no"
            " Windows, `ntfsfix --clear-dirty` of the Debian package ntfs-3g takes the mark off.",
        )


def _is_dirty(fd: int) -> bool:
    boot = os.pread(fd, _SECTOR, 0)
    bytes_a_sector, sectors = struct.unpack_from("<HB", boot, 11)
    cluster = bytes_a_sector * (sectors if sectors <= 0x80 else 1 << (256 - sectors))
    (start,) = struct.unpack_from("<Q", boot, 48)
    (clusters,) = struct.unpack_from("<b", boot, 64)
    length = clusters * cluster if clusters > 0 else 1 << -clusters
    if not _SECTOR <= length <= _LARGEST_RECORD or start * cluster >= 1 << 62:
        return False
    return _marked(os.pread(fd, length, start * cluster + _VOLUME * length))


def _marked(raw: bytes) -> bool:
    """Whether the file record of $Volume has the mark."""
    if raw[:4] != b"FILE":
        return False
    record = bytearray(raw)
    fixups, count = struct.unpack_from("<HH", record, 4)
    for number in range(1, min(count, len(record) // _SECTOR + 1)):
        at = fixups + 2 * number
        record[number * _SECTOR - 2 : number * _SECTOR] = record[at : at + 2]
    (at,) = struct.unpack_from("<H", record, 20)
    while at < len(record):
        kind, length = struct.unpack_from("<II", record, at)
        if kind == _VOLUME_INFORMATION:
            (value,) = struct.unpack_from("<H", record, at + 20)
            (flags,) = struct.unpack_from("<H", record, at + value + 10)
            return bool(flags & _DIRTY)
        if kind == _END or length == 0:
            return False
        at += length
    return False
