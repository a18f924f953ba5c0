"""The LUKS2 header on a drive: binary part and JSON, with checksums that are right mostly."""

from __future__ import annotations

import ast
import hashlib
import io
import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from cryptbackd import luks2
from cryptbackd.errors import ForgedDrive
from cryptbackd.worker import whitelist
from tests.fuzz import mutate, properties
from tests.fuzz.fuzzer import Fuzzer

SAMPLES = [
    json.loads(path.read_text())
    for path in sorted((Path(__file__).parents[1] / "samples").glob("luks2-*.json"))
]
"""What cryptsetup and systemd-cryptenroll have written, with small areas for the keyslots."""
_AREA = 16384
_ROOM = 1 << 20
"""Bytes of keyslots behind the metadata of the samples: zeros."""
FIELDS = (
    "magic", "version", "size", "seqid", "label", "checksum", "salt", "uuid", "subsystem",
    "offset", "nothing", "sum",
)  # fmt: skip
_ODD: dict[str, tuple[Any, ...]] = {
    "magic": (b"LUKS\xba\xbe", b"SKUL\xba\xbe", b"luks\xba\xbe"),
    "version": (1, 3, 0),
    "size": (0, 4096, 16384, 32768, 4 << 20, 8 << 20, 2**64 - 1, 16383),
    "seqid": (0, 1, 2**64 - 1),
    "label": (b"\xff" * 48, b"\x1b[2J"),
    "checksum": (b"sha512", b"sha256\0x", b"", b"\xff" * 32),
    "uuid": (b"\xff" * 40, b"", b"a" * 40, b"\n\x1b[0m", b"12\0" + b"34"),
    "offset": (0, 16384, 2**64 - 1),
    "sum": (bytes(64),),
}


@st.composite
def inputs(draw: st.DrawFn) -> bytes:
    """A literal: text, fields that are other than they should be, and in which of the two."""
    text = draw(mutate.json_bytes(SAMPLES))
    odd: dict[str, Any] = {}
    if draw(st.integers(0, 4)) == 0:
        name = draw(st.sampled_from(tuple(_ODD)))
        odd[name] = draw(st.sampled_from(_ODD[name]))
    case = {
        "text": text,
        "odd": odd,
        "which": draw(st.sampled_from((3, 3, 3, 1, 2))),
        "cut": draw(st.sampled_from((None,) * 6 + (0, 5, 500, 5000, 20_000, 40_000))),
        "stored": draw(st.booleans()),
    }
    return repr(case).encode()


def area(text: bytes, offset: int, odd: dict[str, Any]) -> bytes:
    """One of the two metadata areas, with its checksum."""
    text = text[: _AREA - 4096 - 1]
    fields: dict[str, Any] = {
        "magic": luks2.MAGIC[bool(offset)], "version": 2, "size": _AREA, "seqid": 3, "label": b"",
        "checksum": b"sha256", "salt": bytes(64), "uuid": b"6f8f1c3e-1d0c-4f3a-9f5e-0123456789ab",
        "subsystem": b"", "offset": offset, "nothing": b"", "sum": bytes(64), **odd,
    }  # fmt: skip
    start = luks2.FIELDS.pack(*(fields[name] for name in FIELDS)).ljust(4096, b"\0")
    raw = (start + text).ljust(_AREA, b"\0")
    if "sum" not in odd:
        digest = hashlib.sha256(raw).digest()
        raw = raw[:448] + digest + bytes(32) + raw[512:]
    return raw


def built(case: dict[str, Any]) -> bytes:
    """The header that a case describes."""
    both = [
        area(case["text"], number * _AREA, case["odd"] if case["which"] & number + 1 else {})
        for number in (0, 1)
    ]
    return (b"".join(both) + bytes(_ROOM))[: case["cut"]]


def _canonical(number: Any) -> None:
    """A number in text that everybody reads as the same."""
    assert isinstance(number, str), f"not in text: {number!r}"
    assert number == str(int(number)), f"not as it should be written: {number!r}"


def _whole(number: Any) -> None:
    assert type(number) is int, f"no whole number: {number!r}"


def _sound(found: whitelist.Header, raw: bytes) -> None:
    """What cryptsetup is given is what was judged: nothing that the two could read differently."""
    meta = luks2.metadata(raw).json
    segment, digest = meta["segments"]["0"], meta["digests"]["0"]
    assert segment["encryption"] == "aes-xts-plain64"
    assert not meta["config"].get("requirements")
    _canonical(segment["offset"])
    _whole(segment["sector_size"])
    _whole(digest["iterations"])
    for name, slot in meta["keyslots"].items():
        _canonical(name)
        assert int(name) < 32
        _whole(slot["key_size"])
        _whole(slot["area"]["key_size"])
        _canonical(slot["area"]["offset"])
        _canonical(slot["area"]["size"])
        for key in ("memory", "time", "cpus", "iterations"):
            if key in slot["kdf"]:
                _whole(slot["kdf"][key])
        if slot["kdf"]["type"].startswith("argon2"):
            assert slot["kdf"]["memory"] <= 4 << 20
    for name, token in meta["tokens"].items():
        _canonical(name)
        assert token["type"] in luks2.TOKENS
        assert isinstance(token["keyslots"], list)
    length = found.size or len(found.raw)
    for offset, size in found.areas:
        assert 2 * found.metadata <= offset < offset + size <= length
    assert found.raw == raw[: len(found.raw)]
    assert len(found.fingerprint) == 64
    properties.harmless(found.uuid)


def check(raw: bytes) -> str:
    """It is refused as forged, or is all that it says."""
    case = ast.literal_eval(raw.decode())
    built_raw = built(case)
    looked = "refused"
    try:
        with properties.refusing(ForgedDrive):
            first = luks2.first(io.BytesIO(built_raw))
            looked = "metadata"
            assert type(first.detached) is bool
            assert len(first.fingerprint) == 64
            assert all(token.number >= 0 for token in first.tokens)
    except properties.Ended:
        pass
    try:
        with properties.refusing(ForgedDrive):
            found = whitelist.parse(built_raw, stored=case["stored"])
    except properties.Ended:
        return looked
    _sound(found, built_raw)
    return "header"


FUZZER = Fuzzer(
    "luks2-header",
    "the LUKS2 header on a drive, binary part and JSON: `luks2.first`, `worker.whitelist.parse`",
    inputs(),
    check,
)
