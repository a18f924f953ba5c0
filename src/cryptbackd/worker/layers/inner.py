"""The filesystem inside the container.

Lives from the mount to the unmount of the armed mapping, which it keeps alive.  A last
small file, written past the cache, proves before the unmount that it still takes writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...errors import DriveFailed, ForgedDrive, Refused, ToolFailed
from ...run import run
from ...text import printable, size
from ..control import Control
from ..device import cap_dirty_pages, probe
from .luks import CUT_SHORT, Volume
from .mounted import Mounted, mounted

_SAFE = "nosuid,nodev,noexec,nosymfollow,noatime"
OPTIONS = {
    # Level 1 keeps up with USB drives on slow computers, and what is not compressible is left as
    # it is.
    "btrfs": f"{_SAFE},compress=zstd:1",
    # A version is linked inode by inode: whoever needs one needs its neighbours.
    "ext4": f"{_SAFE},errors=remount-ro,inode_readahead_blks=256",
    "xfs": _SAFE,
}
"""The filesystem types that a container may hold, with how each is mounted."""

_MAKE = {
    # 64 bits against chance.  Against intent a cryptographic checksum would be no better: who can
    # compute any checksum here has the key.
    "btrfs": ["/usr/sbin/mkfs.btrfs", "--quiet", "--csum", "xxhash"],
    # Every version of a hard-linked tree needs inodes for its directories: one for 4 KiB.
    "ext4": ["/usr/sbin/mkfs.ext4", "-q", "-i", "4096", "-m", "0"],
    "xfs": ["/usr/sbin/mkfs.xfs", "-q"],
}

SMALLEST = {"btrfs": 128 << 20, "ext4": 32 << 20, "xfs": 320 << 20}
"""Bytes below which mkfs refuses, or what it makes holds nothing, header not counted."""

_BROKEN_OFF = (
    "After a run that was broken off, the next run puts that right: begin one, without write"
    " protection."
)


@contextmanager
def inner(volume: Volume, where: Path, *, read_only: bool = False) -> Iterator[Mounted]:
    """Mount the filesystem in *volume* at *where* while the block runs."""
    found = probe(volume.node, OPTIONS) or probe(volume.node)
    fstype = found.get("TYPE", "")
    if fstype not in OPTIONS:
        raise Refused(
            f"The container holds {printable(fstype) or 'no filesystem'}, which can't hold a"
            " backup.",
            "These can: " + ", ".join(sorted(OPTIONS)) + ".",
        )
    _check_length(volume, found)
    what = f"The {fstype} filesystem in the container"
    options, hint = OPTIONS[fstype], ""
    if read_only:
        options, hint = f"ro,{options}", _BROKEN_OFF
    with mounted(volume.node, volume.devno, where, fstype, options, what, hint) as filesystem:
        bdi = Path("/sys/fs/btrfs", found.get("UUID", "-"), "bdi")
        cap_dirty_pages(bdi.resolve().name if bdi.exists() else volume.devno)
        try:
            yield filesystem
        finally:
            if not read_only:
                filesystem.prove_writable()


def _check_length(volume: Volume, found: dict[str, str]) -> None:
    """Raise ForgedDrive when the volume is shorter than the filesystem that is in it.

    libblkid tells the filesystem's length since util-linux 2.39; before, only the mount fails.
    """
    try:
        wanted = int(found["FSLASTBLOCK"]) * int(found["FSBLOCKSIZE"])
    except (KeyError, ValueError):
        return
    there = int(Path("/sys/dev/block", volume.devno, "size").read_text()) * 512
    if there < wanted:
        raise ForgedDrive(
            f"The container was cut short: its filesystem takes {size(wanted)}, and {size(there)}"
            " of it are there.",
            CUT_SHORT,
        )


def make_filesystem(volume: Volume, fstype: str, control: Control) -> None:
    """Make the inner filesystem *fstype*; raises DriveFailed and Cancelled."""
    try:
        run([*_MAKE[fstype], volume.node], deadline=600, interrupt=control.interrupt)
    except ToolFailed as exc:
        raise DriveFailed(f"The inner filesystem can't be made: {exc.sentence}") from exc
