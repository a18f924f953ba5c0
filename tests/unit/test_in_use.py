"""A disk is in use by what the kernel shows of it, and by nothing of another one."""

from __future__ import annotations

from pathlib import Path

import pytest

from cryptbackd.daemon.in_use import in_use

MOUNTS = """\
24 29 0:22 / /proc rw,nosuid - proc proc rw
29 1 254:1 / / rw,relatime - ext4 /dev/vda1 rw
61 29 0:44 / /home/me/\x0b\u2028\x85\udcff 8:33 rw - fuse.sshfs /dev/sdc1 rw
"""


@pytest.fixture
def sys(tmp_path: Path) -> Path:
    """Two disks with two partitions each."""
    for major, disk in ((8, "sdb"), (8, "sdc")):
        for part in ("", "1", "2"):
            node = tmp_path / "class/block" / disk / (disk + part if part else "")
            (node / "holders").mkdir(parents=True)
            (node / "dev").write_text(f"{major}:{(ord(disk[-1]) - 97) * 16 + int(part or 0)}\n")
            if part:
                (node / "partition").write_text(part)
    put_mounts(tmp_path)
    return tmp_path


def put_mounts(sys: Path, *more: str) -> None:
    text = MOUNTS + "".join(f"{line}\n" for line in more)
    (sys / "mountinfo").write_text(text, "utf-8", "surrogateescape")


def users(sys: Path) -> list[bool]:
    return [in_use(f"/dev/{disk}", sys, sys / "mountinfo") for disk in ("sdb", "sdc")]


def test_a_disk_that_nobody_has_is_free(sys: Path) -> None:
    assert users(sys) == [False, False]


@pytest.mark.parametrize("number", ["8:16", "8:17", "8:18"])
def test_what_is_mounted_is_in_use(sys: Path, number: str) -> None:
    put_mounts(sys, f"70 29 {number} / /mnt rw - vfat /dev/disk/by-label/STICK rw")
    assert users(sys) == [True, False]


@pytest.mark.parametrize("node", ["sdb", "sdb/sdb2"])
def test_what_is_mapped_is_in_use(sys: Path, node: str) -> None:
    (sys / "class/block" / node / "holders/dm-3").touch()
    assert users(sys) == [True, False]


def test_a_btrfs_is_in_use_by_its_devices(sys: Path) -> None:
    devices = sys / "fs/btrfs/1b2c/devices"
    devices.mkdir(parents=True)
    (sys / "fs/btrfs/features").mkdir()
    put_mounts(sys, "70 29 0:51 / /mnt rw - btrfs /dev/sdb1 rw")
    (devices / "sdb1").touch()
    assert users(sys) == [True, False]


def test_a_disk_that_is_gone_is_not_in_use() -> None:
    assert not in_use("/dev/no-such-disk")
