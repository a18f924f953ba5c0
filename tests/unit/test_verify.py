"""What is read back: the choice by chance, what damage is told of, and where good copies are."""

from __future__ import annotations

import os
import random
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh128

from cryptbackd import catalogue, manifest_writing, paths
from cryptbackd.daemon import verification as asked
from cryptbackd.errors import Refused
from cryptbackd.manifest import Record
from cryptbackd.worker import spot
from cryptbackd.worker.control import Control
from cryptbackd.worker.damage import Verification, opened
from cryptbackd.worker.layers.mounted import Mounted
from cryptbackd.worker.readback import Readback, answers
from cryptbackd.worker.sample import draw, part
from cryptbackd.worker.versions.record import Version
from tests.unit.test_versions import Daemon

SIZES = st.lists(st.integers(0, 10_000), max_size=60)


@given(SIZES, st.integers(0, 100_000), st.integers())
def test_a_sample_has_a_file_and_is_no_larger_than_asked(
    sizes: list[int], budget: int, seed: int
) -> None:
    drawn = draw(sizes, budget, random.Random(seed))
    assert drawn == sorted(set(drawn))
    assert set(drawn) <= set(range(len(sizes)))
    assert bool(drawn) == bool(sizes)
    taken = sorted(sizes[index] for index in drawn)
    # The last one that was taken may be larger than what was left.
    assert sum(taken[:-1]) <= budget or len(drawn) == 1
    if budget >= sum(sizes):
        assert len(drawn) == len(sizes)


def test_a_sample_is_about_as_large_as_asked_and_large_files_are_drawn() -> None:
    sizes = [1000] * 900 + [100_000] * 10
    chance = random.Random(1)
    samples = [draw(sizes, 19_000, chance) for _ in range(400)]
    mean = sum(sizes[index] for drawn in samples for index in drawn) / len(samples)
    assert 15_000 < mean < 60_000
    assert any(index >= 900 for drawn in samples for index in drawn)


def regular(path: bytes, content: bytes, checksum: str | None = "") -> Record:
    known = xxh128(content).hexdigest() if checksum == "" else checksum
    return Record(path, "f", len(content), 1, 1, 1, 0o644, 0, 0, 1, known)


def test_a_part_has_only_regular_files() -> None:
    records = [Record(b"d", "d", 4096, 1, None, None, 0o755, 0, 0, 1)]
    records += [regular(b"d/%d" % number, b"x" * 100) for number in range(50)]
    chosen = list(part(lambda: [each.raw() for each in records], 0.1, random.Random(1)))
    assert len(chosen) == 5
    assert {each.kind for each in chosen} == {"f"}


@attrs.define
class Drive:
    """Versions in a directory, and what was once written into them."""

    root: Path
    versions: list[Version] = attrs.field(factory=list)
    records: dict[str, list[Record]] = attrs.field(factory=dict)

    def version(self, name: str, files: dict[str, bytes], link: tuple[str, ...] = ()) -> Version:
        tree = self.root / name
        records = []
        for path, content in sorted(files.items()):
            file = tree / path
            file.parent.mkdir(parents=True, exist_ok=True)
            if path in link:
                os.link(self.versions[-1].path / path, file)
            else:
                file.write_bytes(content)
            records.append(regular(path.encode(), content))
        made = Version(tree, {"sequence": len(self.versions) + 1, "nonce": ""}, "")
        self.versions.append(made)
        self.records[name] = records
        return made

    def verify(self, *versions: Version, remember: bool = False) -> Verification:
        readback = Readback("ext4", (), lambda _length: None)
        seen = Verification("ext4", readback, remember=remember)
        for version in versions:
            with opened(version) as root:
                for each in self.records[version.path.name]:
                    seen.check(root, version, each)
        seen.find_copies(
            self.versions[::-1],
            lambda version: [each.raw() for each in self.records[version.path.name]],
        )
        return seen


@pytest.fixture
def drive(tmp_path: Path) -> Drive:
    return Drive(tmp_path)


def damage(version: Version, path: str) -> None:
    """Change a byte, as a drive does: silently, in place."""
    with (version.path / path).open("r+b") as file:
        byte = file.read(1)
        file.seek(0)
        file.write(bytes([byte[0] ^ 1]))


A, B = b"first " * 1000, b"other " * 1000


def test_what_is_sound_is_read_once(drive: Drive) -> None:
    one = drive.version("one", {"a": A, "b": B})
    two = drive.version("two", {"a": A, "b": B, "empty": b""}, link=("a", "b"))
    seen = drive.verify(two, one, remember=True)
    assert seen.damages == {}
    assert seen.files == 3
    assert seen.readback.size == len(A) + len(B)


def test_the_same_inode_is_the_same_damage(drive: Drive) -> None:
    one = drive.version("one", {"a": A})
    drive.version("two", {"a": A}, link=("a",))
    three = drive.version("three", {"a": A})
    four = drive.version("four", {"a": A}, link=("a",))
    damage(four, "a")
    (found,) = drive.verify(four).damages.values()
    assert found.versions == ["four", "three"]
    assert [(copy.version, copy.same) for copy in found.copies] == [("two", True), ("one", True)]
    assert found.sentence("home") == (
        '"/a" is damaged in four, three: its content is not what was backed up.'
        " The same content is good in two, one: cryptback restore home /a --at two"
    )
    damage(one, "a")
    found, older = drive.verify(three).damages.values()
    assert (found.versions, older.versions) == (["three", "four"], ["two", "one"])
    assert found.copies == older.copies == []
    assert found.sentence("home").endswith("No version has a good copy.")


def test_the_same_content_elsewhere_and_another_state_are_named(drive: Drive) -> None:
    drive.version("one", {"a": A})
    two = drive.version("two", {"a": B, "it's": B})
    damage(two, "a")
    (found,) = drive.verify(two).damages.values()
    assert found.sentence("home").endswith(
        "The same content is good as \"/it's\": cryptback restore home '/it'\"'\"'s' --at two"
    )
    damage(two, "it's")
    found = drive.verify(two).damages[b"a", (two.path / "a").stat().st_ino]
    assert found.sentence("home").endswith(
        "It is good, in another state, in one: cryptback restore home /a --at one"
    )
    assert found.values()["good"] == [{"version": "one", "path": "/a", "same": False}]


def test_what_is_missing_or_of_another_kind_is_damage(drive: Drive) -> None:
    one = drive.version("one", {"a/b": A, "c": A, "link": A})
    (one.path / "a/b").unlink()
    (one.path / "c").unlink()
    (one.path / "c").mkdir()
    (one.path / "link").unlink()
    (one.path / "link").symlink_to("/etc/passwd")
    found = {each.path: each.why for each in drive.verify(one).damages.values()}
    assert found == {
        b"a/b": "it is not there",
        b"c": "it is another kind of file than was backed up",
        b"link": "it is another kind of file than was backed up",
    }


def test_no_link_is_followed_out_of_a_version(drive: Drive, tmp_path: Path) -> None:
    one = drive.version("one", {"a/b": A})
    (one.path / "a").rename(tmp_path / "outside")
    (one.path / "a").symlink_to(tmp_path / "outside")
    (found,) = drive.verify(one).damages.values()
    assert found.why == "it is not there"


def test_without_a_checksum_there_is_nothing_to_compare(drive: Drive) -> None:
    one = drive.version("one", {"a": A})
    drive.records["one"] = [regular(b"a", A, None)]
    damage(one, "a")
    seen = drive.verify(one)
    assert (seen.files, seen.unknown, seen.damages) == (1, 1, {})
    # The same file of another version is not counted once more, as it is not read.
    two = drive.version("two", {"a": A}, link=("a",))
    drive.records["two"] = drive.records["one"]
    seen = drive.verify(one, two)
    assert (seen.files, seen.unknown) == (1, 1)


def test_content_is_read_past_the_cache_in_pieces_of_any_length(tmp_path: Path) -> None:
    root = os.open(tmp_path, os.O_RDONLY)
    try:
        for length in (0, 1, 4095, 4096, 4097, (2 << 20) - 1, 2 << 20, (2 << 20) + 1, 5 << 20):
            content = random.Random(length).randbytes(length)
            (tmp_path / "file").write_bytes(content)
            for fstype in ("ext4", "btrfs"):
                read: list[int] = []
                back = Readback(fstype, (), read.append)
                assert back.digest(root, b"file") == xxh128(content).digest()
                assert sum(read) == back.size == length
    finally:
        os.close(root)


def test_what_is_no_device_does_not_answer(tmp_path: Path) -> None:
    assert not answers(str(tmp_path / "missing"))
    (tmp_path / "empty").touch()
    assert not answers(str(tmp_path / "empty"))


@pytest.mark.parametrize(
    "options",
    [
        {"full": True, "sample": 0.5},
        {"full": True, "at": "yesterday"},
        {"sample": 0.0},
        {"sample": 1.5},
        {"sample": 1},
        {"full": 1},
        {"other": True},
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(Refused):
        asked.check(options)
    asked.check({"full": True})
    asked.check({"sample": 0.05, "at": "yesterday"})


# After a run.


@attrs.frozen
class Run:
    """The end of a run that made the newest version of a drive."""

    drive: Drive
    control: Control
    daemon: Daemon

    def read_back(self, share: float | None, *, took: float = 60.0) -> list[str]:
        made = [self._recorded(version) for version in self.drive.versions]
        tree = Mounted(self.drive.root, -1, "ext4", "The filesystem")
        name = "home"
        spot.read_back(tree, made, name=name, share=share, took=took, control=self.control)
        return [text for text in self.daemon.told() if not text.startswith("(")]

    def _recorded(self, version: Version) -> Version:
        place = catalogue.make("home")
        written = manifest_writing.write(
            place / version.manifest_path.name, self.drive.records[version.path.name]
        )
        shutil.copyfile(place / version.manifest_path.name, version.manifest_path)
        record = {**version.record, "manifest_sha256": written.sha256}
        return attrs.evolve(version, record=record)


@pytest.fixture
def run(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    place = drive.root / "catalogue"
    place.mkdir()
    monkeypatch.setattr(paths, "CATALOGUE", place)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield Run(drive, Control(ours), Daemon(theirs))


def test_a_few_files_are_read_back_however_many_there_are(run: Run) -> None:
    run.drive.version("one", {f"d/{number}": b"%d" % number * 1000 for number in range(100)})
    (told,) = run.read_back(None)
    assert told.startswith("read back from the drive: 8 files (")
    (told,) = run.read_back(1.0)
    assert told.startswith("read back from the drive: 100 files (")
    (told,) = run.read_back(0.1)
    assert re.match(r"read back from the drive: ([5-9]|1\d) files \(", told)
    assert run.read_back(0) == []


def test_damage_in_a_sample_is_told_with_the_good_copies(run: Run) -> None:
    run.drive.version("one", {"a": A})
    damage(run.drive.version("two", {"a": A}), "a")
    for share in (None, 1.0):
        told = run.read_back(share)
        assert told == [
            '"/a" is damaged in two: its content is not what was backed up.'
            " The same content is good in one: cryptback restore home /a --at one",
            "Read all of it back: cryptback verify home --full",
        ]
        assert run.control.warnings[-2:] == told


def test_whoever_stops_the_run_ends_the_sample_and_not_the_version(run: Run) -> None:
    run.drive.version("one", {"a": A})
    run.daemon.stop()
    assert run.read_back(None) == []


def test_a_sample_takes_no_longer_than_a_part_of_the_run(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.drive.version("one", {"a": A})
    monkeypatch.setattr(spot, "_SHORT", 0.0)
    assert run.read_back(None, took=0.0) == []
    assert len(run.read_back(None, took=60.0)) == 1
