"""A change of the container's length that is not through: the computer's note of it.

The note is there, durably, before the first byte of the drive is changed, and goes when the
last one is on the drive.  Whoever opens the drive next finds it, and :func:`decide` says what
is to be done; that holds however often it is cut off.

==========  ==================================================  ==============================
stage       what the drive may hold                             what the next one does
==========  ==================================================  ==============================
FILLING     a file with a part of its new tail; the filesystem  cuts the tail off: undone
            as before
FILLED      a file that is long enough to its end; the          makes the filesystem as long
            filesystem as before or longer                      as the file: done
STAGED      nothing new: what was changed is on the computer    throws that away: undone
MERGING     a filesystem that is partly the shorter one, the    writes the rest: goes on with
            rest of which is on the computer                    SHRINKING
SHRINKING   a filesystem as before or shorter, a file as        the filesystem is short: cuts
            before                                              the tail off: done; else: undone
==========  ==================================================  ==============================

The rest of a MERGING one is nowhere else: it is never thrown away because an entry's name has come
to be another drive's, but waits under the UUID of its volume.

A tail is only cut off behind the end of the filesystem, by what the filesystem itself says.  With
several files it may begin in any of them.
"""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from enum import Enum, StrEnum
from pathlib import Path

import attrs

from .. import foreign, paths
from ..errors import Refused
from .header import fsync_directory

_SECTORS = re.compile(r"[0-9a-f]+(?: [0-9a-f]+)*")
"""Hashes of the sectors of a page (``layers.redo``)."""
_UUID = re.compile(r"[0-9a-f-]{36}")
"""Longer than any name of an entry."""


class Stage(StrEnum):
    """How far it is."""

    FILLING = "filling"
    FILLED = "filled"
    STAGED = "staged"
    MERGING = "merging"
    SHRINKING = "shrinking"


@attrs.frozen
class Note:
    """From how many bytes to how many, of the container of the volume *uuid*.

    ``superblocks``: of a MERGING one, of the encrypted superblock before and after
    (``layers.redo``).
    """

    uuid: str
    before: int
    after: int
    stage: Stage
    superblocks: tuple[str, ...] = ()


class Next(Enum):
    """What is to be done."""

    NOTHING = "nothing"
    GROW = "grow"
    """Make the filesystem as long as the file."""
    TRIM = "trim"
    """Cut the file off."""


def decide(note: Note, length: int, needed: int) -> tuple[Next, int]:
    """What to do with a file of *length* bytes of which the filesystem needs *needed*.

    The number is what TRIM cuts the file down to.
    """
    if note.stage is Stage.FILLED and length >= note.after:
        return Next.GROW, length
    goal = note.before if note.stage in (Stage.FILLING, Stage.FILLED) else note.after
    # A file that is longer than we ever made it is somebody else's work.
    if needed <= goal < length <= max(note.before, note.after):
        return Next.TRIM, goal
    return Next.NOTHING, length


def write(name: str, note: Note) -> None:
    """Note it for the entry *name*, durably: whole or not at all."""
    target = paths.unfinished(name)
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = target.with_name(f".{target.name}.new")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w") as file:
        json.dump(attrs.asdict(note), file)
        file.flush()
        os.fsync(fd)
    fresh.rename(target)
    fsync_directory(target.parent)


def read(name: str, uuid: str) -> Note | None:
    """The note about the entry *name*, if it is about the volume *uuid*."""
    note = _read(name)
    return note if note is not None and note.uuid == uuid else None


def sort_out(name: str, uuid: str) -> Path | None:
    """Have the note of the entry *name* be that about the volume *uuid*, if there is one.

    What is about another volume is set aside under that one's UUID; returned is where the note
    lies then.  One that lies under what is no entry's name is that of whoever opens its volume.
    """
    note = _read(name)
    if note is not None and note.uuid == uuid:
        return None
    aside = None
    if note is not None and _UUID.fullmatch(note.uuid):
        _move(name, note.uuid)
        aside = paths.unfinished(note.uuid)
    for path in sorted(paths.unfinished(name).parent.glob("*.json")):
        note = _read(path.stem)
        is_entry = (paths.DRIVES_D / f"{path.stem}.toml").exists()
        if note is not None and note.uuid == uuid and not is_entry:
            _move(path.stem, name)
            break
    return aside


def want_none(name: str) -> None:
    """Raise Refused where the rest of a drive's container waits here under the name *name*."""
    note = _read(name)
    if staged(name).exists() and (note is None or note.stage is Stage.MERGING):
        raise Refused(
            f"A drive that was called {name} is half written to: a change of its length was cut"
            " off, and only this computer can finish it.",
            "Choose another name; or put that drive's entry back and plug it in, and the next run"
            " finishes it.",
        )


def _move(name: str, other: str) -> None:
    """The note last: cut off before, it is moved the next time."""
    for path in (staged, paths.unfinished):
        with suppress(FileNotFoundError):
            path(name).rename(path(other))
    fsync_directory(paths.unfinished(name).parent)


def _read(name: str) -> Note | None:
    try:
        raw = foreign.loads(paths.unfinished(name).read_bytes())
        return Note(
            str(raw["uuid"]),
            _length(raw["before"]),
            _length(raw["after"]),
            Stage(raw["stage"]),
            tuple(map(_hashes, raw["superblocks"])),
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _length(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError("no length")
    return value


def _hashes(value: object) -> str:
    if not isinstance(value, str) or _SECTORS.fullmatch(value) is None:
        raise ValueError("no hashes")
    return value


def forget(name: str) -> None:
    """It is through: nothing is left to be done about the entry *name*."""
    for path in (paths.unfinished(name), staged(name)):
        with suppress(FileNotFoundError):
            path.unlink()
    with suppress(FileNotFoundError):
        fsync_directory(paths.unfinished(name).parent)


def staged(name: str) -> Path:
    """Where the encrypted blocks are that a shorter filesystem has changed."""
    return paths.unfinished(name).with_suffix(".blocks")
