"""Which files make up a container, and what is refused."""

from __future__ import annotations

import os
import struct
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptbackd.errors import DriveFailed, ForgedDrive, Refused
from cryptbackd.sizes import MIB
from cryptbackd.worker.layers import files, ntfs
from cryptbackd.worker.layers.files import BLOCK, PART

TOTAL = st.integers(1, 2 << 40)
EACH = st.integers(32, 4095).map(lambda n: n * MIB)


@given(TOTAL, st.none() | EACH)
def test_the_files_make_up_the_whole_and_none_is_too_large(total: int, each: int | None) -> None:
    total = total // MIB * MIB + MIB
    try:
        lengths = files.several("vfat", total, each)
    except DriveFailed:
        assert total > 999 * (each or PART)
        return
    if lengths is None:
        assert each is None
        assert total < 4 << 30
        return
    assert sum(lengths) == total
    assert set(lengths[:-1]) <= {each or PART}
    assert 0 < lengths[-1] <= (each or PART) < 4 << 30
    files.judge([files.part("x", n) for n in range(len(lengths))], lengths)
    names = [files.part("dir/x", n).removeprefix("dir/") for n in range(len(lengths))]
    assert files.numbers("dir/x", [*reversed(names), "x", "x.1", "x.0000", "y.000"]) == list(
        range(len(lengths))
    )


def test_only_fat_needs_several() -> None:
    assert files.several("vfat", 4095 * MIB) is None
    assert files.several("vfat", 4096 * MIB) == [4095 * MIB, MIB]
    for fstype in ("ext4", "exfat", "ntfs", "ntfs3", "f2fs", "btrfs", "xfs"):
        assert files.several(fstype, 1 << 41) is None


@given(st.lists(st.integers(0, 4).map(lambda n: n * BLOCK), min_size=2, max_size=5))
def test_all_are_of_one_length_but_the_last(sizes: list[int]) -> None:
    names = [files.part("backup.luks", n) for n in range(len(sizes))]
    good = len(set(sizes[:-1])) == 1 and 0 < sizes[-1] <= sizes[0]
    if good:
        files.judge(names, sizes)
    else:
        with pytest.raises(ForgedDrive, match="doesn't fit"):
            files.judge(names, sizes)


@pytest.mark.parametrize("sizes", [[4096, 100], [5000, 5000], [5000, 4096]])
def test_a_length_that_is_no_multiple_of_a_sector_is_refused(sizes: list[int]) -> None:
    with pytest.raises(ForgedDrive):
        files.judge(["a.000", "a.001"], sizes)


def volume(flags: int) -> bytes:
    """An NTFS of which only what is looked at is there.

    The flags end a sector: there stands the record's mark, and what belongs there elsewhere.
    """
    boot, record = bytearray(4096), bytearray(1024)
    struct.pack_into("<HB", boot, 11, 512, 8)
    struct.pack_into("<Q", boot, 48, 1)
    struct.pack_into("<b", boot, 64, -10)
    record[:4] = b"FILE"
    struct.pack_into("<HH", record, 4, 48, 3)
    struct.pack_into("<H", record, 20, 56)
    struct.pack_into("<II", record, 56, 0x10, 420)
    struct.pack_into("<II", record, 476, 0x70, 40)
    struct.pack_into("<H", record, 476 + 20, 24)
    struct.pack_into("<3H", record, 48, 7, flags, 0)
    struct.pack_into("<H", record, 510, 7)
    struct.pack_into("<H", record, 1022, 7)
    return bytes(boot + bytes(3 * 1024) + record)


@pytest.mark.parametrize(("flags", "dirty"), [(0, False), (1, True), (0x4001, True), (2, False)])
def test_the_mark_of_an_ntfs_that_was_left_is_found(
    tmp_path: Path, flags: int, dirty: bool
) -> None:
    image = tmp_path / "image"
    image.write_bytes(volume(flags))
    if dirty:
        with pytest.raises(Refused, match="not unmounted cleanly"):
            ntfs.want_clean(os.fspath(image))
    else:
        ntfs.want_clean(os.fspath(image))


@given(st.binary(max_size=200), st.integers(0, 8000))
def test_an_ntfs_of_a_stranger_harms_nobody(noise: bytes, at: int) -> None:
    raw = bytearray(volume(0))
    raw[at : at + len(noise)] = noise
    fd = os.memfd_create("ntfs")
    try:
        os.write(fd, raw)
        with suppress(Refused):  # noise may well be the mark
            ntfs.want_clean(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
