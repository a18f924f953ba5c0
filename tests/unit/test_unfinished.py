"""What is done about a change of length that was cut off."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptbackd import paths
from cryptbackd.errors import DriveFailed, Refused
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


MINE, OTHERS = (digit * 8 + "-0000-4000-8000-" + digit * 12 for digit in "ab")


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(paths, "STATE", tmp_path)
    monkeypatch.setattr(paths, "DRIVES_D", tmp_path)
    return tmp_path / "unfinished"


def left(name: str, uuid: str, stage: Stage = Stage.MERGING) -> Note:
    kept = Note(uuid, 2, 1, stage, ("a", "b"))
    unfinished.write(name, kept)
    unfinished.staged(name).write_text(f"blocks of {uuid}")
    return kept


def test_what_finishes_another_drive_is_set_aside_until_that_comes_back(state: Path) -> None:
    for name in ("home", "work"):
        (state.parent / f"{name}.toml").touch()
    others = left("home", OTHERS)
    assert unfinished.sort_out("home", MINE) == state / f"{OTHERS}.json"
    assert unfinished.read("home", MINE) is None
    unfinished.forget("home")
    mine = left("home", MINE)
    assert unfinished.sort_out("home", MINE) is None
    assert unfinished.read("home", MINE) == mine

    # Under another name, or under its own while that is taken.
    assert unfinished.sort_out("work", OTHERS) is None
    assert unfinished.read("work", OTHERS) == others
    assert unfinished.staged("work").read_text() == f"blocks of {OTHERS}"
    assert unfinished.sort_out("work", MINE) == state / f"{OTHERS}.json"
    assert unfinished.sort_out("home", OTHERS) == state / f"{MINE}.json"
    assert unfinished.read("home", OTHERS) == others
    assert unfinished.staged("home").read_text() == f"blocks of {OTHERS}"
    assert sorted(path.name for path in state.iterdir()) == [
        f"{MINE}.blocks", f"{MINE}.json", "home.blocks", "home.json",
    ]  # fmt: skip


def test_what_is_an_entrys_stays_its(state: Path) -> None:
    """A copy of the drive, which has the same UUID, is no reason to take it."""
    mine = left("home", MINE)
    (state.parent / "home.toml").touch()
    assert unfinished.sort_out("copy", MINE) is None
    assert unfinished.read("copy", MINE) is None
    (state.parent / "home.toml").unlink()
    assert unfinished.sort_out("copy", MINE) is None
    assert unfinished.read("copy", MINE) == mine


def test_a_move_that_was_cut_off_is_gone_on_with(state: Path) -> None:
    others = left("home", OTHERS)
    unfinished.staged("home").rename(unfinished.staged(OTHERS))
    assert unfinished.sort_out("home", MINE) == state / f"{OTHERS}.json"
    unfinished.staged(OTHERS).rename(unfinished.staged("home"))
    assert unfinished.sort_out("home", OTHERS) is None
    assert unfinished.read("home", OTHERS) == others
    assert unfinished.staged("home").read_text() == f"blocks of {OTHERS}"


def test_a_name_for_which_blocks_wait_is_not_given_to_another_drive(state: Path) -> None:
    unfinished.want_none("home")
    for stage in Stage:
        left("home", OTHERS, stage)
        if stage is not Stage.MERGING:
            unfinished.want_none("home")
            continue
        with pytest.raises(Refused, match="called home is half written to"):
            unfinished.want_none("home")
    left("home", OTHERS)
    paths.unfinished("home").write_text("{")
    with pytest.raises(Refused):
        unfinished.want_none("home")
    assert (state / "home.blocks").exists()


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
