"""The manifest of a version, which may come from a drive: blocks, their heads, and records."""

from __future__ import annotations

import ast
import hashlib
import random
import struct
import tempfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from cryptbackd import manifest
from cryptbackd.changes import changes, compare
from cryptbackd.errors import ManifestDamaged
from cryptbackd.manifest import Record
from cryptbackd.manifest_writing import write_raw
from cryptbackd.seeing import Seer
from cryptbackd.worker.inventory import Inventory, Transfers
from cryptbackd.worker.sample import part
from tests.fuzz import mutate, properties
from tests.fuzz.fuzzer import Fuzzer

RECORDS = (
    b"etc//d 755 0 0 2 4096 1764000000.0000000000 1764000000.0000000000 12  -",
    b"etc/fstab//f 644 0 0 1 300 1764000000.5000000000 1764000000.0000000000 13  "
    + b"0123456789abcdef" * 2,
    b"home//d 755 0 0 3 4096 1764000000.0000000000 - -  -",
    b"home/me//d 700 1000 1000 3 4096 1764000000.0000000000 - -  -",
    b"home/me/a b//f 600 1000 1000 2 5 -5.5000000000 1764000000.0000000000 99  -",
    b"home/me/link//l 777 1000 1000 1 7 1764000000.0000000000 - - to // x -",
)  # fmt: skip
_ODD: dict[str, tuple[int, ...]] = {
    "form": (0, 2, 255), "length": (0, 1, 2**31, 2**32 - 1), "size": (1, 5, 64 << 20, 2**32 - 1),
    "records": (0, 1, 2**64 - 1), "first": (0, 5, 60_000), "crc": (0,), "text": (0, 2**32 - 1),
}  # fmt: skip


def member(records: list[bytes], odd: dict[str, int]) -> bytes:
    """A block, as it is written, but for what is *odd*."""
    text = b"".join(record + b"\0" for record in records)
    deflate = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    raw = deflate.compress(text) + deflate.flush()
    digest = hashlib.blake2b(text, digest_size=16).digest()
    head = manifest.HEAD.pack(
        odd.get("form", manifest.FORMAT), odd.get("length", len(raw)), odd.get("size", len(text)),
        odd.get("records", len(records)), digest,
    )  # fmt: skip
    first = records[0].partition(b"//")[0] + b"//" if records else b""
    if "first" in odd:
        first = b"x" * odd["first"]
    field = head + first[:60_000]
    extra = manifest.FIELD + len(field).to_bytes(2, "little") + field
    end = struct.pack("<II", odd.get("crc", zlib.crc32(text)), odd.get("text", len(text)))
    return manifest.GZIP + len(extra).to_bytes(2, "little") + extra + raw + end


def last(count: int) -> bytes:
    """The block that ends a manifest of *count* records."""
    head = manifest.HEAD.pack(manifest.FORMAT, 2, 0, count, b"")
    extra = manifest.FIELD + len(head).to_bytes(2, "little") + head
    return manifest.GZIP + len(extra).to_bytes(2, "little") + extra + b"\x03\x00" + bytes(8)


def _sorted(records: list[bytes]) -> list[bytes]:
    return sorted({record for record in records if record and b"\0" not in record})


def records(most: int = 8) -> st.SearchStrategy[list[bytes]]:
    """Some, in their order; most of them as they should be."""
    return st.lists(
        st.one_of(st.sampled_from(RECORDS), st.sampled_from(RECORDS), mutate.changed(RECORDS, 2)),
        max_size=most,
    ).map(_sorted)


@st.composite
def inputs(draw: st.DrawFn) -> bytes:
    """A literal: two blocks of records, what is odd about one, and what is broken in the file."""
    found = draw(records())
    cut = draw(st.integers(0, len(found)))
    odd = {}
    if draw(st.integers(0, 2)) == 0:
        name = draw(st.sampled_from(tuple(_ODD)))
        odd[name] = draw(st.sampled_from(_ODD[name]))
    return repr(
        {
            "blocks": [block for block in (found[:cut], found[cut:]) if block],
            "odd": odd,
            "count": draw(st.sampled_from((None,) * 9 + (0, 2**64 - 1))),
            "sparse": draw(st.sampled_from((0,) * 9 + (5 << 30,))),
            "file": draw(st.one_of(st.none(), st.none(), st.integers(0, 2**64))),
        }
    ).encode()


def built(case: dict[str, Any]) -> bytes:
    """The file that a case describes."""
    blocks = case["blocks"]
    raw = b"".join(
        member(block, case["odd"] if number == 0 else {}) for number, block in enumerate(blocks)
    )
    count = sum(map(len, blocks)) if case["count"] is None else case["count"]
    raw += last(count)
    if case["file"] is not None:
        at = case["file"] % len(raw)
        raw = raw[:at] + bytes([raw[at] ^ 1 << case["file"] % 8]) + raw[at + 1 :]
    return raw


def _looked_through(path: Path, good: Path) -> str:
    everything, stranger = Seer(0, frozenset()), Seer(1000, frozenset({1000}))
    with manifest.opened(path) as reader, manifest.opened(good) as other:
        assert reader.records < 2**64
        raws = list(reader)
        for raw in raws:
            try:
                record = Record.parse(raw)
            except ManifestDamaged as error:
                properties.told(error)
                continue
            assert Record.parse(record.raw()) == record
        for one, two in ((reader, other), (other, reader)):
            compare(one, two)
            for change in changes(one, two):
                for seer in (everything, stranger):
                    for side, record_fields in ((one, change.before), (two, change.after)):
                        if record_fields is not None:
                            seer.look(side).shows(change.path, record_fields)
        _carried_on(raws, path)
        reader.get(b"home/me")
        list(reader.starting(b"home/"))
    write_raw(path.with_name("again"), _sorted(raws), before=path)
    with manifest.opened(path.with_name("again")) as again:
        assert list(again) == _sorted(raws)
    return "read"


def _carried_on(before: list[bytes], path: Path) -> None:
    """What a next version, and a verification, make of it."""
    with suppress(ManifestDamaged):
        list(part(lambda: before, 0.5, random.Random(1)))
    listed = [record.rpartition(b" ")[0] + b" -" for record in RECORDS]
    with path.with_name("kept").open("w+b") as file:
        kept = Transfers(path, file, unbroken=True)
        now = Inventory(iter(listed), iter(listed), iter(()), iter(before), kept, compared=False)
        for raw in now:
            Record.parse(raw)


def check(raw: bytes) -> str:
    """It is damaged, or each record that is one is the same when it is written again."""
    case = ast.literal_eval(raw.decode())
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path, good = Path(folder, "tried"), Path(folder, "good")
        path.write_bytes(built(case))
        if case["sparse"]:
            with path.open("r+b") as file:
                file.truncate(case["sparse"])
        good.write_bytes(member(list(RECORDS), {}) + last(len(RECORDS)))

        def read() -> str:
            with properties.refusing(ManifestDamaged):
                return _looked_through(path, good)

        return properties.outcome(read)


FUZZER = Fuzzer(
    "manifests",
    "manifests, from a drive or the computer's catalogue: `manifest`, `manifest_writing`,"
    " `changes`, `seeing`, `worker.inventory`, `worker.sample`",
    inputs(),
    check,
)
