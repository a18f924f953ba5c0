"""What is mounted where, as this process sees it (proc_pid_mountinfo(5))."""

from __future__ import annotations

import os
from pathlib import Path

import attrs


@attrs.frozen
class Mount:
    """One line of mountinfo.  ``devno`` is ``major:minor``; ``source`` is what was mounted."""

    devno: str
    path: str
    fstype: str
    source: str


def mounts() -> list[Mount]:
    """Every mount, in the kernel's order: of two at one path the later one is on top."""
    text = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape")
    found = []
    for line in text.splitlines():
        fields = line.split(" ")
        dash = fields.index("-")
        found.append(
            Mount(fields[2], _unescape(fields[4]), fields[dash + 1], _unescape(fields[dash + 2]))
        )
    return found


def _unescape(field: str) -> str:
    for code in ("\\040", "\\011", "\\012", "\\134"):
        field = field.replace(code, chr(int(code[1:], 8)))
    return field


def mount_points(devno: str) -> list[str]:
    """Where the block device ``major:minor`` is mounted, as far as we see.

    A btrfs shows a device number of its own in mountinfo, so the source is compared too.
    """
    node = os.path.realpath(f"/dev/block/{devno}")
    return [
        mount.path
        for mount in mounts()
        if mount.devno == devno
        or (mount.source.startswith("/dev/") and os.path.realpath(mount.source) == node)
    ]


def mount_of(path: str) -> Mount:
    """The mount that *path* lies on: the one with the longest path, the last of those."""
    real = os.path.realpath(path) + "/"
    containing = [mount for mount in mounts() if real.startswith(mount.path.rstrip("/") + "/")]
    longest = max(len(mount.path) for mount in containing)
    return [mount for mount in containing if len(mount.path) == longest][-1]
