"""Drives as they come from the shop: each filesystem that a drive may have takes a backup."""

from __future__ import annotations

import shlex

import pytest

from tests.machine import Machine
from tests.machine.enroll import CHEAP, PASSPHRASE, credential, init, make_files
from tests.vm.container import listing, opened
from tests.vm.failing import KERNEL_MISSES_IT, NO_HOLES_ON_FAT, succeeds_next
from tests.vm.runs import copied

MIB = 1 << 20
SIZES = {"xfs": 320, "btrfs": 192, "f2fs": 160}
"""MiB of a stick, where 96 are too few for its filesystem."""


@pytest.mark.parametrize("outside", ["vfat", "exfat", "ntfs", "xfs", "btrfs", "f2fs"])
def test_a_drive_with_this_filesystem_is_backed_up_to_and_gives_files_back(
    vm: Machine, outside: str
) -> None:
    vm.expect_journal(NO_HOLES_ON_FAT)
    make_files(vm)
    credential(vm, "home")
    stick = vm.stick("main", size=SIZES.get(outside, 96) * MIB, fs=outside, partitioned=True)
    stick.plug()
    init(vm, stick.partition, "home", "--size", "56M", "--filesystem", "ext4")
    first = listing(vm, "/home/me")
    vm.run("cd /home/me && rm photos/two.jpg && echo more > documents/more")
    succeeds_next(vm)
    with opened(vm) as container:
        if outside == "btrfs":
            assert "C" in vm.run(["lsattr", "/mnt/drive/backup.luks"]).out.split()[0]
        names = container.versions()
        assert len(names) == 2
        assert container.listing(names[0]) == first
        assert container.listing(names[1]) == listing(vm, "/home/me")


CLEAR = "ntfsfix --clear-dirty"
MARK = """
import sys

with open(sys.argv[1], "r+b") as file:
    boot = file.read(512)
    for place in (boot[48:56], boot[56:64]):  # $MFT, $MFTMirr
        record = int.from_bytes(place, "little") * 512 * boot[13] + 3 * 1024
        file.seek(record)
        volume = bytearray(file.read(1024))
        at = volume.index(bytes([3, 1]), volume.index(b"\\x70\\0\\0\\0"))  # 3.1, then flags
        volume[at + 2] |= 1
        file.seek(record)
        file.write(volume)
"""


def test_a_dirty_ntfs_is_refused_and_not_forced(vm: Machine) -> None:
    vm.expect_journal(NO_HOLES_ON_FAT)
    vm.expect_journal("^cryptbackd: home: failed: .*cleanly")
    stick = vm.stick("main", size=96 * MIB, fs="ntfs", partitioned=True)
    stick.plug()
    words = ["--size", "56M", "--filesystem", "ext4", "--no-run"]
    init(vm, stick.partition, "home", *words)
    credential(vm, "home")
    vm.run(["python3", "-I", "-", stick.partition], input=MARK.encode())
    told = "was not unmounted cleanly, and writing to it could harm what is on it."
    ended = vm.run(["cryptback", "run", "home"], check=False)
    assert ended.code == 1
    assert told in ended.err + ended.out
    shown = vm.run(["ntfsinfo", "--mft", "--force", stick.partition]).out
    assert "Volume Flags: 0x0001 DIRTY" in shown
    vm.run(f"{CLEAR} {stick.partition}")
    succeeds_next(vm)


@pytest.mark.parametrize(
    ("outside", "options"),
    [("vfat", []), ("vfat", ["--part-size", "32M"]), ("ntfs", [])],
    ids=["one file", "several", "ntfs"],
)
def test_a_pulled_init_goes_on_where_it_was(vm: Machine, outside: str, options: list[str]) -> None:
    vm.expect_journal(NO_HOLES_ON_FAT)
    vm.expect_journal(KERNEL_MISSES_IT)
    words = ["--size", "80M", "--filesystem", "ext4", "--no-run", *options]
    size = 96 if outside == "vfat" else 128
    stick = vm.stick("main", size=size * MIB, fs=outside, partitioned=True)
    stick.plug(bps=4 * MIB)
    command = ["cryptback", "init", stick.partition, "--name", "home", "--include", "/home/me"]
    command += ["--yes", "--passphrase-fd", "3", *CHEAP, "--json", *words]
    vm.push("/run/passphrase", PASSPHRASE, 0o600)
    script = f"exec {shlex.join(command)} 3< /run/passphrase > >(exec logger --tag init) 2>&1"
    running = vm.spawn(["/bin/bash", "-c", script])
    vm.wait_journal(copied(30_000_000, "formatting"), SYSLOG_IDENTIFIER="init", timeout=120)
    stick.pull()
    assert running.wait(check=False, timeout=60).code == 75
    stick.plug()
    init(vm, stick.partition, "home", *words)
    going_on = vm.wait_journal("going on with the container that was begun", CRYPTBACK_DRIVE="home")
    assert float(going_on["MESSAGE"].split("begun: ")[1].split(" MiB")[0]) >= 8
    credential(vm, "home")
    succeeds_next(vm)
