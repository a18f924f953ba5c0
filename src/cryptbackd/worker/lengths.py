"""Making the filesystem in a volume longer or shorter.

Longer, all three are made while they are mounted, and each is whole at every moment.  Shorter
btrfs is made while it is mounted; it moves what lies behind the new end, and stays as it was
when that is cut off.  ext4 is made shorter by a program that must not be cut off in the middle:
see ``layers.redo``.  xfs can't be.
"""

from __future__ import annotations

import os

from .. import kernel
from ..errors import DriveFailed, Refused, ToolFailed
from ..run import run
from ..text import size
from .control import Control
from .layers.inner import SMALLEST
from .layers.luks import Volume
from .layers.mounted import Mounted
from .layers.redo import Overlay
from .lengthen import lengthen
from .superblock import read
from .whitelist import Header

BTRFS = "/usr/bin/btrfs"
E2FSCK = "/usr/sbin/e2fsck"
RESIZE2FS = "/usr/sbin/resize2fs"
XFS_GROWFS = "/usr/sbin/xfs_growfs"
_TOOLS = {"btrfs": BTRFS, "ext4": RESIZE2FS, "xfs": XFS_GROWFS}
_LEAST = {"btrfs": 256 << 20}
"""Bytes that a filesystem must have after its length was changed (btrfs_ioctl_resize)."""
_PATIENCE = 24 * 3600.0
"""Seconds; moving many files on a slow drive takes hours."""
_E2FSCK_FINE = (0, 1)
"""e2fsck(8), "EXIT CODE": no errors, or all corrected."""
_UNCHANGED = "Nothing was changed."


def want_tool(fstype: str) -> None:
    """Raise Refused when what makes an *fstype* longer is not installed."""
    if not os.path.exists(_TOOLS[fstype]):
        raise Refused(
            f"{_TOOLS[fstype]} is not installed, which changes the length of an {fstype}.",
            "Install xfsprogs." if fstype == "xfs" else "",
        )


def want_length(fstype: str, length: int) -> None:
    """Raise Refused where an *fstype* can't be made *length* bytes long for being too short."""
    least = _LEAST.get(fstype, 0)
    if length < least:
        raise Refused(
            f"The length of a {fstype} can only be changed to {size(least)} and more.", _UNCHANGED
        )


def needed(volume: Volume, fstype: str, header: Header) -> int:
    """Bytes of the container that header and filesystem need; it must not be mounted."""
    return header.size + read(volume.node, fstype).length


def used(tree: Mounted) -> int:
    """Bytes in use in the mounted filesystem."""
    status = os.fstatvfs(tree.fd)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def grow(tree: Mounted, volume: Volume) -> None:
    """Make the mounted filesystem as long as its volume, durably; raises DriveFailed."""
    try:
        if tree.fstype == "ext4":
            lengthen(tree.fd, _blocks(tree, volume))
        elif tree.fstype == "xfs":
            run([XFS_GROWFS, "-d", str(tree.path)], deadline=_PATIENCE)
        else:
            run([BTRFS, "filesystem", "resize", "max", str(tree.path)], deadline=_PATIENCE)
    except (ToolFailed, OSError) as exc:
        why = exc.sentence if isinstance(exc, ToolFailed) else f"{exc.strerror}."
        raise DriveFailed(f"The {tree.fstype} filesystem can't be made longer: {why}") from exc
    tree.sync()


def _blocks(tree: Mounted, volume: Volume) -> int:
    """How many blocks of the mounted ext4 its volume has, in whole pages as resize2fs(8) does."""
    with open(volume.node, "rb") as opened:
        length = kernel.device_size(opened.fileno())
    page = os.sysconf("SC_PAGE_SIZE")
    return length // page * page // os.fstatvfs(tree.fd).f_frsize


def shrink_btrfs(tree: Mounted, length: int, control: Control) -> None:
    """Make the mounted btrfs *length* bytes long, durably; raises Refused and Cancelled."""
    argv = [BTRFS, "filesystem", "resize", str(length), str(tree.path)]
    try:
        run(argv, deadline=_PATIENCE, interrupt=control.interrupt)
    except ToolFailed as exc:
        raise Refused(f"The btrfs filesystem can't be made that short: {exc.sentence}") from exc
    tree.sync()


def shrink_ext4(volume: Volume, length: int, overlay: Overlay, control: Control) -> None:
    """Make the unmounted ext4 *length* bytes long, in what lies over it.

    Raises Refused, DriveFailed and Cancelled; the drive has no part in it yet.
    """
    check = [E2FSCK, "-f", "-p", volume.node]
    shrink = [RESIZE2FS, volume.node, f"{length // 1024}K"]
    for argv, fine in ((check, _E2FSCK_FINE), (shrink, (0,))):
        ended = run(argv, deadline=_PATIENCE, ok=None, interrupt=control.interrupt)
        if ended.status in fine:
            continue
        if overlay.is_full():
            raise Refused(
                "Making it shorter changes more than this computer has room for meanwhile.",
                f"{_UNCHANGED} The room is needed in /var/lib/cryptbackd.",
            )
        if argv is check:
            raise DriveFailed(
                f"The ext4 filesystem in the container has errors: {ended.complaint}",
                f"{_UNCHANGED} Open the container by hand, and run `e2fsck -f` on it.",
            )
        raise Refused(
            f"The ext4 filesystem can't be made that short: {ended.complaint}", _UNCHANGED
        )
    with open(volume.node, "rb") as written:
        os.fsync(written.fileno())


def smallest(fstype: str) -> int:
    """Bytes that a filesystem has at least; raises Refused for one that can't be made shorter."""
    if fstype == "xfs":
        raise Refused(
            "An xfs filesystem can't be made shorter.",
            "Enrol the drive anew with a smaller --size, and --filesystem btrfs or ext4.",
        )
    return max(SMALLEST[fstype], _LEAST.get(fstype, 0))
