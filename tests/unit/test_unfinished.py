"""What is done about a change of length that was cut off."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptbackd import paths
from cryptbackd.errors import DriveFailed
from cryptbackd.worker import superblock, unfinished
from cryptbackd.worker.layers import redo
from cryptbackd.worker.unfinished import Next, Note, Stage

MIB = 1 << 20
SIZES = st.integers(0, 1 << 40)


def note(before: int, after: int, stage: Stage) -> Note:
    return Note("uuid", before, after, stage)


@given(SIZES, SIZES, st.sampled_from(list(Stage)), SIZES, SIZES)
def test_nothing_of_the_filesystem_is_cut_off(
    before: int, after: int, stage: Stage, file: int, needed: int
) -> None:
    verdict, length = unfinished.decide(note(before, after, stage), file, needed)
    if verdict is Next.TRIM:
        assert needed <= length < file
        assert length in (before, after)
    else:
        assert length == file


@given(SIZES, SIZES, st.sampled_from(list(Stage)), SIZES, SIZES)
def test_cut_off_again_it_comes_to_the_same(
    before: int, after: int, stage: Stage, file: int, needed: int
) -> None:
    change = note(before, after, stage)
    _verdict, length = unfinished.decide(change, file, needed)
    assert unfinished.decide(change, length, needed)[1] == length


@pytest.mark.parametrize(
    ("stage", "file", "needed", "verdict"),
    [
        (Stage.FILLING, 100, 100, (Next.NOTHING, 100)),
        (Stage.FILLING, 150, 100, (Next.TRIM, 100)),
        (Stage.FILLING, 200, 100, (Next.TRIM, 100)),
        (Stage.FILLED, 200, 100, (Next.GROW, 200)),
        (Stage.FILLED, 200, 200, (Next.GROW, 200)),
        # What another computer has done with it meanwhile stays.
        (Stage.FILLING, 200, 200, (Next.NOTHING, 200)),
        (Stage.FILLING, 300, 100, (Next.NOTHING, 300)),
        # The drive lost the tail again.
        (Stage.FILLED, 150, 100, (Next.TRIM, 100)),
    ],
)
def test_growth(stage: Stage, file: int, needed: int, verdict: tuple[Next, int]) -> None:
    assert unfinished.decide(note(100, 200, stage), file, needed) == verdict


@pytest.mark.parametrize(
    ("file", "needed", "verdict"),
    [
        (200, 200, (Next.NOTHING, 200)),
        (200, 101, (Next.NOTHING, 200)),
        (200, 100, (Next.TRIM, 100)),
        (100, 100, (Next.NOTHING, 100)),
    ],
)
def test_shortening(file: int, needed: int, verdict: tuple[Next, int]) -> None:
    for stage in (Stage.SHRINKING, Stage.STAGED):
        assert unfinished.decide(note(200, 100, stage), file, needed) == verdict


def test_a_note_is_kept_until_it_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "STATE", tmp_path)
    unfinished.forget("home")
    assert unfinished.read("home", "uuid") is None
    kept = Note("uuid", 1, 2, Stage.MERGING, ("a", "b"))
    unfinished.write("home", kept)
    unfinished.staged("home").write_bytes(b"blocks")
    assert unfinished.read("home", "uuid") == kept
    assert unfinished.read("home", "other") is None
    assert paths.unfinished("home").stat().st_mode & 0o777 == 0o600
    unfinished.forget("home")
    assert list(paths.unfinished("home").parent.iterdir()) == []
    paths.unfinished("home").write_text('{"uuid": "uuid", "before"')
    assert unfinished.read("home", "uuid") is None


MAKE = {
    "ext4": ["mkfs.ext4", "-q", "-F"],
    "btrfs": ["mkfs.btrfs", "--quiet"],
    "xfs": ["mkfs.xfs", "-q"],
}


@pytest.mark.parametrize("fstype", MAKE)
def test_a_superblock_says_how_long_it_is(tmp_path: Path, fstype: str) -> None:
    """Of real filesystems."""
    program, *options = MAKE[fstype]
    found = shutil.which(program, path="/usr/sbin:/sbin:/usr/bin")
    assert found, f"{program} is not installed"
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(320 * MIB)
    subprocess.run([found, *options, str(image)], check=True)
    read = superblock.read(str(image), fstype)
    assert read.length == 320 * MIB
    if fstype == "ext4":
        assert 0 < read.used < 64 * MIB
    with pytest.raises(DriveFailed, match="There is no"):
        superblock.parse(bytes(4096), fstype)


def test_a_page_that_was_cut_off_is_known_by_its_sectors() -> None:
    old, new = "a b c d", "a x y d"
    for known in (old, new, "a b y d", "a x c d"):
        assert redo.is_among(known, (old, new))
    for changed in ("z b c d", "a z c d", "b a c d", "a x y y"):
        assert not redo.is_among(changed, (old, new))
