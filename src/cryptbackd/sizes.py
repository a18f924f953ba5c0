"""How long a container is to be: what people ask for, held against what there is.  Pure."""

from __future__ import annotations

from enum import Enum

import attrs

from .errors import Refused
from .text import parse_size, size

MIB = 1 << 20
"""The length of a container is a multiple of this."""
LARGEST_FILE = {"vfat": (4 << 30) - 1}
"""Bytes that a file can have at most, where the filesystem of a drive sets a limit that matters."""
ROOM_LEFT = 4 * MIB
"""Bytes that the drive's filesystem always keeps, for its own tables."""


class How(Enum):
    """In which way a new length is told."""

    TO = "to"
    BY = "by"
    MAX = "max"


@attrs.frozen
class Wanted:
    """``8G`` (TO), ``+2G`` (BY) or ``max``; ``size`` in bytes."""

    how: How
    size: int = 0


def parse(text: str) -> Wanted:
    """What *text* asks for; raises ValueError."""
    words = text.strip()
    if words == "max":
        return Wanted(How.MAX)
    more = words.startswith("+")
    try:
        number = parse_size(words.removeprefix("+"))
    except ValueError:
        raise ValueError(f"{text!r} is not a size such as 8G, +512M or max") from None
    if number < MIB:
        raise ValueError(f"{text!r} is less than 1M")
    return Wanted(How.BY if more else How.TO, number)


def want_possible(container: str | None, wanted: Wanted) -> None:
    """Raise Refused for another length of a partition (no *container*) than all of it."""
    if container is None and wanted.how is not How.MAX:
        raise Refused(
            "There is no container file: the partition itself is encrypted, and as long as it is.",
            "Make the partition longer with a tool for that, and then say `max`. It can't be made"
            " shorter.",
        )


def sensible(free: int) -> int:
    """Bytes of a container for which nobody named a size, where *free* bytes are free.

    The user's own files keep a tenth of the room, and 64 MiB at least; on a drive on which
    that leaves nothing, what the filesystem itself needs.
    """
    room = min(free - 64 * MIB, free * 9 // 10)
    if room < MIB:
        room = free - ROOM_LEFT
    return max(0, room) // MIB * MIB


def reserve(total: int) -> int:
    """Bytes of a drive's filesystem of *total* bytes that ``max`` leaves free."""
    return min(max(total // 100, 16 * MIB), 1024 * MIB)


def length(
    wanted: Wanted, *, current: int, taken: int, free: int, total: int, most: int | None
) -> int:
    """Bytes that the container of *current* bytes is to have.

    *taken* of them have their place on the drive (the others are holes); *free* and *total* are
    bytes of the drive's filesystem; *most*: what its files can have together, if there is a
    limit.  Raises Refused.
    """
    if wanted.how is How.MAX:
        target = taken + free - reserve(total)
        if most is not None:
            target = min(target, most)
        return max(current, target // MIB * MIB)
    target = wanted.size + (current if wanted.how is How.BY else 0)
    target = target // MIB * MIB
    if most is not None and target > max(most, current):
        raise Refused(
            f"A container of {size(target)} takes too many files: with files as long as these are,"
            f" {size(most)} is the most.",
            "`max` makes it as large as can be.",
        )
    if current - MIB < target <= current:
        return current
    if target > current and target - taken > free - ROOM_LEFT:
        raise Refused(
            f"A container of {size(target)} does not fit: it has {size(current)} now, and"
            f" {size(free)} are free on the drive.",
            "`max` takes all but a small reserve.",
        )
    return target


def least(header: int, smallest: int, used: int) -> int:
    """Bytes to which a container can be shortened whose filesystem has *used* bytes in use.

    *header*: bytes before the filesystem; *smallest*: those that it needs at least.
    """
    needed = used + max(used // 20, 32 * MIB)
    return -(-(header + max(smallest, needed)) // MIB) * MIB
