"""The superblock of the filesystem inside: bytes of the drive, looked at before it is mounted."""

from __future__ import annotations

from hypothesis import strategies as st

from cryptbackd.errors import DriveFailed
from cryptbackd.worker import superblock
from tests.fuzz import properties
from tests.fuzz.fuzzer import Fuzzer

_PLACES = {
    "ext4": {0x38: 2, 0x18: 4, 0x60: 4, 0x4: 4, 0x150: 4, 0xC: 4, 0x158: 4},
    "btrfs": {0x40: 8, 0xC9 + 8: 8},
    "xfs": {0: 4, 8: 8, 4: 4},
}
"""Where what is looked at stands, and how many bytes it has."""


def _number(value: int, size: int, fstype: str) -> bytes:
    return value.to_bytes(size, "big" if fstype == "xfs" else "little")


def sample(fstype: str) -> bytearray:
    """A superblock of a filesystem of 128 MiB, as far as it is looked at."""
    raw = bytearray(1024)
    if fstype == "ext4":
        raw[0x38:0x3A] = b"\x53\xef"
        raw[0x18:0x1C], raw[0x60:0x64] = _number(2, 4, fstype), _number(0x80, 4, fstype)
        raw[0x4:0x8], raw[0xC:0x10] = _number(32768, 4, fstype), _number(20000, 4, fstype)
    elif fstype == "btrfs":
        raw[0x40:0x48] = b"_BHRfS_M"
        raw[0xD1:0xD9] = _number(128 << 20, 8, fstype)
    else:
        raw[:4] = b"XFSB"
        raw[4:8], raw[8:16] = _number(4096, 4, fstype), _number(32768, 8, fstype)
    return raw


@st.composite
def inputs(draw: st.DrawFn) -> bytes:
    """Kind, and a superblock in which some numbers are others."""
    fstype = draw(st.sampled_from(tuple(_PLACES)))
    raw = sample(fstype)
    for _ in range(draw(st.integers(0, 4))):
        at, size = draw(st.sampled_from(tuple(_PLACES[fstype].items())))
        numbers = st.one_of(
            st.sampled_from((0, 1, 6, 7, 64, 2**31, 2**32 - 1, 2**63, 2**64 - 1)),
            st.integers(0, 2**64 - 1),
        )
        raw[at : at + size] = _number(draw(numbers) % (1 << 8 * size), size, fstype)
    cut = draw(st.sampled_from((1024,) * 8 + (0, 1, 0x39, 1023)))
    return fstype.encode() + b" " + bytes(raw[:cut])


def check(raw: bytes) -> str:
    """It is none, or a length that a device can have and what is in use of it."""
    kind, _space, block = raw.partition(b" ")
    fstype = kind.decode("ascii", "replace")
    if fstype not in _PLACES:
        return "no case"

    def read() -> str:
        with properties.refusing(DriveFailed):
            found = superblock.parse(block, fstype)
        assert 0 < found.length < 2**63
        assert 0 <= found.used <= found.length
        return fstype

    return properties.outcome(read)


FUZZER = Fuzzer(
    "superblocks",
    "superblocks of ext4, btrfs and xfs: `worker.superblock`",
    inputs(),
    check,
)
