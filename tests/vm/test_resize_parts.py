"""`cryptback resize` of a container that is several files: further ones are added, and go again.

The files are small, as in `test_parts`; in one test they are as FAT32 wants them.
"""

from __future__ import annotations

import pytest

from tests.machine import Machine, Stick
from tests.machine.enroll import credential, init, make_files
from tests.vm.failing import NO_HOLES_ON_FAT, Hold, kill, succeeds_next, tells
from tests.vm.runs import news, now
from tests.vm.test_parts import FILES, SHOWN, enrolled_in_parts, gives_files_back, on_drive
from tests.vm.test_resize import CRYPTSETUP, DMSETUP, MIB, RESIZE2FS, UMOUNT, no_note, resize


def files(*mebibytes: int) -> str:
    """What is shown of files of these lengths."""
    return "".join(f"backup.luks.{n:03} {m * MIB}\n" for n, m in enumerate(mebibytes))


def test_further_files_are_added_and_go_again(vm: Machine) -> None:
    stick = enrolled_in_parts(vm)
    done = resize(vm, "max")
    assert " MiB, 80.0 MiB before" in done.out
    shown = on_drive(vm, stick, SHOWN)
    assert shown.startswith(files(32, 32, 32) + "backup.luks.003 ")
    vm.run("head -c 20M /dev/urandom > /home/me/big")
    succeeds_next(vm)
    resize(vm, "78M")
    assert on_drive(vm, stick, SHOWN) == files(32, 32, 14)
    gives_files_back(vm, stick)
    assert no_note(vm)


CUTS = {
    "longer: joined": (DMSETUP, "reload cryptback-home-parts", "110M", True),
    "shorter: filesystem": (RESIZE2FS, "cryptback-home", "78M", False),
    "shorter: before merging": (DMSETUP, "snapshot-merge", "78M", True),
    "longer: resumed": (DMSETUP, "resume .*cryptback-home-parts", "110M", True),
    "shorter: merging": (DMSETUP, "status", "78M", True),
    "longer: volume": (CRYPTSETUP, " resize ", "110M", True),
    "longer: locking": (UMOUNT, "cryptbackd/home/tree", "112M", True),
}
"""Where the worker is killed, one after the other: a program that it starts, the new length, and
whether that is then done (or undone)."""
LENGTHS = {"78M": (32, 32, 14), "110M": (32, 32, 32, 14), "112M": (32, 32, 32, 16)}
SOME = ("longer: joined", "shorter: merging")


@pytest.mark.parametrize("cuts", [SOME, tuple(CUTS)], ids=["some", "everywhere"])
@pytest.mark.timeout(1200, func_only=True)
def test_killed_while_it_is_resized_it_is_finished_or_undone(
    vm: Machine, cuts: tuple[str, ...]
) -> None:
    stick = enrolled_in_parts(vm)
    vm.expect_journal("^cryptbackd: home: failed: ")
    shown = FILES
    for cut in cuts:
        program, pattern, size, done = CUTS[cut]
        hold = Hold(vm, program, pattern)
        working = vm.spawn(["cryptback", "resize", "home", size])
        held = hold.wait(timeout=120)
        since = now(vm)
        kill(vm, held.worker)
        assert working.wait(check=False, timeout=60).code == 1, cut
        told = "what was begun is finished or undone when the drive is opened next"
        tells(vm, told, since=since)
        if done:
            shown = files(*LENGTHS[size])
        settles(vm, stick, shown)


def settles(vm: Machine, stick: Stick, shown: str) -> None:
    """The next run brings it to an end, before it backs up; nothing is left to be done."""
    succeeds_next(vm)
    assert on_drive(vm, stick, "ls -A | grep -v '^backup.luks' || true") == ""
    assert on_drive(vm, stick, SHOWN) == shown
    gives_files_back(vm, stick)
    assert no_note(vm)


KILL = "kill -KILL $(pgrep -P $(pgrep -P $(systemctl show -P MainPID cryptbackd)))"


def test_killed_while_a_further_file_is_filled_it_is_undone(vm: Machine) -> None:
    """Of the third file 16 MiB are missing; the fourth gets what comes after."""
    stick = enrolled_in_parts(vm)
    vm.expect_journal("^cryptbackd: home: failed: ")
    stick.throttle(2 * MIB)
    filling = news(vm, r'"phase": "resizing", "done": 1[67][0-9]{6}\b', then=KILL)
    working = vm.spawn(["cryptback", "resize", "home", "112M"])
    filling.wait(timeout=180)
    assert working.wait(check=False, timeout=120).code == 1
    stick.throttle(0)
    shown = on_drive(vm, stick, SHOWN)
    assert shown.startswith(files(32, 32, 32) + "backup.luks.003 ")
    assert not shown.endswith(f" {16 * MIB}\n")
    settles(vm, stick, FILES)


@pytest.mark.timeout(2400, func_only=True)
def test_one_file_on_fat_goes_on_in_another(vm: Machine) -> None:
    """It keeps its name, so nothing of it has to be renamed; and all of it is cut off again."""
    vm.expect_journal(NO_HOLES_ON_FAT)
    # It is pulled at once after the kill, when FAT may not have been told to be clean yet.
    vm.expect_journal(
        "^kernel: (device offline error|Buffer I/O error on dev sd.1, logical block 0)"
    )
    vm.expect_journal("^cryptbackd: home: failed: ")
    make_files(vm)
    credential(vm, "home")
    stick = vm.stick("main", size=5 << 30, fs="vfat", partitioned=True)
    stick.plug(sparse=True)
    init(vm, stick.partition, "home", "--filesystem", "ext4", "--size", "300M")
    hold = Hold(vm, DMSETUP, "create cryptback-home-parts")
    working = vm.spawn(["cryptback", "resize", "home", "4200M"])
    kill(vm, hold.wait(timeout=1200).worker)
    assert working.wait(check=False, timeout=60).code == 1
    settles(vm, stick, f"backup.luks {4095 * MIB}\nbackup.luks.001 {105 * MIB}\n")
    resize(vm, "+10M")
    settles(vm, stick, f"backup.luks {4095 * MIB}\nbackup.luks.001 {115 * MIB}\n")
    resize(vm, "4000M")
    settles(vm, stick, f"backup.luks {4000 * MIB}\n")
    resize(vm, "4300M")
    settles(vm, stick, f"backup.luks {4095 * MIB}\nbackup.luks.001 {205 * MIB}\n")
