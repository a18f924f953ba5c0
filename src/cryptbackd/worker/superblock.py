"""How long the filesystem in a volume is, as it says itself; only read.

Needed before it is mounted, and after it was unmounted: what lies behind its end may go,
and nothing else may.
"""

from __future__ import annotations

import os

import attrs

from ..errors import DriveFailed

_AT = {"ext4": 1024, "btrfs": 64 << 10, "xfs": 0}
TYPES = frozenset(_AT)
"""The filesystem types whose superblock is understood."""
_LENGTH = 1024
_EXT4_64BIT = 0x80
_EXT4_LARGEST = 6
"""A block of ext4 has at most 1024 << 6 bytes (``EXT4_MAX_BLOCK_LOG_SIZE``)."""
_LARGEST = 1 << 63


@attrs.frozen
class Superblock:
    """Bytes of a filesystem; ``used`` is 0 where that must be asked of the mounted one."""

    length: int
    used: int = 0
    devices: int = 1
    """On how many devices it lies."""


def read(node: str, fstype: str) -> Superblock:
    """The superblock of the unmounted *fstype* on the block device *node*.

    Raises DriveFailed when there is none.
    """
    try:
        fd = os.open(node, os.O_RDONLY | os.O_CLOEXEC)
        try:
            raw = os.pread(fd, _LENGTH, _AT[fstype])
        finally:
            os.close(fd)
    except OSError as exc:
        raise DriveFailed(f"The {fstype} filesystem can't be read: {exc.strerror}.") from exc
    return parse(raw, fstype)


def parse(raw: bytes, fstype: str) -> Superblock:
    """What the *raw* bytes of a superblock say; raises DriveFailed when they are none.

    Layouts: linux/fs/ext4/ext4.h, uapi/linux/btrfs_tree.h, fs/xfs/libxfs/xfs_format.h.
    """

    def number(at: int, size: int) -> int:
        return int.from_bytes(raw[at : at + size], "big" if fstype == "xfs" else "little")

    magic = {
        "ext4": raw[0x38:0x3A] == b"\x53\xef",
        "btrfs": raw[0x40:0x48] == b"_BHRfS_M",
        "xfs": raw[:4] == b"XFSB",
    }
    if len(raw) < _LENGTH or not magic[fstype]:
        raise DriveFailed(f"There is no {fstype} filesystem where one should be.")
    if fstype == "btrfs":
        found = Superblock(number(0xC9 + 8, 8), devices=number(0x88, 8))  # dev_item.total_bytes
    elif fstype == "xfs":
        found = Superblock(number(8, 8) * number(4, 4))
    else:
        block = 1024 << min(number(0x18, 4), _EXT4_LARGEST + 1)
        large = number(0x60, 4) & _EXT4_64BIT
        blocks = number(0x4, 4) | (number(0x150, 4) << 32 if large else 0)
        free = number(0xC, 4) | (number(0x158, 4) << 32 if large else 0)
        found = Superblock(blocks * block, (blocks - free) * block)
        if block > 1024 << _EXT4_LARGEST:
            raise _odd(fstype)
    if not 0 <= found.used <= found.length or not 0 < found.length < _LARGEST:
        raise _odd(fstype)
    return found


def _odd(fstype: str) -> DriveFailed:
    return DriveFailed(
        f"The superblock of the {fstype} filesystem says what can't be.", "It may be damaged."
    )
