"""The computer's note of a change of length: after a power cut there may be anything in it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import attrs

from cryptbackd import paths
from cryptbackd.worker import unfinished
from cryptbackd.worker.layers import redo
from cryptbackd.worker.unfinished import Next, Note, Stage
from tests.fuzz import mutate
from tests.fuzz.fuzzer import Fuzzer

MIB = 1 << 20
_SECTORS = " ".join(["ab" * 32] * 8)
SAMPLES = tuple(
    json.loads(json.dumps(attrs.asdict(Note("uuid", before * MIB, after * MIB, stage, blocks))))
    for stage in Stage
    for before, after, blocks in ((100, 200, ()), (200, 100, (_SECTORS, _SECTORS)))
)


def check(raw: bytes) -> str:
    """It is none, or what was written; and never is a filesystem cut."""
    state = paths.STATE
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        paths.STATE = Path(folder)
        try:
            target = paths.unfinished("home")
            target.parent.mkdir()
            target.write_bytes(raw)
            note = unfinished.read("home", "uuid")
            if note is None:
                return "none"
            unfinished.write("home", note)
            assert unfinished.read("home", "uuid") == note
        finally:
            paths.STATE = state
    assert all(type(number) is int and 0 <= number < 2**63 for number in (note.before, note.after))
    for length in (50 * MIB, 100 * MIB, 150 * MIB, 200 * MIB, 300 * MIB):
        for needed in (0, 60 * MIB, 100 * MIB, 200 * MIB):
            verdict, goal = unfinished.decide(note, length, needed)
            if verdict is Next.TRIM:
                assert needed <= goal < length
            else:
                assert goal == length
    if redo.is_among(_SECTORS, note.superblocks):
        pages = [page.split() for page in note.superblocks]
        for at, sector in enumerate(_SECTORS.split()):
            assert sector in [page[at] for page in pages]
    assert not redo.is_among("", note.superblocks), "a container that was cut off"
    return note.stage.value


FUZZER = Fuzzer(
    "resize-notes",
    "the note of a change of the container's length that was cut off: `worker.unfinished`",
    mutate.json_bytes(SAMPLES),
    check,
)
