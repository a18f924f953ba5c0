"""Which files to read back, by chance.  Pure."""

from __future__ import annotations

import os
import random
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence

from ..changes import fields
from ..manifest import Record

_LARGEST = (1 << 63) - 1


def chance() -> random.Random:
    """Chance that nobody can foresee, not even a drive."""
    return random.Random(os.urandom(32))  # noqa: S311  # as good as its seed


def draw(sizes: Sequence[int], budget: int, chance: random.Random) -> list[int]:
    """Some of the files of these *sizes*, by their index and in order: about *budget* bytes.

    Every file can be drawn, however large, and at least one is if there are any.
    """
    order = list(range(len(sizes)))
    chance.shuffle(order)
    drawn: list[int] = []
    for index in order:
        size = sizes[index]
        if size <= budget:
            drawn.append(index)
            budget -= size
        elif chance.random() * size < budget:
            # Too large for what is left: taken as rarely as makes it right on average.
            drawn.append(index)
            break
    if order and not drawn:
        drawn.append(min(order, key=sizes.__getitem__))
    return sorted(drawn)


def part(
    records: Callable[[], Iterable[bytes]], share: float, chance: random.Random
) -> Iterator[Record]:
    """Regular files among the *records* of a manifest with about that *share* of all bytes.

    *records* is called twice, so that nobody needs to hold them all.
    """
    sizes = array("q", map(_size, records()))
    files = [index for index, size in enumerate(sizes) if size >= 0]
    budget = round(sum(sizes[index] for index in files) * share)
    wanted = {files[at] for at in draw([sizes[index] for index in files], budget, chance)}
    for index, raw in enumerate(records()):
        if index in wanted:
            yield Record.parse(raw)


def _size(raw: bytes) -> int:
    """The size in a record, if it is that of a regular file; else -1."""
    known = fields(raw)[1]
    return min(int(known[5]), _LARGEST) if known[0] == b"f" else -1
