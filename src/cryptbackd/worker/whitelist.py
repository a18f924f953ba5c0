"""What a LUKS2 header may say: every field that matters, held against a short list.  Pure.

Whoever hands us a drive writes its header, so what is not on the list is refused, whatever it
means: a header that passes is as cryptbackd would have made it.

Field names and layout: "LUKS2 On-Disk Format Specification", version 1.1.x.
"""

from __future__ import annotations

import base64
import re
from typing import Any

import attrs

from .. import luks2
from ..luks2 import CIPHER, KEY_BYTES, MAGIC, Token, need, number, whole
from ..text import printable

SECTOR_SIZES = (512, 4096)

_MAX_OFFSET = 64 << 20
_MAX_KDF_MEMORY = 4 << 20
"""KiB; cryptsetup itself makes none above 4 GiB."""
_MAX_ARGON_TIME = 10_000
_MAX_PBKDF2_ITERATIONS = 1_000_000_000
_PARTS = {"config", "segments", "digests", "keyslots", "tokens"}
_CONFIG = {"json_size", "keyslots_size", "requirements"}
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MOST = 32
"""Keyslots, and tokens, of a header."""
_SPLITTERS = ("sha256", "sha512")
"""cryptsetup's own hash, and the one that systemd-cryptenroll(1) asks for."""


@attrs.frozen
class Header:
    """A header whose every field that matters is as cryptbackd would have made it."""

    uuid: str
    size: int
    """Bytes on the drive before the encrypted data; 0: there is no header on it."""
    sector_size: int
    digest: str
    salt: str
    areas: tuple[tuple[int, int], ...]
    """Offset and length of the keyslots' areas."""
    metadata: int
    """Bytes of one of the two metadata areas."""
    seqid: int
    """Grows with each change of the header."""
    keyslots: frozenset[int]
    """Those that are tried: one with priority "ignore" isn't."""
    tokens: tuple[Token, ...]
    raw: bytes

    @property
    def detached(self) -> bool:
        """Whether the drive has no header: the stored one, and that in a kit, are all there is."""
        return self.size == 0

    @property
    def compared(self) -> bytes:
        """The bytes in which a change of passphrase or damage shows: metadata and keyslots."""
        parts = [self.raw[: 2 * self.metadata]]
        parts += [self.raw[offset : offset + length] for offset, length in self.areas]
        return b"".join(parts)

    @property
    def typed(self) -> set[int]:
        """The keyslots of passphrases and recovery keys; see ``luks2.typed``."""
        return luks2.typed(self.keyslots, self.tokens)

    @property
    def fingerprint(self) -> str:
        """What stays the same as long as the volume key does; see ``luks2.fingerprint``."""
        return luks2.fingerprint(self.digest, self.salt, self.sector_size, self.size)

    def same_volume(self, other: Header) -> bool:
        """Whether whoever opens the one volume opens the other: the same key, data and name."""
        return (self.fingerprint, self.uuid) == (other.fingerprint, other.uuid)


def parse(raw: bytes, *, stored: bool = False) -> Header:
    """The header at the beginning of *raw*; raises ForgedDrive naming what is not allowed.

    *raw* must hold everything up to the encrypted data.  Only a *stored* one, which no drive
    has shown, may be detached from its data.
    """
    first = luks2.metadata(raw)
    second = luks2.metadata(raw, first.size, MAGIC[1])
    need(first == second, "its two copies differ")
    with luks2.understood():
        return _judge(raw, first, stored)


def _judge(raw: bytes, found: luks2.Metadata, stored: bool) -> Header:
    meta, metadata = found.json, found.size
    need(_UUID.fullmatch(found.uuid) is not None, "its UUID is odd")
    need(set(meta) == _PARTS, "it has other parts than it should have")
    config, segments, digests = meta["config"], meta["segments"], meta["digests"]
    need(not config.get("requirements"), "it asks for a feature that is not allowed")
    need(set(config) <= _CONFIG, "it has settings that are not allowed")
    need(set(segments) == {"0"}, "it has more than one segment")
    segment = segments["0"]
    need(segment["type"] == "crypt", "its segment is not of type crypt")
    need(segment["encryption"] == CIPHER, f"its cipher is {printable(segment['encryption'], 40)}")
    need(segment["size"] == "dynamic" and segment["iv_tweak"] == "0", "its segment is odd")
    need("integrity" not in segment and "opal" not in segment, "it asks for integrity or OPAL")
    need(not segment.get("flags"), "its segment has flags")
    sector_size = segment["sector_size"]
    need(whole(sector_size) in SECTOR_SIZES, "its sector size is odd")
    offset = number(segment["offset"])
    length = 2 * metadata + number(config["keyslots_size"]) if stored and offset == 0 else offset
    need(2 * metadata <= length <= _MAX_OFFSET and length % 4096 == 0, "its offset is odd")
    need(len(raw) >= length, "it is cut short")
    need(set(digests) == {"0"} and digests["0"]["segments"] == ["0"], "its digests are odd")
    digest = digests["0"]
    need(digest["type"] == "pbkdf2" and digest["hash"] == "sha256", "its digest is odd")
    need(0 < whole(digest["iterations"]) <= _MAX_PBKDF2_ITERATIONS, "its digest costs too much")
    keyslots = meta["keyslots"]
    numbers = {name: number(name) for name in keyslots}
    need(0 < len(keyslots) <= _MOST, "it has no keyslot, or too many")
    need(max(numbers.values()) < _MOST, "the number of a keyslot is too high")
    need(isinstance(digest["keyslots"], list), "its digest is odd")
    need(all(isinstance(digest[key], str) for key in ("digest", "salt")), "its digest is odd")
    need(set(digest["keyslots"]) == set(keyslots), "a keyslot belongs to no digest")
    areas = tuple(_keyslot(slot, 2 * metadata, length) for _n, slot in sorted(keyslots.items()))
    need(len(meta["tokens"]) <= _MOST, "it has too many tokens")
    for token in found.tokens:
        need(token.kind in luks2.TOKENS, f"it has a token of type {printable(token.kind, 40)}")
        need({str(n) for n in token.keyslots} <= set(keyslots), "a token has no keyslot")
    return Header(
        uuid=found.uuid,
        size=offset,
        sector_size=sector_size,
        digest=digest["digest"],
        salt=digest["salt"],
        areas=areas,
        metadata=metadata,
        seqid=found.seqid,
        keyslots=frozenset(numbers[n] for n, slot in keyslots.items() if slot.get("priority") != 0),
        tokens=found.tokens,
        raw=raw[:length],
    )


def _keyslot(slot: dict[str, Any], lowest: int, highest: int) -> tuple[int, int]:
    need(slot["type"] == "luks2", "a keyslot is of another type")
    need(whole(slot["key_size"]) == KEY_BYTES, "a keyslot's key is short")
    area, kdf, spread = slot["area"], slot["kdf"], slot["af"]
    need(area["type"] == "raw" and area["encryption"] == CIPHER, "a keyslot's cipher is wrong")
    need(whole(area["key_size"]) in (32, KEY_BYTES), "a keyslot's own key is short")
    offset, length = number(area["offset"]), number(area["size"])
    need(lowest <= offset and length > 0 and offset + length <= highest, "a keyslot lies outside")
    need(
        spread["type"] == "luks1" and spread["stripes"] == 4000 and spread["hash"] in _SPLITTERS,
        "a keyslot's splitter is odd",
    )
    if kdf["type"] in ("argon2id", "argon2i"):
        need(
            0 < whole(kdf["memory"]) <= _MAX_KDF_MEMORY
            and 0 < whole(kdf["time"]) <= _MAX_ARGON_TIME
            and 0 < whole(kdf["cpus"]) <= 64,
            "a keyslot's Argon2 costs too much",
        )
    else:
        need(
            kdf["type"] == "pbkdf2"
            and kdf["hash"] in ("sha256", "sha512")
            and 0 < whole(kdf["iterations"]) <= _MAX_PBKDF2_ITERATIONS,
            "a keyslot's key derivation is odd",
        )
    need(len(base64.b64decode(kdf["salt"], validate=True)) >= 16, "a keyslot's salt is short")
    return offset, length
