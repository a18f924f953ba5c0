"""The manifest: what it keeps, that it is small, and that damage is seen."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import random
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptbackd import manifest, manifest_writing
from cryptbackd.errors import ManifestDamaged
from cryptbackd.manifest import Record

NAMES = st.binary(min_size=1, max_size=12).filter(lambda name: not {0, 0x2F} & set(name))
PATHS = st.lists(NAMES, min_size=1, max_size=4).map(b"/".join)
TIMES = st.integers(-(10**19), 10**19)
CHECKSUMS = st.one_of(st.none(), st.integers(0, 2**128 - 1).map(lambda n: f"{n:032x}"))
TARGETS = st.binary(max_size=20).filter(lambda target: 0 not in target)
RECORDS = st.builds(
    Record,
    PATHS,
    st.sampled_from("fdlpsbc"),
    st.integers(0, 2**63),
    TIMES,
    st.one_of(st.none(), TIMES),
    st.one_of(st.none(), st.integers(0, 2**64 - 1)),
    st.integers(0, 0o7777),
    st.integers(0, 2**32 - 2),
    st.integers(0, 2**32 - 2),
    st.integers(1, 65_000),
    CHECKSUMS,
    TARGETS,
)
TREES = st.lists(RECORDS, unique_by=lambda record: record.path, max_size=60).map(
    lambda records: sorted(records, key=lambda record: manifest.key(record.path))
)


@given(RECORDS)
def test_a_record_is_read_as_it_was_written(record: Record) -> None:
    assert Record.parse(record.raw()) == record


@given(TREES)
def test_the_order_is_that_of_the_bytes_and_a_tree_stands_together(tree: list[Record]) -> None:
    raws = [record.raw() for record in tree]
    assert raws == sorted(raws)
    for record in tree:
        inside = [r.path == record.path or r.path.startswith(record.path + b"/") for r in tree]
        assert "".join("X" if i else "." for i in inside).strip(".").count(".") == 0


@given(TREES, TREES, st.integers(200, 4000))
def test_what_is_written_is_read_whatever_was_before(
    tmp_path_factory: pytest.TempPathFactory, before: list[Record], now: list[Record], block: int
) -> None:
    place = tmp_path_factory.mktemp("manifests")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest_writing, "_BLOCK", block)
        manifest_writing.write(place / "old", before)
        written = manifest_writing.write(place / "new", now, before=place / "old")
    assert list(manifest.read(place / "new")) == now
    assert written.records == len(now)
    raw = (place / "new").read_bytes()
    assert hashlib.sha256(raw).hexdigest() == written.sha256
    assert written.size == len(raw)
    # zcat is all that one needs to read it by hand.
    assert gzip.decompress(raw) == b"".join(record.raw() + b"\0" for record in now)
    with manifest.opened(place / "new") as reader:
        assert reader.records == len(now)
        for record in now:
            assert reader.get(record.path) == record
            below = [r.path for r in now if (r.path + b"/").startswith(record.path + b"/")]
            found = [Record.parse(raw).path for raw in reader.starting(record.path + b"/")]
            assert found == below
        assert reader.get(b"not/there" * 40) is None


def test_it_reads_what_find_lists(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    (root / "a b" / "c\n").mkdir(parents=True)
    (root / "a b" / os.fsdecode(b"\xff -")).write_bytes(b"content")
    (root / "a b.txt").write_bytes(b"")
    os.utime(root / "a b.txt", ns=(0, -1_500_000_000))
    (root / "link").symlink_to("to // a target -")
    os.mkfifo(root / "fifo", 0o600)
    (root / "a b").chmod(0o2750)
    argv = ["/usr/bin/find", f"{root}/", "-mindepth", "1", "-printf", manifest.LISTING]
    listing = subprocess.run(argv, stdout=subprocess.PIPE, check=True).stdout
    ordered = subprocess.run(
        ["/usr/bin/sort", "-z"], input=listing, stdout=subprocess.PIPE, check=True,
        env={"LC_ALL": "C.UTF-8"},
    ).stdout  # fmt: skip
    assert ordered[:-1].split(b"\0") == sorted(listing[:-1].split(b"\0"))
    manifest_writing.write_raw(tmp_path / "m", ordered[:-1].split(b"\0"))
    records = {record.path: record for record in manifest.read(tmp_path / "m")}
    assert len(records) == 6
    for path, record in records.items():
        status = os.lstat(os.path.join(os.fsencode(root), path))
        told = (record.mode, record.uid, record.gid, record.nlink, record.size, record.inode)
        assert told == (
            status.st_mode & 0o7777, status.st_uid, status.st_gid, status.st_nlink,
            status.st_size, status.st_ino,
        )  # fmt: skip
        assert (record.mtime_ns, record.ctime_ns) == (status.st_mtime_ns, status.st_ctime_ns)
        assert record.xxh128 is None
    assert records[b"link"].target == b"to // a target -"
    kinds = {path: record.kind for path, record in records.items()}
    assert [kinds[p] for p in (b"a b", b"a b.txt", b"fifo", b"link")] == ["d", "f", "p", "l"]
    assert manifest.without_checksums(ordered) == ordered
    known = [r._replace(xxh128="0" * 32) if r.kind == "f" else r for r in records.values()]
    text = b"".join(record.raw() + b"\0" for record in known)
    assert manifest.without_checksums(text) == ordered


def _records(number: int, changed: int = -1) -> Iterator[Record]:
    """Files as they lie about: names with something in common, times and contents without."""
    dice = random.Random(11)
    words = ("alpha", "report", "invoice", "photo", "draft", "notes", "backup", "main")
    for i in range(number):
        name = f"{i % 40:02}-{dice.choice(words)}_{dice.randrange(100_000)}.txt".encode()
        moment = (1_600_000_000 + i // 40 * 7919 % 150_000_000) * 10**9 + dice.randrange(10**9)
        checksum = f"{dice.getrandbits(128):032x}"
        yield Record(
            b"home/me/Documents/%06d/" % (i // 40) + name, "f", dice.randrange(200_000), moment,
            moment + (0 if i % 3 else 10**11 + dice.randrange(10**9)), 100_000 + i,
            0o600 if i == changed else 0o644, 1000, 1000, 1, checksum,
        )  # fmt: skip


def test_sixty_bytes_a_path_and_a_bounded_memory(tmp_path: Path) -> None:
    written = manifest_writing.write(tmp_path / "m", _records(40_000))
    assert written.size / written.records < 60
    # Ten times as many paths take no more memory: a process of its own, as the peak is asked for.
    program = (
        "import resource, sys; from pathlib import Path\n"
        "from cryptbackd import manifest, manifest_writing\n"
        "from tests.unit.test_manifest import _records\n"
        "place = Path(sys.argv[1])\n"
        "manifest_writing.write(place, _records(int(sys.argv[2])))\n"
        "assert sum(1 for _ in manifest.read(place)) == int(sys.argv[2])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    peaks = []
    for number in (5_000, 50_000):
        argv = [sys.executable, "-c", program, str(tmp_path / "n"), str(number)]
        ended = subprocess.run(argv, stdout=subprocess.PIPE, check=True, env={**os.environ})
        peaks.append(int(ended.stdout))
    assert peaks[1] - peaks[0] < 8_000  # KiB; the records alone have 10,000


def test_what_has_not_changed_is_not_compressed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest_writing.write(tmp_path / "old", _records(20_000))
    compressions = []
    compress = zlib.compressobj

    def counted(*arguments: Any) -> object:
        compressions.append(arguments)
        return compress(*arguments)

    monkeypatch.setattr(zlib, "compressobj", counted)
    manifest_writing.write(tmp_path / "same", _records(20_000), before=tmp_path / "old")
    assert not compressions
    assert (tmp_path / "same").read_bytes() == (tmp_path / "old").read_bytes()
    manifest_writing.write(
        tmp_path / "new", _records(20_000, changed=9_000), before=tmp_path / "old"
    )
    assert len(compressions) == 1
    with manifest.opened(tmp_path / "new") as new, manifest.opened(tmp_path / "old") as old:
        assert len({b.digest for b in new.blocks} - {b.digest for b in old.blocks}) == 1


def test_any_flipped_byte_and_any_cut_is_seen(tmp_path: Path) -> None:
    manifest_writing.write(tmp_path / "m", _records(300))
    raw = (tmp_path / "m").read_bytes()
    whole = list(manifest.read(tmp_path / "m"))
    dice = random.Random(5)
    for _ in range(300):
        at = dice.randrange(len(raw))
        damaged = bytearray(raw)
        damaged[at] ^= 1 << dice.randrange(8)
        (tmp_path / "d").write_bytes(damaged)
        with contextlib.suppress(ManifestDamaged):
            # What is in a header besides is not in the text, and SHA-256 has it in the record.
            assert list(manifest.read(tmp_path / "d")) == whole
    for length in (0, 5, len(raw) // 2, len(raw) - 1):
        (tmp_path / "d").write_bytes(raw[:length])
        with pytest.raises(ManifestDamaged):
            list(manifest.read(tmp_path / "d"))
    (tmp_path / "d").write_bytes(raw + b"x")
    with pytest.raises(ManifestDamaged):
        list(manifest.read(tmp_path / "d"))


def test_damage_before_is_not_handed_on(tmp_path: Path) -> None:
    manifest_writing.write(tmp_path / "old", _records(300))
    raw = bytearray((tmp_path / "old").read_bytes())
    raw[len(raw) // 2] ^= 1
    (tmp_path / "old").write_bytes(raw)
    manifest_writing.write(tmp_path / "new", _records(300), before=tmp_path / "old")
    assert list(manifest.read(tmp_path / "new")) == list(_records(300))
    manifest_writing.write(tmp_path / "new", _records(300), before=tmp_path / "none")
    assert list(manifest.read(tmp_path / "new")) == list(_records(300))


def test_what_stands_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    os.mkfifo(tmp_path / "fifo")
    for name in ("link", "fifo"):
        with pytest.raises(ManifestDamaged):
            list(manifest.read(tmp_path / name))
    with pytest.raises(FileNotFoundError):
        list(manifest.read(tmp_path / "none"))


def test_nothing_is_left_of_what_could_not_be_written(tmp_path: Path) -> None:
    def breaks_off() -> Iterator[Record]:
        yield from _records(10)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        manifest_writing.write(tmp_path / "m", breaks_off())
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="out of order"):
        manifest_writing.write(tmp_path / "m", reversed(list(_records(10))))
    manifest_writing.write(tmp_path / "m", _records(10))
    assert (tmp_path / "m").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"path", b"path//", b"//f 644 0 0 1 2 1.0 1.0 3  -", b"p//f 644 0 0 1 2 1.0 1.0 3 -",
        b"p//f x 0 0 1 2 1.0 1.0 3  -", b"p//f 644 0 0 1 2 1 1.0 3  -",
    ],
)  # fmt: skip
def test_what_is_no_record_is_refused(raw: bytes) -> None:
    with pytest.raises(ManifestDamaged):
        Record.parse(raw)
