"""A few files of a version that was just made, read back from the drive.

A backup that has never been read back is a hope.  What is read is little, so that a run takes
hardly longer: unless the entry asks for a share, some files of a few MiB, however many there are,
and never longer than a part of what the run took.  Nothing is open afterwards.
"""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Iterator

from .. import manifest, paths
from ..errors import Cancelled, ManifestDamaged
from ..manifest import Block, Record
from ..model import Phase
from ..text import count, size
from .control import Control, Meter
from .damage import Verification, opened
from .layers.mounted import Mounted
from .manifests import Manifests
from .readback import Readback
from .sample import chance, part
from .versions.record import Version

FILES = 8
BYTES = 32 << 20
_TRIES = 8 * FILES
_INLINE = 4096
"""btrfs keeps smaller files among its metadata, which it remembers whatever it is told."""
_PART, _SHORT = 0.25, 2.0
"""Of the run's time until then, and seconds that it may take at least, where nobody asks."""
_ASKED_SHORT = 10.0


class _Enough(Exception):
    """It took long enough."""


def read_back(
    tree: Mounted,
    versions: list[Version],
    *,
    name: str,
    share: float | None,
    took: float,
    control: Control,
) -> None:
    """Read some files of the newest of *versions* (oldest first) back, and warn of damage.

    *share*: of the bytes, as the entry has it (0: none; None: a few files).  *took*: seconds of
    the run until now.  Whoever stops the run meanwhile ends this: the version is made.
    """
    if not versions:
        return  # the drive shows none any more: the next run's ledger tells
    newest = versions[-1]
    path = paths.catalogue(name) / newest.manifest_path.name  # no need to ask the drive for it
    if share == 0 or not newest.manifest or not path.exists():
        return
    limit = max(_SHORT, took * _PART) if share is None else max(_ASKED_SHORT, took)
    end = time.monotonic() + limit
    control.phase(Phase.VERIFYING)
    meter = Meter(control, 0)

    def passed(_length: int) -> None:
        control.check()
        meter.at(verification.readback.size)
        if time.monotonic() > end:
            raise _Enough

    verification = Verification(tree.fstype, Readback(tree.fstype, tree.beneath, passed))
    try:
        with opened(newest) as root, manifest.opened(path) as reader:
            drawn = (
                _few(reader, tree.fstype)
                if share is None
                else part(lambda: reader, share, chance())
            )
            for record in drawn:
                passed(0)
                verification.check(root, newest, record)
    except (_Enough, Cancelled):
        pass
    except ManifestDamaged:
        return  # the computer's copy, which the next run makes anew
    _tell(verification, versions, name, control)


def _tell(
    verification: Verification,
    versions: list[Version],
    name: str,
    control: Control,
) -> None:
    damages = verification.damages
    if not damages:
        if verification.files:
            read = f"{count(verification.files, 'file')} ({size(verification.readback.size)})"
            control.say(f"read back from the drive: {read}; none is damaged.")
        return
    verification.readback.passed = lambda _length: None
    verification.find_copies(versions[::-1], Manifests(name, control).records)
    for damage in damages.values():
        control.warn(damage.sentence(name), "damaged", many=True)
    control.warn(f"Read all of it back: cryptback verify {name} --full", "damaged")


def _few(reader: manifest.Reader, fstype: str) -> Iterator[Record]:
    """A few files, found without reading the whole manifest."""
    luck = chance()
    smallest = _INLINE if fstype == "btrfs" else 0
    seen: set[bytes] = set()
    spare: Record | None = None
    left = BYTES
    for raw in _random(reader, luck):
        record = Record.parse(raw)
        if record.kind != "f" or record.xxh128 is None or record.path in seen:
            continue
        if not smallest < record.size <= left:
            spare = spare or record
            continue
        seen.add(record.path)
        left -= record.size
        yield record
        if len(seen) == FILES:
            return
    if not seen and spare is not None and spare.size <= left:
        yield spare


def _random(reader: manifest.Reader, luck: random.Random) -> Iterator[bytes]:
    """Records by chance: each is as likely as any other."""
    if not reader.records:
        return
    weights = [block.records for block in reader.blocks]

    # A small manifest has few blocks: each is drawn from many times.
    @functools.lru_cache(maxsize=8)
    def records(block: Block) -> list[bytes]:
        return reader.text(block)[:-1].split(b"\0")

    for block in luck.choices(reader.blocks, weights, k=_TRIES):
        yield luck.choice(records(block))
