"""Headers as whoever holds a drive can write them: each forged from an honest LUKS2 header.

All have the right checksums, so that nothing but what they say can give them away.  Field names
and layout: "LUKS2 On-Disk Format Specification", version 1.1.x.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

HEADER = 16 << 20
"""Bytes in which every header has room."""
_BINARY = 4096
_MAGIC = (b"LUKS\xba\xbe", b"SKUL\xba\xbe")
_LARGEST = 4 << 20
_KEY = bytes(range(64))
"""The volume key of whoever forges a header."""

Json = dict[str, Any]


@dataclass(frozen=True)
class Forgery:
    """How it is made of the beginning of a container, and what is to be said of it."""

    make: Callable[[bytes], bytes]
    sentence: str


def read(raw: bytes) -> Json:
    """The JSON of a header."""
    size = int.from_bytes(raw[8:16], "big")
    found: Json = json.loads(raw[_BINARY:size].split(b"\0", 1)[0])
    return found


def written(raw: bytes, text: bytes, *, second: bytes | None = None, size: int = 0) -> bytes:
    """The header *raw* with other JSON in both of its copies (or another *second* one)."""
    size = size or int.from_bytes(raw[8:16], "big")
    out = bytearray(raw.ljust(2 * size, b"\0"))
    for number, json_text in enumerate((text, text if second is None else second)):
        area = bytearray(raw[:_BINARY] + json_text.ljust(size - _BINARY, b"\0"))
        assert len(area) == size, "the JSON is too long for it"
        area[:6] = _MAGIC[number]
        area[8:16] = size.to_bytes(8, "big")
        area[256:264] = (number * size).to_bytes(8, "big")
        area[448:512] = bytes(64)
        area[448:480] = hashlib.sha256(area).digest()
        out[number * size : (number + 1) * size] = area
    return bytes(out)


def changed(change: Callable[[Json], object]) -> Callable[[bytes], bytes]:
    """A forgery that is a change of the JSON."""

    def make(raw: bytes) -> bytes:
        meta = read(raw)
        change(meta)
        return written(raw, json.dumps(meta).encode())

    return make


def own_key(raw: bytes) -> tuple[bytes, Json]:
    """Keyslot 0 with the forger's volume key in clear text: any passphrase opens it.

    The bytes of the container with the keyslot's area, and the JSON that goes with them.
    """
    meta = read(raw)
    slot = meta["keyslots"]["0"]
    slot["area"]["encryption"] = "cipher_null-ecb"
    slot["kdf"] = {
        "type": "pbkdf2",
        "hash": "sha256",
        "iterations": 1000,
        "salt": slot["kdf"]["salt"],
    }
    meta["keyslots"] = {"0": slot}
    meta["tokens"] = {}
    digest = meta["digests"]["0"]
    salt = base64.b64decode(digest["salt"])
    digest.update(keyslots=["0"], iterations=1000)
    made = hashlib.pbkdf2_hmac("sha256", _KEY, salt, 1000, 32)
    digest["digest"] = base64.b64encode(made).decode()
    merged = bytes(64)
    for _stripe in range(3999):  # all of them zeros
        merged = _diffused(merged)
    last = bytes(a ^ b for a, b in zip(merged, _KEY, strict=True))
    at = int(slot["area"]["offset"])
    out = bytearray(raw)
    out[at : at + 4000 * 64] = bytes(3999 * 64) + last
    return bytes(out), meta


def _diffused(block: bytes) -> bytes:
    """The anti-forensic splitter's hash, for SHA-256."""
    parts = (block[at : at + 32] for at in range(0, len(block), 32))
    return b"".join(
        hashlib.sha256(number.to_bytes(4, "big") + part).digest()
        for number, part in enumerate(parts)
    )


def _null_keyslot(raw: bytes) -> bytes:
    forged, meta = own_key(raw)
    return written(forged, json.dumps(meta).encode())


def _hidden(raw: bytes) -> bytes:
    forged, meta = own_key(raw)
    return behind_nul(forged, read(raw), meta)


def behind_nul(raw: bytes, shown: Json, meant: Json) -> bytes:
    """Other keyslots under names that end in a NUL: cryptsetup finds them under the same names."""
    other = {f"{name}\0": meant[name] for name in ("keyslots", "digests", "tokens")}
    return written(raw, json.dumps({**shown, **other}).encode())


def _twice(raw: bytes) -> bytes:
    meta = read(raw)
    first = json.dumps({"segments": _segment(meta, encryption="cipher_null-ecb")})
    return written(raw, (first[:-1] + ", " + json.dumps(meta)[1:]).encode())


def _segment(meta: Json, **fields: object) -> Json:
    return {"0": {**meta["segments"]["0"], **fields}}


def _reencryption(meta: Json) -> None:
    """A decryption that was begun (CVE-2021-4122)."""
    segment = meta["segments"]["0"]
    meta["config"]["requirements"] = {"mandatory": ["online-reencrypt-v2"]}
    meta["segments"] = {
        "0": {"type": "linear", "offset": segment["offset"], "size": "1048576"},
        "1": {**segment, "iv_tweak": "2048"},
        "2": {**segment, "flags": ["backup-previous"]},
    }
    meta["keyslots"]["1"] = {
        "type": "reencrypt", "key_size": 1, "mode": "decrypt", "direction": "forward",
        "area": {"type": "none", "offset": "290816", "size": "4096"},
    }  # fmt: skip


def _large(fill: Callable[[int], str]) -> Callable[[bytes], bytes]:
    """JSON that fills the largest area there can be."""

    def make(raw: bytes) -> bytes:
        meta = read(raw)
        text = json.dumps(meta)[:-1] + ', "more": '
        text += fill(_LARGEST - _BINARY - len(text) - 2) + "}"
        return written(raw, text.encode(), size=_LARGEST)

    return make


def _disagreeing(raw: bytes) -> bytes:
    meta = read(raw)
    other = {**meta, "segments": _segment(meta, encryption="cipher_null-ecb")}
    return written(raw, json.dumps(meta).encode(), second=json.dumps(other).encode())


def _luks1(raw: bytes) -> bytes:
    """LUKS 1 has the same magic, and then its version."""
    names = b"".join(word.ljust(32, b"\0") for word in (b"aes", b"xts-plain64", b"sha256"))
    head = _MAGIC[0] + b"\0\1" + names + (4096).to_bytes(4, "big") + (64).to_bytes(4, "big")
    return (head.ljust(168, b"\0") + raw[168:208]).ljust(592, b"\0") + raw[592:]


def with_uuid(raw: bytes, uuid: bytes) -> bytes:
    """Another UUID, which is 40 bytes of anything."""
    size = int.from_bytes(raw[8:16], "big")
    other = raw[:168] + uuid.ljust(40, b"\0") + raw[208:]
    return written(other, raw[_BINARY:size].rstrip(b"\0"))


def renumbered(raw: bytes, number: int) -> bytes:
    """The same header as if it had been changed so many times."""
    size = int.from_bytes(raw[8:16], "big")
    other = raw[:16] + number.to_bytes(8, "big") + raw[24:]
    return written(other, raw[_BINARY:size].rstrip(b"\0"))


EVIL = b"\x1b[31m%s\n<3>cryptbackd: forged/../.."
"""What no terminal and no journal is to be told raw."""

FORGERIES = {
    "null cipher": Forgery(
        changed(lambda m: m["segments"]["0"].update(encryption="cipher_null-ecb")),
        "its cipher is cipher_null-ecb",
    ),
    "null cipher of a keyslot": Forgery(_null_keyslot, "a keyslot's cipher is wrong"),
    "hidden behind a NUL": Forgery(_hidden, "there is a NUL in it"),
    "a name twice": Forgery(_twice, "a name stands in it twice"),
    "another cipher": Forgery(
        changed(lambda m: m["segments"]["0"].update(encryption="aes-cbc-essiv:sha256")),
        "its cipher is aes-cbc-essiv:sha256",
    ),
    "a shorter key": Forgery(
        changed(lambda m: m["keyslots"]["0"].update(key_size=32)), "a keyslot's key is short"
    ),
    "a second segment": Forgery(
        changed(lambda m: m["segments"].update({"1": m["segments"]["0"]})),
        "it has more than one segment",
    ),
    "integrity": Forgery(
        changed(lambda m: m["segments"]["0"].update(integrity={"type": "none"})),
        "it asks for integrity or OPAL",
    ),
    "OPAL": Forgery(
        changed(lambda m: m["segments"]["0"].update(type="hw-opal-crypt")),
        "its segment is not of type crypt",
    ),
    "a decryption begun": Forgery(
        changed(_reencryption), "it asks for a feature that is not allowed"
    ),
    "64 GiB of memory": Forgery(
        changed(lambda m: m["keyslots"]["0"]["kdf"].update(memory=64 << 20)),
        "a keyslot's Argon2 costs too much",
    ),
    "an endless digest": Forgery(
        changed(lambda m: m["digests"]["0"].update(iterations=(1 << 32) - 1)),
        "its digest costs too much",
    ),
    "4 MiB of JSON": Forgery(
        _large(lambda room: "[" + "1," * (room // 2 - 1) + "1]"),
        "it has other parts than it should have",
    ),
    "4 MiB of brackets": Forgery(
        _large(lambda room: "[" * (room // 2) + "]" * (room // 2)), "it is nested too deeply"
    ),
    "copies that differ": Forgery(_disagreeing, "its two copies differ"),
    "an unknown token": Forgery(
        changed(lambda m: m["tokens"].update({"0": {"type": "evil", "keyslots": ["0"]}})),
        "it has a token of type evil",
    ),
    "settings": Forgery(
        changed(lambda m: m["config"].update(flags=["allow-discards"])),
        "it has settings that are not allowed",
    ),
    "LUKS 1": Forgery(_luks1, "it has no LUKS2 magic"),
    "an odd number": Forgery(
        changed(lambda m: m["keyslots"]["0"]["area"].update(offset="3_2768")),
        "a number in it is odd",
    ),
    "an odd UUID": Forgery(lambda raw: with_uuid(raw, EVIL), "its UUID is none"),
}  # fmt: skip
