"""What a quick run is decided by: differences, changes, and whether there may be one."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptbackd import manifest, manifest_writing
from cryptbackd.manifest import Record
from cryptbackd.model import LedgerEntry
from cryptbackd.worker.control import Control
from cryptbackd.worker.inventory import transfers
from cryptbackd.worker.quick import changes as changes_
from cryptbackd.worker.quick import difference as difference_
from cryptbackd.worker.quick.changes import Changes, changes
from cryptbackd.worker.quick.difference import Difference, TooMany, difference
from cryptbackd.worker.quick.large import LARGE
from cryptbackd.worker.quick.proof import Circumstances, why_full
from cryptbackd.worker.quick.run import is_kept, keep_whole
from cryptbackd.worker.quick.transfer import Place, is_there
from cryptbackd.worker.quick.within import within
from cryptbackd.worker.recording import Recording
from cryptbackd.worker.rsync_job import Job, Received
from cryptbackd.worker.versions.ahead import merged
from cryptbackd.worker.versions.record import Version

NAMES = st.sampled_from([b"a", b"b", b"a.txt", b"a b", b".a", b"\xff\n"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(b"/".join)
RECORDS = st.builds(
    Record,
    PATHS,
    st.sampled_from("fdl"),
    st.integers(0, 3),
    st.integers(0, 2),
    st.one_of(st.none(), st.integers(0, 2)),
    st.one_of(st.none(), st.integers(1, 3)),
    st.just(0o644),
    st.just(0),
    st.just(0),
    st.integers(1, 3),
    st.sampled_from([None, "0" * 31 + "1"]),
    st.just(b""),
)
TREES = st.dictionaries(PATHS, RECORDS, max_size=40).map(
    lambda found: {path: record._replace(path=path) for path, record in found.items()}
)


def in_order(tree: dict[bytes, Record]) -> list[Record]:
    return sorted(tree.values(), key=lambda record: manifest.key(record.path))


def listing(where: Path, tree: dict[bytes, Record]) -> Path:
    out = where / "listing"
    out.write_bytes(b"".join(r._replace(xxh128=None).raw() + b"\0" for r in in_order(tree)))
    return out


@given(TREES, TREES, st.integers(100, 2000))
def test_a_difference_has_what_differs_and_all_names_of_a_file(
    tmp_path_factory: pytest.TempPathFactory,
    before: dict[bytes, Record],
    now: dict[bytes, Record],
    block: int,
) -> None:
    place = tmp_path_factory.mktemp("difference")
    # A listing knows everything but checksums.
    now = {
        path: record._replace(ctime_ns=record.ctime_ns or 0, inode=record.inode or 9, xxh128=None)
        for path, record in now.items()
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest_writing, "_BLOCK", block)
        manifest_writing.write(place / "manifest", in_order(before))
    with manifest.opened(place / "manifest") as reader:
        found = difference(listing(place, now), reader)

    plain = {path: record._replace(xxh128=None) for path, record in before.items()}
    other = {p for p in plain.keys() | now.keys() if plain.get(p) != now.get(p)}
    several = {now[p].inode for p in other if p in now and now[p].nlink > 1 and now[p].kind != "d"}
    named = {p for p, r in now.items() if r.inode in several and r.nlink > 1 and r.kind != "d"}
    surely = {p for p in named if _has_more_names(now, other, now[p])}
    assert other <= found.before.keys() | found.now.keys() <= other | named
    assert surely <= found.now.keys()
    for path, raw in found.before.items():
        assert Record.parse(raw) == before[path]
    for path, raw in found.now.items():
        assert Record.parse(raw) == now[path]


def _has_more_names(now: dict[bytes, Record], other: set[bytes], record: Record) -> bool:
    same = [p for p in other if p in now and now[p].inode == record.inode]
    names = [p for p in same if now[p].nlink > 1 and now[p].kind != "d"]
    return bool(names) and len(names) < min(now[p].nlink for p in names)


def test_too_much_is_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(difference_, "MOST", 10)
    manifest_writing.write(tmp_path / "manifest", [])
    now = {b"%d" % n: Record(b"%d" % n, "f", 0, 0, 0, 1, 0, 0, 0, 1) for n in range(11)}
    with manifest.opened(tmp_path / "manifest") as reader, pytest.raises(TooMany):
        difference(listing(tmp_path, now), reader)


@given(TREES, TREES, st.integers(100, 2000))
def test_a_changed_manifest_is_the_one_that_would_be_written(
    tmp_path_factory: pytest.TempPathFactory,
    before: dict[bytes, Record],
    now: dict[bytes, Record],
    block: int,
) -> None:
    place = tmp_path_factory.mktemp("changed")
    told: dict[bytes, bytes | None] = {
        path: now[path].raw() if path in now else None
        for path in before.keys() | now.keys()
        if before.get(path) != now.get(path)
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest_writing, "_BLOCK", block)
        manifest_writing.write(place / "old", in_order(before))
        with manifest.opened(place / "old") as reader:
            written = manifest_writing.write_changed(place / "new", reader, told)
    assert list(manifest.read(place / "new")) == in_order(now)
    assert written.records == len(now)
    with manifest.opened(place / "new") as reader:
        assert all(reader.get(path) == record for path, record in now.items())


def raw(path: bytes, kind: str = "f", inode: int = 1, nlink: int = 1) -> bytes:
    return Record(path, kind, 0, 0, 0, inode, 0o644, 0, 0, nlink).raw()


def wanted(before: list[bytes], now: list[bytes], *sources: str) -> Changes:
    found = Difference()
    found.add(before, now)
    return changes(found, sources or ("/",), (), Path("/nonexistent"), "/usr/bin/rsync")


def test_what_is_gone_or_of_another_kind_is_removed_once_and_as_a_whole() -> None:
    told = wanted(
        [raw(b"a", "d"), raw(b"a/b", "d"), raw(b"a/b/c"), raw(b"kind", "d"), raw(b"kind/x")],
        [raw(b"kind"), raw(b"new")],
    )
    assert told.remove == (b"a", b"kind")
    assert told.transfer == (b"kind", b"new")


def test_a_directory_that_loses_something_is_looked_at() -> None:
    assert wanted([raw(b"d/x")], []).transfer == (b"d",)


def test_directories_above_the_sources_are_looked_at_and_never_removed() -> None:
    told = wanted([raw(b"home", "d")], [], "/home/me/files", "/etc")
    assert told.remove == ()
    assert told.transfer == (b"home", b"home/me")
    assert told.above == (b"home", b"home/me")


@pytest.mark.parametrize(
    ("change", "there"),
    [
        (lambda _source, _target: None, True),
        # Every copy changes it.
        (lambda _source, target: os.utime(target, (5, 5)), True),
        (lambda source, _target: source.chmod(0o700), False),
        (lambda source, _target: os.utime(source / "home", (5, 5)), False),
        (lambda source, _target: (source / "home").chmod(0o700), False),
        (lambda source, _target: os.setxattr(source / "home", "user.is", b"other"), False),
        (lambda _source, target: os.setxattr(target / "home", "user.is", b"other"), False),
        (lambda _source, target: (target / "home").rmdir(), False),
        (lambda source, target: link(target / "home", source / "home"), False),
    ],
)
def test_rsync_is_spared_where_the_directories_above_are_alike(
    tmp_path: Path, change: Callable[[Path, Path], object], there: bool
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    for side in (source, target):
        (side / "home").mkdir(parents=True)
        os.setxattr(side / "home", "user.is", b"the same")
        os.utime(side / "home", ns=(1, 1_000_000_001))
    change(source, target)
    place = Place((Job(source, target, (), ("/home/me",), ()),), tmp_path / "last", linked=False)
    with within(target) as found:
        assert is_there(place, wanted([], [], "/home/me"), found) is there
        assert not is_there(place, wanted([], [raw(b"home/me/new")], "/home/me"), found)
        assert not is_there(place, wanted([raw(b"home/me/old")], [], "/home/me"), found)


def link(name: Path, target: Path) -> None:
    name.rmdir()
    name.symlink_to(target)


@pytest.mark.parametrize("known", [True, False])
def test_what_was_half_written_or_lost_is_no_last_state_of_a_source_that_is_kept(
    tmp_path: Path, known: bool
) -> None:
    target, last = tmp_path / "current", tmp_path / "last"
    for tree in (target, last):
        (tree / "home/away").mkdir(parents=True)

    def write(path: Path, content: bytes, moment: int) -> None:
        path.write_bytes(content)
        os.truncate(path, LARGE + moment)
        os.utime(path, (moment, moment))

    for name in ("away/as-it-was", "away/half", "away/copied", "read"):
        write(last / "home" / name, b"before", 1)
    write(target / "home/away/as-it-was", b"before", 1)
    for name in ("away/half", "away/copied", "away/new", "away/new-half", "read"):
        write(target / "home" / name, b"now", 2)
    (target / "home/away/small").write_bytes(b"now")
    for name in ("away/lost", "lost"):
        (last / "home" / name).write_bytes(b"before")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for _made in range(2):  # nothing is missing the second time
        with transfers(tmp_path / "copied", "v1") as kept:
            pass
    with ours, theirs, transfers(tmp_path / "copied", "v1") as kept:
        kept.unbroken = known
        for path in (b"home/away/copied", b"home/away/new"):
            status = os.lstat(os.path.join(os.fsencode(target), path))
            kept.add(Received(path, b"1" * 32, status, status))
        kept.lose(b"home/away/lost")
        control = Control(ours)
        taken = Recording(tmp_path, kept, None, None, control)
        job = Job(tmp_path, target, (), ("/home",), ("/home/away", "/home/gone"))
        taken.lost = {b"home/lost", b"home/away/lost", b"home/away/lost-new"}
        sources = ["/home/away", "/home/gone"]
        for delete in (False, True):
            assert (target / "home/away/half").read_bytes()[:3] == b"now"
            place = Place((attrs.evolve(job, delete=delete),), last, linked=False)
            keep_whole(place, sources, taken, control)
    there = {path.name: path.read_bytes()[:6].rstrip(b"\0") for path in target.rglob("*/*/*")}
    assert there == {
        "as-it-was": b"before",
        "half": b"before",
        "copied": b"now",
        "new": b"now",
        "small": b"now",
        "lost": b"before",
        **({} if known else {"new-half": b"now"}),
    }
    assert (target / "home/read").read_bytes()[:3] == b"now"
    assert not (target / "home/lost").exists()
    assert os.stat(target / "home/away/half").st_mtime == 1


def test_too_many_changes_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes_, "MOST", 3)
    with pytest.raises(TooMany):
        wanted([], [raw(b"%d" % n) for n in range(4)])


LEDGER = LedgerEntry(3, "2026-11-24T10:00:00Z", "nonce", "sha")
RECORD: dict[str, Any] = {
    "sequence": 3,
    "nonce": "nonce",
    "entry": "toml",
    "sources": {"/home": "ext4:1"},
    "lists": {},
    "skipped_mounts": {"/home/mnt": ""},
    "warnings": [],
    "programs": {"cryptbackd": "1", "rsync": "3"},
    "since_full": 1,
}
FINE = Circumstances(
    ledger=LEDGER,
    last=Version(Path("/x") / LEDGER.version, RECORD, "sha"),
    entry="toml",
    sources={"/home": "ext4:1"},
    lists={},
    skipped=("/home/mnt",),
    untouched=True,
    programs={"cryptbackd": "1", "rsync": "3", "linux": "6"},
    every=20,
    asked_full=False,
    accept=False,
)


def test_where_nothing_is_in_doubt_a_run_may_be_quick() -> None:
    assert why_full(FINE) == ""


def record(**fields: object) -> Callable[[Circumstances], Circumstances]:
    def change(found: Circumstances) -> Circumstances:
        assert found.last is not None
        return attrs.evolve(found, last=attrs.evolve(found.last, record={**RECORD, **fields}))

    return change


def found(**fields: Any) -> Callable[[Circumstances], Circumstances]:
    return lambda circumstances: attrs.evolve(circumstances, **fields)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (found(asked_full=True), "asked for"),
        (found(last=None), "nothing is remembered"),
        (found(ledger=None), "nothing is remembered"),
        (found(ledger=attrs.evolve(LEDGER, record_sha256="x")), "not the one"),
        (found(ledger=attrs.evolve(LEDGER, sequence=2)), "not the one"),
        (found(accept=True), "accepted"),
        (found(entry="other"), "the entry was changed"),
        (found(sources={"/home": "ext4:2"}), "sources"),
        (found(lists={"/home/me/list": ["/x"]}), "sources"),
        (found(skipped=()), "mounted"),
        (found(untouched=False), "interrupted"),
        (found(programs={"cryptbackd": "2", "rsync": "3"}), "another version"),
        (found(programs={"cryptbackd": "1", "rsync": "4"}), "another version"),
        (found(every=2), "one in 2 runs"),
        (found(every=1), "every run"),
        (record(warnings=["x"]), "warnings"),
        (record(warnings=["x", "y"], doubts=["y"]), "warnings"),
        (record(since_full=None), "not known"),
        (record(since_full="1"), "not known"),
        (record(since_full=19), "one in 20"),
        (record(programs=None), "another version"),
    ],
)
def test_in_any_doubt_a_run_compares_in_full(
    change: Callable[[Circumstances], Circumstances], why: str
) -> None:
    assert why in why_full(change(FINE))


def test_a_warning_that_leaves_no_doubt_of_the_drive_is_no_reason() -> None:
    assert why_full(record(warnings=["x"], doubts=[])(FINE)) == ""


@given(TREES, TREES)
def test_what_a_source_that_is_not_read_has_on_the_drive_is_no_difference(
    tmp_path_factory: pytest.TempPathFactory, before: dict[bytes, Record], now: dict[bytes, Record]
) -> None:
    place = tmp_path_factory.mktemp("kept")
    now = {path: record for path, record in now.items() if not path.startswith(b"a/")}
    manifest_writing.write(place / "manifest", in_order(before))
    kept = is_kept(["/a", "/a/b/c", "/b"], ["/", "/a/b"])
    with manifest.opened(place / "manifest") as reader:
        found = difference(listing(place, now), reader, kept)
        every = difference(listing(place, now), reader)
    stays = {
        path
        for path in before
        if path.split(b"/")[0] in (b"a", b"b")
        and (path.split(b"/")[:2] != [b"a", b"b"] or path == b"a/b/c")
    }
    assert found.before.keys() == every.before.keys() - stays


def test_a_number_of_0_means_no_full_comparison_for_its_own_sake() -> None:
    assert why_full(attrs.evolve(FINE, every=0)) == ""


def test_what_lies_close_together_is_read_at_one_go() -> None:
    far = 1 << 20
    ranges = [(far, far + 10), (0, 10), (20, 30), (5, 12), (30 + (64 << 10), 200 << 10)]
    assert list(merged(ranges)) == [(0, 200 << 10), (far, far + 10)]
    assert list(merged([])) == []
