"""Is a disk in use that nothing of ours goes on with?

What the kernel shows is read, and no device is opened.  Mounts are those of our own mount
namespace, a slave of the computer's (systemd.exec(5), ``PrivateMounts=``): what is mounted in
another one that is none of its slaves does not show.
"""

from __future__ import annotations

from pathlib import Path


def in_use(
    disk: str, sys: Path = Path("/sys"), mounts: Path = Path("/proc/self/mountinfo")
) -> bool:
    """Whether the disk node *disk*, or a partition of it, is mounted or held by a mapping.

    By the third field of proc_pid_mountinfo(5); by ``holders``, where a block device that has
    claimed another one is linked; and, as btrfs numbers its mounts itself, by
    ``fs/btrfs/UUID/devices``, which is there while it is mounted (btrfs(5)).
    """
    own = sys / "class/block" / Path(disk).name
    nodes = [own, *(each.parent for each in own.glob("*/partition"))]
    numbers = {number for node in nodes for number in _lines(node / "dev")}
    if not numbers.isdisjoint(line.split(" ", 3)[2] for line in _lines(mounts)):
        return True
    return any(
        next(place, None) is not None
        for node in nodes
        for place in (node.glob("holders/*"), sys.glob(f"fs/btrfs/*/devices/{node.name}"))
    )


def _lines(path: Path) -> list[str]:
    """Its lines; none where it is gone: then nothing of the disk is in use."""
    try:
        text = path.read_text("utf-8", "surrogateescape")
    except OSError:
        return []
    # What else ends a line for Python stands as it is in the path of a mount.
    return [line for line in text.split("\n") if line]
