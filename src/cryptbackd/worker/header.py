"""The LUKS2 header: the stored one that is believed, the drive's that is only looked at.

The drive's own header never opens a volume.  ``init`` stores a copy on the computer after
:func:`parse` has held every field against a whitelist; a volume is opened from a sealed
memfd of that copy, which lives as long as its descriptor.

Field names and layout: "LUKS2 On-Disk Format Specification", version 1.1.x.
"""

from __future__ import annotations

import base64
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs

from .. import luks2, paths
from ..errors import ForgedDrive, Refused
from ..luks2 import CIPHER, FIELDS, KEY_BYTES, MAGIC, Token, need
from ..text import printable

SECTOR_SIZES = (512, 4096)

_MAX_OFFSET = 64 << 20
_MAX_KDF_MEMORY = 4 << 20
"""KiB; cryptsetup itself makes none above 4 GiB."""
_MAX_ARGON_TIME = 10_000
_MAX_PBKDF2_ITERATIONS = 1_000_000_000
_SPLITTERS = ("sha256", "sha512")
"""cryptsetup's own hash, and the one that systemd-cryptenroll(1) asks for."""
_AT_ONCE = 16 << 20
DETACHED = 16 << 20
"""Bytes of the file for a header that is not on the drive: what cryptsetup makes of one."""
_PAGE = 4096


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
    try:
        return _judge(raw, first, stored)
    except (KeyError, ValueError, TypeError, AttributeError, IndexError) as exc:
        raise luks2.forged(f"it can't be understood ({printable(str(exc), 60)})") from exc


def _judge(raw: bytes, found: luks2.Metadata, stored: bool) -> Header:
    meta, metadata = found.json, found.size
    config, segments, digests = meta["config"], meta["segments"], meta["digests"]
    need(not config.get("requirements"), "it asks for a feature that is not allowed")
    need(set(segments) == {"0"}, "it has more than one segment")
    segment = segments["0"]
    need(segment["type"] == "crypt", "its segment is not of type crypt")
    need(segment["encryption"] == CIPHER, f"its cipher is {printable(segment['encryption'], 40)}")
    need(segment["size"] == "dynamic" and segment["iv_tweak"] == "0", "its segment is odd")
    need("integrity" not in segment and "opal" not in segment, "it asks for integrity or OPAL")
    need(not segment.get("flags"), "its segment has flags")
    sector_size = segment["sector_size"]
    need(sector_size in SECTOR_SIZES, "its sector size is odd")
    offset = int(segment["offset"])
    length = 2 * metadata + int(config["keyslots_size"]) if stored and offset == 0 else offset
    need(2 * metadata <= length <= _MAX_OFFSET and length % 4096 == 0, "its offset is odd")
    need(len(raw) >= length, "it is cut short")
    need(set(digests) == {"0"} and digests["0"]["segments"] == ["0"], "its digests are odd")
    digest = digests["0"]
    need(digest["type"] == "pbkdf2" and digest["hash"] == "sha256", "its digest is odd")
    need(0 < digest["iterations"] <= _MAX_PBKDF2_ITERATIONS, "its digest costs too much")
    keyslots = meta["keyslots"]
    need(0 < len(keyslots) <= 32, "it has no keyslot, or too many")
    need(set(digest["keyslots"]) == set(keyslots), "a keyslot belongs to no digest")
    areas = tuple(_keyslot(slot, 2 * metadata, length) for _n, slot in sorted(keyslots.items()))
    for token in found.tokens:
        need(token.kind in luks2.TOKENS, f"it has a token of type {printable(token.kind, 40)}")
        need({str(n) for n in token.keyslots} <= set(keyslots), "a token has no keyslot")
    return Header(
        uuid=found.uuid,
        size=offset,
        sector_size=sector_size,
        digest=str(digest["digest"]),
        salt=str(digest["salt"]),
        areas=areas,
        metadata=metadata,
        seqid=found.seqid,
        keyslots=frozenset(int(n) for n, slot in keyslots.items() if slot.get("priority") != 0),
        tokens=found.tokens,
        raw=raw[:length],
    )


def _keyslot(slot: dict[str, Any], lowest: int, highest: int) -> tuple[int, int]:
    need(slot["type"] == "luks2" and slot["key_size"] == KEY_BYTES, "a keyslot's key is short")
    area, kdf, spread = slot["area"], slot["kdf"], slot["af"]
    need(area["type"] == "raw" and area["encryption"] == CIPHER, "a keyslot's cipher is wrong")
    need(area["key_size"] in (32, KEY_BYTES), "a keyslot's own key is short")
    offset, length = int(area["offset"]), int(area["size"])
    need(lowest <= offset and length > 0 and offset + length <= highest, "a keyslot lies outside")
    need(
        spread["type"] == "luks1" and spread["stripes"] == 4000 and spread["hash"] in _SPLITTERS,
        "a keyslot's splitter is odd",
    )
    if kdf["type"] in ("argon2id", "argon2i"):
        need(
            0 < kdf["memory"] <= _MAX_KDF_MEMORY
            and 0 < kdf["time"] <= _MAX_ARGON_TIME
            and 0 < kdf["cpus"] <= 64,
            "a keyslot's Argon2 costs too much",
        )
    else:
        need(
            kdf["type"] == "pbkdf2"
            and kdf["hash"] in ("sha256", "sha512")
            and 0 < kdf["iterations"] <= _MAX_PBKDF2_ITERATIONS,
            "a keyslot's key derivation is odd",
        )
    need(len(base64.b64decode(kdf["salt"], validate=True)) >= 16, "a keyslot's salt is short")
    return offset, length


def read(fd: int) -> Header:
    """The header at the beginning of an opened container or partition; see ``parse``."""
    # A file that is none at all is not read in full; only the second reading is believed.
    start = os.pread(fd, FIELDS.size, 0)
    need(len(start) == FIELDS.size and start[:6] == MAGIC[0], "it has no LUKS2 magic")
    return parse(read_up_to(fd, _AT_ONCE))


def read_up_to(fd: int, length: int) -> bytes:
    """The first *length* bytes of *fd*, or what there is of them."""
    parts = []
    offset = 0
    while offset < length:
        chunk = os.pread(fd, min(1 << 20, length - offset), offset)
        if not chunk:
            break
        parts.append(chunk)
        offset += len(chunk)
    return b"".join(parts)


def difference(stored: Header, fd: int) -> str:
    """What is different about the header on the drive *fd*, as a sentence; "" for nothing.

    Only compared: nothing that stands there is used.
    """
    if stored.detached:
        return ""
    try:
        theirs = [os.pread(fd, 2 * stored.metadata, 0)]
        theirs += [os.pread(fd, length, offset) for offset, length in stored.areas]
        if b"".join(theirs) == stored.compared:
            return ""
        found = read(fd)
    except ForgedDrive as exc:
        return f"{exc.sentence} It may be damaged or forged."
    except OSError as exc:
        return f"It can't be read: {exc.strerror}."
    if (found.digest, found.salt) != (stored.digest, stored.salt):
        return "It belongs to another volume key: it may be forged, or another volume's."
    return "Its keyslots differ: the passphrase may have been changed on another computer."


def path_of(name: str) -> Path:
    """Where the header of the entry *name* is stored."""
    return paths.HEADERS / name


def load(name: str) -> Header:
    """The stored header of the entry *name*; raises Refused when there is none that is whole."""
    try:
        raw = path_of(name).read_bytes()
    except FileNotFoundError:
        raise Refused(
            f"The computer has no header stored for {name}, so the drive can't be trusted.",
            f"Put the header that you saved to {path_of(name)} (mode 0600), or enrol it anew.",
        ) from None
    try:
        return parse(raw, stored=True)
    except ForgedDrive as exc:
        raise Refused(f"The stored header {path_of(name)} is damaged: {exc.sentence}") from exc


def store(name: str, header: Header) -> None:
    """Write the header of the entry *name*: whole or not at all, and only for root."""
    with fresh(name, header.raw) as new:
        new.rename(path_of(name))
    fsync_directory(paths.HEADERS)


def keep_old(name: str) -> None:
    """Keep the stored header under another name, too: it may be a volume's only good one."""
    stored = path_of(name)
    with suppress(FileExistsError):
        os.link(stored, stored.with_name(f"{name}.until-{int(time.time())}"))


def keep_theirs(name: str, fd: int, length: int) -> Path:
    """Keep what stands in the place of the header on the drive *fd*, whatever it is."""
    target = paths.HEADERS / f"{name}.drive-{time.time_ns()}"
    with fresh(name, _what_can_be_read(fd, length)) as new:
        new.rename(target)
    fsync_directory(paths.HEADERS)
    return target


def _what_can_be_read(fd: int, length: int) -> bytes:
    """The first *length* bytes of *fd*, with zeros for what can't be read."""
    parts = []
    for at in range(0, length, _PAGE):
        wanted = min(_PAGE, length - at)
        try:
            parts.append(os.pread(fd, wanted, at))
        except OSError:
            parts.append(bytes(wanted))
    return b"".join(parts)


@contextmanager
def copied(name: str) -> Iterator[Path]:
    """A copy of the stored header of *name*, to be changed in place while the block runs.

    What becomes of it is for :func:`replace` to say; else it is removed.
    """
    with fresh(name, path_of(name).read_bytes()) as copy:
        yield copy


def replace(name: str, changed: Path) -> None:
    """Put the *changed* copy in the place of the stored header of *name*, durably.

    The old one stays as the pending one, by which an interrupted change of the drive's own
    header is known for what it is (see ``worker.own_header``).
    """
    fd = os.open(changed, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    with suppress(FileNotFoundError):
        paths.pending_header(name).unlink()
    os.link(path_of(name), paths.pending_header(name))
    fsync_directory(paths.HEADERS)
    changed.rename(path_of(name))
    fsync_directory(paths.HEADERS)


@contextmanager
def fresh(name: str, raw: bytes) -> Iterator[Path]:
    """A new, durable file with *raw* beside the stored headers; removed if it is still there."""
    paths.HEADERS.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = paths.HEADERS / f".{name}.new"
    with suppress(FileNotFoundError):
        new.unlink()
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(fd)
        yield new
    finally:
        with suppress(FileNotFoundError):
            new.unlink()


def pending(name: str) -> Header | None:
    """The header from before a change that may not have reached the drive; None without one."""
    try:
        return parse(paths.pending_header(name).read_bytes(), stored=True)
    except (FileNotFoundError, ForgedDrive):
        return None


def settled(name: str) -> None:
    """The drive has the stored header: forget the one from before."""
    with suppress(FileNotFoundError):
        paths.pending_header(name).unlink()
        fsync_directory(paths.HEADERS)


def fsync_directory(directory: Path) -> None:
    """Make the names in *directory* durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def sealed(header: Header) -> Iterator[int]:
    """A memfd with the header that nobody, we included, can change any more (memfd_create(2))."""
    fd = os.memfd_create("luks2-header", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(header.raw)
        while view:
            view = view[os.write(fd, view) :]
        seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        yield fd
    finally:
        os.close(fd)
