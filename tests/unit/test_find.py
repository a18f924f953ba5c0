"""Searching, seeing and comparing manifests, and what the command line makes of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptbackd import catalogue, manifest, manifest_writing, paths, query
from cryptbackd.changes import changes, compare
from cryptbackd.cli import find, versions
from cryptbackd.errors import Refused
from cryptbackd.manifest import Reader, Record
from cryptbackd.search import Pattern, Search
from cryptbackd.seeing import Seer
from cryptbackd.worker.manifests import total
from cryptbackd.worker.versions import record

ROOT = Seer(0, frozenset())
DAY = "2026-11-2{}T10:00:00Z"


def file(path: str, **changed: object) -> Record:
    values: dict[str, object] = {
        "path": os.fsencode(path), "kind": "f", "size": 5, "mtime_ns": 10**18,
        "ctime_ns": 2 * 10**18, "inode": hash(path) & 0xFFFF, "mode": 0o644, "uid": 1000,
        "gid": 1000, "nlink": 1, "xxh128": "1" * 32,
    }  # fmt: skip
    return Record(**{**values, **changed})  # type: ignore[arg-type]


def folder(path: str, mode: int = 0o755, **changed: object) -> Record:
    return file(path, kind="d", mode=mode, xxh128=None, **changed)


def ordered(records: list[Record]) -> list[Record]:
    return sorted(records, key=lambda each: manifest.key(each.path))


@contextmanager
def readers(place: Path, *trees: list[Record]) -> Iterator[list[Reader]]:
    with ExitStack() as stack:
        found: list[Reader] = []
        before: Path | None = None
        for number, tree in enumerate(trees):
            path = place / str(number)
            manifest_writing.write(path, ordered(tree), before)
            found.append(stack.enter_context(manifest.opened(path)))
            before = path
        yield found


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("port", "/home/me/Report.txt", True),
        ("PORT", "/home/me/report.txt", True),
        ("home", "/home/me/report.txt", False),
        ("*.txt", "/home/me/report.txt", True),
        ("re*", "/home/me/report.txt", True),
        ("port*", "/home/me/report.txt", False),
        ("r?port.[tT]xt", "/home/me/report.txt", True),
        ("/home/me/report.txt", "/home/me/report.txt", True),
        ("/home/me", "/home/me/report.txt", False),
        ("/home/*.txt", "/home/me/report.txt", True),
        ("me/report.txt", "/home/me/report.txt", True),
        ("e/report.txt", "/home/me/report.txt", False),
        ("me/*.txt", "/home/me/report.txt", True),
        ("a[b", "/home/a[b]", True),
        ("ÜBER", "/home/über", True),
        ("\udcff", "/home/x\udcff", True),
        ("*", "/home", True),
        ("me/", "/home/me", True),
    ],
)
def test_patterns(pattern: str, path: str, fits: bool) -> None:
    found = Pattern(pattern)
    assert found.fits(path) is fits
    if fits:
        assert found.literal in path.lower()


def test_a_search_tells_when_a_file_came_changed_and_went(tmp_path: Path) -> None:
    first = [folder("home"), file("home/a.txt"), file("home/b.txt")]
    second = [folder("home"), file("home/a.txt", size=6, xxh128="2" * 32)]
    third = [*second, file("home/c.txt")]
    search = Search(Pattern(".txt"), ROOT, 10)
    with readers(tmp_path, first, second, third) as found:
        for name, reader in zip("123", found, strict=True):
            search.look(name, reader)
    told = {
        os.fsdecode(path): [(state.versions, state.record[5]) for state in states]
        for path, states in search.found.paths.items()
    }
    assert told == {
        "home/a.txt": [(["1"], b"5"), (["2", "3"], b"6")],
        "home/b.txt": [(["1"], b"5")],
        "home/c.txt": [(["3"], b"5")],
    }
    search = Search(Pattern("*"), ROOT, 2)
    with readers(tmp_path, first) as found:
        search.look("1", found[0])
    assert len(search.found.paths) == 2
    assert search.found.more


ME, OTHER, GROUP = 1000, 2000, 3000


@pytest.mark.parametrize(
    ("uid", "groups", "sees"),
    [
        (ME, {ME}, {"a", "d/open", "p/mine", "p/q/deep"}),
        (OTHER, {OTHER}, {"a", "d/open"}),
        (OTHER, {OTHER, GROUP}, {"a", "d/open", "d/grouped"}),
        (0, set(), {"a", "d/open", "d/grouped", "p/mine", "p/q/deep", "lost/x"}),
    ],
)
def test_a_user_sees_what_they_could_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uid: int, groups: set[int], sees: set[str]
) -> None:
    monkeypatch.setattr(manifest_writing, "_BLOCK", 100)  # a directory may be in another block
    tree = [
        file("a"), folder("d"), file("d/open", uid=0), folder("p", 0o700), file("p/mine"),
        file("d/grouped", mode=0o040, uid=0, gid=GROUP), folder("p/q"), file("p/q/deep"),
        file("lost/x"), file("d/nobody's", mode=0o000, uid=0, gid=0),
    ]  # fmt: skip
    search = Search(Pattern("*"), Seer(uid, frozenset(groups)), 100)
    with readers(tmp_path, tree) as found:
        search.look("1", found[0])
    paths = {os.fsdecode(p) for p, s in search.found.paths.items() if s[0].record[0] == b"f"}
    assert paths - {"d/nobody's"} == sees
    assert ("d/nobody's" in paths) == (uid == 0)


def test_a_name_in_a_directory_that_can_not_be_read_is_shown_to_its_owner(tmp_path: Path) -> None:
    tree = [
        folder("home", 0o711, uid=0), folder("home/a", 0o711), file("home/a/known-to-few"),
        folder("home/a/also-known-to-few"), file("home/a/also-known-to-few/file"),
        folder("home/b", uid=OTHER), file("home/b/file", uid=OTHER), folder("open", uid=0),
        file("open/file"),
    ]  # fmt: skip
    seen = {}
    with readers(tmp_path, tree) as (reader,):
        for uid in (ME, OTHER):
            search = Search(Pattern("*"), Seer(uid, frozenset({uid})), 100)
            search.look("1", reader)
            found = search.found.paths.items()
            seen[uid] = {os.fsdecode(p) for p, states in found if states[0].record[0] == b"f"}
    assert seen[OTHER] == {"home/b/file", "open/file"}
    mine = {"home/a/known-to-few", "home/a/also-known-to-few/file"}
    assert seen[ME] == {*mine, "open/file"}


def test_a_deep_tree_hides_nothing_from_anybody(tmp_path: Path) -> None:
    deep = ["/".join(["d"] * depth) for depth in range(1, 1501)]
    tree = [*(folder(path) for path in deep), file(f"{deep[-1]}/invoice"), file("invoice")]
    search = Search(Pattern("invoice"), Seer(OTHER, frozenset({OTHER})), 100)
    with readers(tmp_path, tree) as (reader,):
        search.look("1", reader)
    assert {os.fsdecode(path) for path in search.found.paths} == {"invoice", f"{deep[-1]}/invoice"}


def test_what_is_hidden_in_one_version_may_be_seen_in_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest_writing, "_BLOCK", 100)
    files = [file(f"d/{number}") for number in range(9)]
    closed, opened = [folder("d", 0o700), *files], [folder("d"), *files]
    search = Search(Pattern("*"), Seer(OTHER, frozenset()), 100)
    with readers(tmp_path, closed, opened, closed) as found:
        for name, reader in zip("123", found, strict=True):
            search.look(name, reader)
    states = {path: states for path, states in search.found.paths.items() if path != b"d"}
    assert len(states) == 9
    assert {tuple(state.versions) for each in states.values() for state in each} == {("2",)}


NAMES = st.sampled_from(["a", "a-b", "b", "c d", "é"])
TREE = st.dictionaries(
    st.lists(NAMES, min_size=1, max_size=2).map("/".join),
    st.tuples(st.integers(0, 2), st.integers(0, 1)),
    max_size=10,
)


@given(TREE, TREE, st.integers(60, 400))
def test_changes_are_those_of_the_trees(
    tmp_path_factory: pytest.TempPathFactory,
    old: dict[str, tuple[int, int]],
    new: dict[str, tuple[int, int]],
    block: int,
) -> None:
    def records(tree: dict[str, tuple[int, int]]) -> list[Record]:
        return [
            file(path, size=size, xxh128=str(size) * 32, mode=0o644 - mode)
            for path, (size, mode) in tree.items()
        ]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest_writing, "_BLOCK", block)
        place = tmp_path_factory.mktemp("changes")
        with readers(place, records(old), records(new)) as (one, other):
            told = {os.fsdecode(change.path): change.what for change in changes(one, other)}
            summary, lost, gained = compare(one, other)
    expected = dict.fromkeys(new.keys() - old.keys(), "added")
    expected |= dict.fromkeys(old.keys() - new.keys(), "removed")
    for path in old.keys() & new.keys():
        if old[path] != new[path]:
            expected[path] = "changed" if old[path][0] != new[path][0] else "attributes"
    assert told == expected
    for what in ("added", "changed", "attributes", "removed"):
        assert getattr(summary, what) == list(expected.values()).count(what)
    replaced = [path for path in old if expected.get(path) in ("changed", "removed")]
    assert lost.bytes(None) == sum(old[path][0] for path in replaced)
    fresh = [path for path in new if expected.get(path) in ("changed", "added")]
    assert gained.bytes(None) == sum(new[path][0] for path in fresh)


def test_directories_and_times_of_the_source_are_no_change(tmp_path: Path) -> None:
    old = [folder("d"), file("d/a"), file("d/l", kind="l", target=b"x", xxh128=None)]
    new = [
        folder("d", mtime_ns=5), file("d/a", ctime_ns=None, inode=None, nlink=2),
        file("d/l", kind="l", target=b"y", xxh128=None),
    ]  # fmt: skip
    with readers(tmp_path, old, new) as (one, other):
        assert [(change.path, change.what) for change in changes(one, other)] == [
            (b"d/l", "changed")
        ]


# The answers of the process.


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A catalogue of four versions; the ledger is at the third, and the second has no list."""
    monkeypatch.setattr(paths, "CATALOGUE", tmp_path / "catalogue")
    place = catalogue.make("home")
    trees: list[list[Record]] = [
        [file("a"), file("b", size=100)],
        [file("a"), file("b", size=100)],
        [file("a", size=6, xxh128="2" * 32), file("c", size=50, uid=0, mode=0o600)],
        [file("z")],
    ]
    for number, tree in enumerate(trees, 1):
        name = DAY.format(number)
        told: dict[str, Any] = {"sequence": number, "files": 2, "bytes": 105}
        if number != 2:
            written = manifest_writing.write(place / f"{name}.manifest", ordered(tree))
            told["manifest_sha256"] = written.sha256
        record.write(place, name, {**told, "finished": 100 + number, "warnings": ["A warning."]})
    return place


def ask(what: str, uid: int = 0, **more: object) -> list[query.Line]:
    drives = [{"name": "home", "up_to": 3}]
    return list(query.answer({"what": what, "uid": uid, "drives": drives, **more}))


def test_versions_count_as_far_as_the_ledger(kept: Path) -> None:
    first, second, third = ask("versions", texts=True)
    assert [v["version"] for v in (first, second, third)] == [DAY.format(n) for n in (1, 2, 3)]
    assert (second["recorded"], second["changes"], second["only"]) == (False, None, None)
    assert first["warnings"] == ["A warning."]
    assert ask("versions", texts=False)[0]["warnings"] == []
    (kept / f"{DAY.format(2)}.json").unlink()
    first, third = ask("versions", texts=True)
    assert third["changes"] == {
        "added": 1, "changed": 1, "attributes": 0, "removed": 1,
        "added_bytes": 50, "changed_bytes": 6, "removed_bytes": 100,
    }  # fmt: skip
    assert (first["only"], third["only"]) == (105, 56)
    (kept / f"{DAY.format(3)}.json").unlink()
    assert [line["only"] for line in ask("versions", texts=True)] == [105]


@pytest.mark.parametrize(
    "number", [10**400, -5, True, "5"], ids=["endless", "negative", "truth", "text"]
)
def test_what_can_be_no_number_in_a_record_counts_as_none(kept: Path, number: object) -> None:
    forged = {"sequence": 1, "finished": number, "files": number, "bytes": number}
    record.write(kept, "forged", {"manifest_sha256": "", **forged})
    (kept / f"{DAY.format(1)}.json").unlink()
    found = ask("versions", texts=True)
    assert (found[0]["version"], found[0]["files"], found[0]["bytes"]) == ("forged", 0, 0)
    assert versions.table(found)
    assert versions.picture(found, 31)
    (kept / "forged").mkdir()
    assert total(record.versions(kept)) == 0


def test_find_says_what_could_not_be_searched(kept: Path) -> None:
    *files, searched = ask("find", pattern="a", limit=10)
    assert [(f["path"], f["newest"], f["versions"]) for f in files] == [("/a", True, 2)]
    assert searched == {
        "searched": "home", "versions": 2, "unknown": [DAY.format(2)], "more": False,
    }  # fmt: skip
    path = kept / f"{DAY.format(1)}.manifest"
    raw = bytearray(path.read_bytes())
    raw[-40] ^= 1
    path.write_bytes(raw)
    *_, searched = ask("find", pattern="a", limit=10)
    assert searched["unknown"] == [DAY.format(1), DAY.format(2)]
    # It is no use any more: the next run takes the drive's.
    assert not path.exists()
    assert (kept / f"{DAY.format(3)}.manifest").exists()


def test_damage_of_one_list_costs_no_other(kept: Path) -> None:
    (kept / f"{DAY.format(2)}.json").unlink()
    path = kept / f"{DAY.format(3)}.manifest"
    path.write_bytes(path.read_bytes()[:-1])
    assert [line["changes"] for line in ask("versions", texts=True)] == [None, None]
    assert not path.exists()
    assert (kept / f"{DAY.format(1)}.manifest").exists()


def test_compare_tells_a_user_what_they_could_read(kept: Path) -> None:
    between = [DAY.format(1), "newest"]
    head, *lines = ask("compare", between=between)
    assert head == {"from": DAY.format(1), "to": DAY.format(3)}
    assert [(line["change"], line["path"]) for line in lines] == [
        ("changed", "/a"), ("removed", "/b"), ("added", "/c"),
    ]  # fmt: skip
    _, *lines = ask("compare", uid=54_321, between=between)
    assert [line["path"] for line in lines] == ["/a", "/b"]
    with pytest.raises(Refused):
        ask("compare", between=[DAY.format(2), "newest"])
    with pytest.raises(Refused):
        ask("compare", between=["soon", "newest"])
    assert kept.exists()


# What a person is shown.


def test_table_and_picture() -> None:
    changed = {"added": 3, "changed": 1, "removed": 2, "added_bytes": 2048, "changed_bytes": 0}
    plain = {"files": 1200, "bytes": 4096, "recorded": True, "warned": 0, "warnings": []}
    found = [
        {**plain, "version": DAY.format(1), "finished": 0, "changes": None, "only": 100},
        {**plain, "version": DAY.format(2), "finished": 0, "changes": changed, "only": None},
        {**plain, "version": DAY.format(4), "finished": 0, "changes": changed, "only": 0,
         "warned": 1, "warnings": ["Some\x1b thing."]},
    ]  # fmt: skip
    lines = versions.table(found)
    assert "+3 ~1 -2" in lines[2]
    assert lines[2].rstrip().endswith("?")
    assert lines[-1] == "    Some\\x1b thing."
    bars, axis = versions.picture(found, 31)
    assert len(bars) == len(axis) == 31
    assert [at for at, bar in enumerate(bars) if bar != "·"] == [0, 10, 30]
    assert axis.startswith("2026-11-21")
    assert axis.endswith("2026-11-24")
    assert len(versions.picture(found[:1], 31)) == 2


def test_a_time_beyond_all_calendars_is_shown_as_none() -> None:
    """Whoever has a file can give it one."""
    state = {"first": "1", "last": "1", "versions": 1, "kind": "file", "size": 5, "mtime": 2.0**60}
    files = [{"path": "/a", "drive": "home", "newest": True, "states": [state]}]
    assert find.shown(files, [])[1] == "  home: 1: 5 B, changed ?"
    plain = {"version": "odd", "bytes": 1, "changes": None, "finished": 1 << 60}
    assert versions.picture([plain], 31)[1] == "?"


def test_a_path_from_here_is_one_from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/usr/share")
    monkeypatch.setenv("HOME", "/home/me")
    assert find.resolved("./a") == "/usr/share/a"
    assert find.resolved("../a*") == "/usr/a*"
    assert find.resolved("~/a") == "/home/me/a"
    assert find.resolved("a/b") == "a/b"
