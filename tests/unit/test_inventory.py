"""What a version's manifest is made of: what is in the version, and nothing that is not known."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh128

from cryptbackd import manifest_writing, paths
from cryptbackd.manifest import Record
from cryptbackd.worker import recording, unsettled
from cryptbackd.worker.control import Control
from cryptbackd.worker.inventory import Inventory, Transfers, settle, transfers
from cryptbackd.worker.layers.mounted import Mounted
from cryptbackd.worker.listing import lines_of
from cryptbackd.worker.rsync_job import Received
from cryptbackd.worker.versions import copies, record
from cryptbackd.worker.versions.record import Version

ONE, TWO, THREE = (digit * 32 for digit in "123")


def file(path: str, **changed: object) -> Record:
    values: dict[str, object] = {
        "path": path.encode(), "kind": "f", "size": 5, "mtime_ns": 10**18, "ctime_ns": 2 * 10**18,
        "inode": 7, "mode": 0o644, "uid": 1000, "gid": 1000, "nlink": 1,
    }  # fmt: skip
    return Record(**{**values, **changed})  # type: ignore[arg-type]


class Status(NamedTuple):
    """What is looked at of a status."""

    st_size: int = 5
    st_mtime_ns: int = 10**18
    st_ctime_ns: int = 2 * 10**18
    st_ino: int = 99
    st_nlink: int = 1


def received(
    path: str, xxh128: str, copy: Status | None = None, source: Status | None = None
) -> Received:
    return Received(path.encode(), xxh128.encode(), copy or Status(), source or Status())  # type: ignore[arg-type]


def in_copy(record: Record, inode: int = 99) -> Record:
    """The same, as it is listed in the version."""
    return record._replace(ctime_ns=3 * 10**18, inode=inode, nlink=2, xxh128=None)


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Transfers]:
    # Twice, as after a version: nothing is missing in it.
    with transfers(tmp_path / "copied", "v1"):
        pass
    with transfers(tmp_path / "copied", "v1") as found:
        assert found.unbroken
        yield found


def made(
    kept: Transfers,
    tree: list[Record],
    *,
    sources: list[Record] | None = None,
    before: list[Record] | None = None,
    compared: bool = False,
    failed: tuple[str, ...] = (),
) -> dict[str, Record]:
    def lines(records: list[Record] | None) -> Iterator[bytes]:
        return iter(sorted(r.raw() for r in records or []))

    copied = iter(sorted(lines_of(kept.path)))
    inventory = Inventory(
        lines(sources),
        lines(tree),
        copied,
        lines(before),
        kept,
        compared=compared,
        failed=[os.fsencode(path) for path in failed],
    )
    raws = list(inventory)
    completed = inventory.completed(raws)
    found = map(Record.parse, raws if completed is None else completed)
    return {os.fsdecode(each.path): each for each in found}


def test_what_was_copied_has_the_checksum_of_the_copy(kept: Transfers) -> None:
    kept.add(received("a", ONE))
    kept.add(received("a", TWO))  # rsync tried again
    kept.add(received("ab", THREE))
    source = file("a")
    assert made(kept, [in_copy(source)], sources=[source, file("gone")]) == {
        "a": source._replace(xxh128=TWO)
    }


def test_what_was_not_copied_is_what_it_was(kept: Transfers) -> None:
    source = file("a")
    was = source._replace(xxh128=ONE)
    assert made(kept, [in_copy(source)], sources=[source], before=[was]) == {"a": was}
    # Its mode alone was changed, and so its ctime: the content may have been, too.
    source = file("a", mode=0o600, ctime_ns=5 * 10**18)
    found = made(kept, [in_copy(source)], sources=[source], before=[was])["a"]
    assert found == source._replace(xxh128=ONE, ctime_ns=None, inode=None)
    # A comparison of contents has shown that it was not.
    found = made(kept, [in_copy(source)], sources=[source], before=[was], compared=True)["a"]
    assert found == source._replace(xxh128=ONE)


def test_what_has_no_checksum_although_it_was_read_is_noted(kept: Transfers) -> None:
    fresh, failed, twin = file("a"), file("b", inode=8), file("c", inode=9, nlink=2)
    old, away = file("o", inode=10), file("v/gone", inode=11)
    kept.add(received("d", TWO, Status(st_ino=50, st_nlink=2), Status(st_nlink=2)))
    tree = [in_copy(fresh), in_copy(failed), in_copy(twin, 50), in_copy(old), in_copy(away)]
    inventory = Inventory(
        iter(each.raw() for each in (fresh, failed, twin, old)),
        iter(each.raw() for each in tree),
        iter(()),
        iter((old.raw(), away.raw())),  # old's was not known in the version before
        kept,
        compared=False,
        failed=[b"b"],
    )
    inventory.completed(list(inventory))
    assert inventory.unsummed == {b"a": 5, b"o": 5}


def test_what_changed_since_it_was_listed_is_not_taken_for_known(kept: Transfers) -> None:
    kept.add(received("a", ONE, source=Status(st_ctime_ns=2 * 10**18 + 1)))
    kept.add(received("b", TWO, Status(st_size=6)))
    found = made(
        kept, [in_copy(file("a")), in_copy(file("b", size=6))], sources=[file("a"), file("b")]
    )
    assert found["a"] == file("a", xxh128=ONE, ctime_ns=None, inode=None)
    assert found["b"] == file("b", xxh128=TWO, ctime_ns=None, inode=None, size=6)


def test_what_failed_is_looked_at_again_although_it_looks_the_same(kept: Transfers) -> None:
    was = file("a", xxh128=ONE)
    for compared in (False, True):
        told = made(
            kept,
            [in_copy(was)],
            sources=[was._replace(xxh128=None)],
            before=[was],
            compared=compared,
            failed=("a",),
        )
        assert told["a"] == was._replace(ctime_ns=None, inode=None)


def test_a_source_that_was_not_read_keeps_all_that_is_known_of_it(kept: Transfers) -> None:
    was = file("kept/a", xxh128=ONE)
    assert made(kept, [in_copy(was)], before=[was]) == {"kept/a": was}
    # What was never recorded is there, too.
    found = made(kept, [in_copy(was)])
    assert found == {"kept/a": file("kept/a", ctime_ns=None, inode=None)}


def test_a_checksum_is_not_handed_on_where_copies_were_forgotten(tmp_path: Path) -> None:
    was = file("a", xxh128=ONE)
    changed = file("a", ctime_ns=5 * 10**18)
    with transfers(tmp_path / "copied", "v2") as kept:
        assert not kept.unbroken
        found = made(kept, [in_copy(changed)], sources=[changed], before=[was])["a"]
        assert found.xxh128 is None
        assert made(kept, [in_copy(was)], sources=[was._replace(xxh128=None)], before=[was]) == {
            "a": was
        }


def test_other_names_of_a_file_have_its_checksum(kept: Transfers) -> None:
    linked = Status(st_nlink=3)
    kept.add(received("m", ONE, source=linked))
    sources = [file(name, nlink=3) for name in ("a", "m", "z")]
    tree = [in_copy(each) for each in sources]
    found = made(kept, tree, sources=sources)
    assert [found[name].xxh128 for name in ("a", "m", "z")] == [ONE] * 3
    assert found["a"].nlink == 3
    # A name that is new, and comes before the one that was there.
    was = file("m", xxh128=TWO)
    sources = [file("a", nlink=2, inode=8), file("m", nlink=2, inode=8)]
    tree = [in_copy(each, inode=55) for each in sources]
    found = made(kept, [tree[0]], sources=sources, before=[was])
    assert found["a"].xxh128 is None
    with transfers(kept.path.with_name("others"), "v1"):
        pass
    with transfers(kept.path.with_name("others"), "v1") as others:
        found = made(others, tree, sources=sources, before=[was])
        assert [found[name].xxh128 for name in ("a", "m")] == [TWO] * 2


def test_an_interruption_loses_no_checksum(tmp_path: Path) -> None:
    with transfers(tmp_path / "copied", "v1") as kept:
        kept.add(received("a", ONE, Status(st_ino=50), Status(st_nlink=2)))
        kept.add(received("b", ONE))
    with transfers(tmp_path / "copied", "v1") as kept:
        kept.add(received("b", TWO))
        assert kept.unbroken
        sources = [file("a", nlink=2), file("b"), file("c", nlink=2)]
        tree = [in_copy(sources[0], 50), in_copy(sources[1]), in_copy(sources[2], 50)]
        found = made(kept, tree, sources=sources)
        assert [found[name].xxh128 for name in "abc"] == [ONE, TWO, ONE]
    # After another version it is of no use any more.
    with transfers(tmp_path / "copied", "v2") as kept:
        assert list(lines_of(kept.path)) == [b"//v2"]


@pytest.mark.parametrize("rest", [b"c", b"c//000000000000012 5 1", bytes(9), b"c//1 2 3\0d//"])
def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path, rest: bytes) -> None:
    path = tmp_path / "copied"
    with transfers(path, "v1") as kept:
        kept.add(received("a", ONE))
        kept.add(received("b", TWO, Status(st_ino=50), Status(st_nlink=2)))
    lines = list(lines_of(path))
    path.write_bytes(path.read_bytes() + rest)
    with transfers(path, "v1") as kept:
        assert not kept.unbroken
        kept.add(received("d", THREE))
    with transfers(path, "v1") as kept:
        assert list(kept.linked) == [50]
        assert list(lines_of(path))[:-1] == lines
        assert made(kept, [in_copy(file("d"))], sources=[file("d")])["d"].xxh128 == THREE


def test_what_may_not_be_on_the_drive_is_the_last_that_was_copied(tmp_path: Path) -> None:
    path = tmp_path / "copied"

    def unsettled(most: int = 1 << 20) -> list[bytes]:
        with transfers(path, "v1") as kept:
            return [each.path for each in kept.unsettled(most)]

    assert unsettled() == []
    with transfers(path, "v1") as kept:
        for name in "abc":
            kept.add(received(name, ONE, Status(st_size=100_000)))
    assert unsettled() == [b"a", b"b", b"c"]
    assert unsettled(150_000) == [b"b", b"c"]
    settle(path)
    assert unsettled() == []
    with transfers(path, "v1") as kept:
        assert kept.unbroken
        kept.add(received("d", ONE))
    assert unsettled() == [b"d"]


def test_what_did_not_reach_the_drive_is_no_copy(tmp_path: Path) -> None:
    """It has its length and time, and zeros in it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    tree = tmp_path / "tree"
    tree.mkdir()
    written = {name: os.urandom(5000) for name in ("whole", "zeros", "other", "gone")}
    with ours, theirs, transfers(tmp_path / "copied", "v1") as kept:
        for name, content in written.items():
            (tree / name).write_bytes(content)
            os.utime(tree / name, ns=(0, 10**18))
            kept.add(received(name, xxh128(content).hexdigest(), Status(st_size=5000)))
        (tree / "gone").unlink()
        (tree / "zeros").write_bytes(bytes(5000))
        (tree / "more").mkdir()
        os.link(tree / "zeros", tree / "more" / "name")
        os.utime(tree / "zeros", ns=(0, 10**18))
        (tree / "other").write_bytes(b"changed later")  # which the copy sees
        control = Control(ours)
        taken = recording.Recording(tmp_path, kept, None, None, control)
        mounted = Mounted(tree, -1, "ext4", "The container's filesystem")
        unsettled.put_right([tree], taken, mounted, control)
        assert {path.name for path in tree.rglob("*")} == {"whole", "other", "more"}
        assert taken.lost == {b"zeros", b"more/name"}

        # Of the version before, with the same size and time: an edit that put that back.
        was = [file(name, size=5000, ctime_ns=1, xxh128=THREE) for name in sorted(written)]
        now = [each._replace(ctime_ns=2 * 10**18) for each in was]
        found = made(kept, list(map(in_copy, now)), sources=now, before=was)
        known = {name for name, each in found.items() if each.ctime_ns is not None}
        assert known == {"whole"}
        assert {name: each.xxh128 for name, each in found.items()} == {
            "whole": xxh128(written["whole"]).hexdigest(),
            **dict.fromkeys(("gone", "other", "zeros")),
        }
        assert [each.path for each in kept.unsettled(1 << 20)] == list(map(os.fsencode, written))


NAMES = st.lists(
    st.sampled_from(["a", "a b", "a-", "b", "é", "\udcff", "\n"]), min_size=1, max_size=3
)
PATHS = st.sets(NAMES.map("/".join), max_size=12)


@given(PATHS, PATHS, PATHS, st.integers(0, 99))
def test_every_path_of_the_version_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory,
    tree: set[str],
    sources: set[str],
    before: set[str],
    seed: int,
) -> None:
    dice = random.Random(seed)

    def records(paths: set[str]) -> list[Record]:
        return [
            file("x", size=dice.randrange(2), xxh128=dice.choice([None, ONE]))._replace(
                path=os.fsencode(p)
            )
            for p in paths
        ]

    place = tmp_path_factory.mktemp("lists")
    with transfers(place / "copied", "v1") as kept:
        for path in before:
            if dice.randrange(2):
                item = received("x", TWO, Status(st_size=dice.randrange(2)))
                kept.add(item._replace(path=os.fsencode(path)))
        found = made(kept, records(tree), sources=records(sources), before=records(before))
    assert set(found) == tree


# The copies on the computer.


@attrs.define
class Place:
    """A container's versions and a catalogue."""

    directory: Path
    catalogue: Path
    control: Control
    warned: list[str]

    def make(self, number: int, *records: Record, same_as: Version | None = None) -> Version:
        name = f"2026-11-2{number}T10:00:00Z"
        path = self.directory / f"{name}.manifest"
        written = manifest_writing.write(path, records)
        aside = self.catalogue.parent
        told = recording.Recording(aside, None, None, same_as, self.control).described(
            path, written
        )
        version = record.write(self.directory, name, {"sequence": number, **told})
        version.path.mkdir()
        return version

    def bring_in_line(self) -> None:
        copies.bring_in_line("home", record.versions(self.directory), self.control)

    def there(self) -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in self.catalogue.iterdir() if p.name[0] != "."}

    def wanted(self) -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in self.directory.iterdir() if p.is_file()}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setattr(paths, "CATALOGUE", tmp_path / "catalogue")
    (tmp_path / "versions").mkdir()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        control = Control(ours)
        yield Place(tmp_path / "versions", tmp_path / "catalogue/home", control, control.warnings)


def test_the_catalogue_holds_what_the_drive_does(place: Place) -> None:
    first = place.make(1, file("a", xxh128=ONE))
    place.make(2, file("b"))
    place.bring_in_line()
    assert place.there() == place.wanted()
    assert {p.stat().st_mode & 0o777 for p in place.catalogue.iterdir()} == {0o600}
    assert place.catalogue.stat().st_mode & 0o777 == 0o700
    first.path.rmdir()
    record.tidy(place.directory)
    place.bring_in_line()
    assert sorted(place.there()) == ["2026-11-22T10:00:00Z.json", "2026-11-22T10:00:00Z.manifest"]
    assert place.there() == place.wanted()
    assert not place.warned


def test_what_is_lost_or_damaged_on_one_side_comes_from_the_other(place: Place) -> None:
    version = place.make(1, file("a", xxh128=ONE))
    place.make(2, file("b"))
    place.bring_in_line()
    wanted = place.there()
    name = version.path.name
    for harm in (b"", b"x" * len(wanted[f"{name}.manifest"]), None):
        copy = place.catalogue / f"{name}.manifest"
        copy.write_bytes(harm) if harm is not None else copy.unlink()
        place.bring_in_line()
        assert place.there() == wanted
    (place.catalogue / f"{name}.json").write_text("{}")
    (place.catalogue / "strange").write_text("")
    (place.catalogue / ".checked").write_text("[]")
    version.manifest_path.unlink()
    place.bring_in_line()
    assert place.there() == wanted == place.wanted()
    version.manifest_path.write_bytes(b"short")
    place.bring_in_line()
    assert place.there() == wanted == place.wanted()
    assert not place.warned
    version.manifest_path.unlink()
    (place.catalogue / f"{name}.manifest").unlink()
    place.bring_in_line()
    assert len(place.warned) == 1
    assert name in place.warned[0]


def test_a_version_in_which_nothing_changed_takes_no_room(place: Place) -> None:
    first = place.make(1, file("a", xxh128=ONE))
    second = place.make(2, file("a", xxh128=ONE), same_as=first)
    assert first.manifest == second.manifest
    assert first.manifest_path.stat().st_ino == second.manifest_path.stat().st_ino
    place.bring_in_line()
    inodes = {p.stat().st_ino for p in place.catalogue.glob("*.manifest")}
    assert len(inodes) == 1
    second.manifest_path.unlink()
    second.manifest_path.write_bytes(b"damaged")
    place.make(4, file("a", xxh128=ONE), same_as=second)
    place.bring_in_line()
    assert place.there() == place.wanted()
    assert not place.warned
    third = place.make(3, file("a", xxh128=TWO), same_as=second)
    assert third.manifest_path.stat().st_nlink == 1
    place.bring_in_line()
    assert place.there() == place.wanted()


def test_what_a_drive_shows_under_odd_names_is_not_taken(place: Place) -> None:
    version = place.make(1, file("a"))
    for name in (".checked", "a copy", "x" * 101):
        (place.directory / name).mkdir()
        (place.directory / f"{name}.json").write_bytes(
            version.path.with_name(f"{version.path.name}.json").read_bytes()
        )
    outside = place.directory.parent / "outside"
    outside.write_text("precious")
    place.bring_in_line()
    assert len(place.there()) == 2
    version.manifest_path.unlink()
    version.manifest_path.symlink_to(outside)
    place.bring_in_line()
    assert outside.read_text() == "precious"
    assert not version.manifest_path.is_symlink()
