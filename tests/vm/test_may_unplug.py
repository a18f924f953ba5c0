"""\"You may unplug\" is said when it is true, and never else."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.machine import Fault, Machine, layers, oracle
from tests.machine.layers import Layer
from tests.vm.container import listing, opened
from tests.vm.failing import Hold, first_is_whole, nothing_left, succeeds_next, tells
from tests.vm.runs import MIB, UNIT, drive, ended, now, settled

MAY = "You may unplug home now."
NOT_PROVEN = "It was not proven that home may be unplugged."
DRIVE_BREAKS = (
    "^kernel: .*(I/O error|Sense Key|Add. Sense|FAILED|Aborting journal|JBD2|EXT4-fs|BTRFS|lost"
    "|critical|Synchronize Cache)"
)
ELSEWHERE = """
unshare --mount --propagation private sh -c \
    'mount "$1" /mnt && echo > /run/elsewhere && exec sleep 1000' sh "$1"
"""


def in_mid_sync(vm: Machine, megabytes: int) -> Hold:
    """Prepare a run that has something to write; it will be held where the copy begins."""
    vm.run(f"mkdir /home/me/more && head -c {megabytes}M /dev/urandom > /home/me/more/big")
    return Hold(vm, "/usr/bin/rsync", "--info=progress2")


def test_drive_mounted_out_of_sight_may_not_be_unplugged(enrolled: Machine) -> None:
    """Another process has it mounted in a mount namespace of its own."""
    vm = enrolled
    vm.expect_journal("^cryptbackd: home: failed: ")
    hold = in_mid_sync(vm, 1)
    stick = vm.stick("main")
    stick.plug()
    syncing = hold.wait()
    vm.run("rm -f /run/elsewhere && mkfifo /run/elsewhere")
    other = vm.spawn(["/bin/sh", "-c", ELSEWHERE, "sh", stick.partition])
    vm.run(["cat", "/run/elsewhere"])
    vm.expect_leftovers(f"^mount of {stick.partition} on /mnt ")
    syncing.go_on()
    tells(vm, "is still in use: another program has it mounted out of our sight")
    assert vm.journal(MESSAGE=NOT_PROVEN)
    assert not vm.journal(MESSAGE=MAY)
    assert not drive(vm)["safe"]

    vm.expected_leftovers.clear()
    vm.run(["pkill", "-x", "sleep"])
    other.wait(check=False)
    nothing_left(vm)
    succeeds_next(vm)


def test_drive_that_is_mounted_by_hand_after_its_run_may_not_be_unplugged(
    enrolled: Machine,
) -> None:
    """Whoever asks is told so until it is unmounted again; the same for a mapping."""
    vm = enrolled
    stick = vm.stick("main")
    stick.plug()
    assert ended(vm)["CRYPTBACK_OUTCOME"] == "done"
    for use, end in (
        (f"mount {stick.partition} /mnt", "umount /mnt"),
        (
            f"echo 0 8 linear {stick.partition} 0 | dmsetup create by-hand",
            "dmsetup remove --retry by-hand",
        ),
    ):
        assert drive(vm)["safe"]
        vm.run(use)
        assert not drive(vm)["safe"]
        vm.run(end)
    assert drive(vm)["safe"]


def test_drive_of_which_an_eject_proved_nothing_may_not_be_unplugged(enrolled: Machine) -> None:
    """Although its last run had proven it; and by another eject it may."""
    vm = enrolled
    stick = vm.stick("main")
    stick.plug()
    assert ended(vm)["CRYPTBACK_OUTCOME"] == "done"
    assert drive(vm)["safe"]
    vm.run("rm -f /run/elsewhere && mkfifo /run/elsewhere")
    other = vm.spawn(["/bin/sh", "-c", ELSEWHERE, "sh", stick.partition])
    vm.run(["cat", "/run/elsewhere"])
    refused = vm.run(["cryptback", "eject", "home"], check=False)
    assert refused.code != 0
    assert MAY not in refused.out
    assert not drive(vm)["safe"]
    vm.run(["systemctl", "restart", UNIT])
    assert not settled(vm)["safe"]

    vm.run(["pkill", "-x", "sleep"])
    other.wait(check=False)
    vm.run(["cryptback", "eject", "home"])
    assert drive(vm)["safe"]
    nothing_left(vm)


@pytest.mark.parametrize(
    ("moment", "fault"),
    [
        pytest.param("syncing", Fault("write"), id="writes"),
        pytest.param("locking", Fault("write"), id="last-writes", marks=pytest.mark.slow),
        pytest.param("locking", Fault("flush"), id="flushes", marks=pytest.mark.slow),
    ],
)
def test_drive_that_fails_may_not_be_unplugged(
    enrolled: Machine, moment: str, fault: Fault
) -> None:
    vm = enrolled
    vm.expect_journal("^cryptbackd: home: failed: ")
    vm.expect_journal(DRIVE_BREAKS)
    files = listing(vm, "/home/me")
    hold = in_mid_sync(vm, 16)
    stick = vm.stick("main")
    stick.plug()
    held = hold.wait()
    if moment == "locking":
        later = Hold(vm, "/usr/bin/umount", "/run/cryptbackd/home/tree")
        held.go_on()
        held = later.wait()
    stick.fail(fault)
    held.go_on()
    end = ended(vm)
    nothing_left(vm)
    assert end["CRYPTBACK_OUTCOME"] == "failed"
    assert "Input/output error" in end["MESSAGE"] or "turned read-only" in end["MESSAGE"]
    assert vm.journal(MESSAGE=NOT_PROVEN)
    assert not vm.journal(MESSAGE=MAY)
    assert not drive(vm)["safe"]

    succeeds_next(vm)
    first_is_whole(vm, files)


ONCE = Fault("write", errno=61, once=True)
"""A medium error (ENODATA) to the kernel, which doesn't try again: every later write works."""
MOMENTS = {
    "syncing": ("/usr/bin/rsync", "--info=progress2"),
    "locking": ("/usr/bin/umount", "/run/cryptbackd/home/tree"),
    "leaving": ("/usr/bin/umount", "/run/cryptbackd/home/drive"),
}


@pytest.mark.parametrize("layer", [layers.ENROLLED, layers.ENROLLED_EXT4], ids=["btrfs", "ext4"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_one_lost_write_that_all_later_ones_forgive(moment: str, layer: Layer) -> None:
    """It may be unplugged only if everything is there all the same, and in order."""
    with layers.resume(layer) as vm:
        vm.expect_journal("^cryptbackd: home: failed: ")
        vm.expect_journal(DRIVE_BREAKS)
        vm.expect_journal("^kernel: .*(critical medium error|loop0|dm-0)")
        files = listing(vm, "/home/me")
        vm.run("mkdir /home/me/more && head -c 16M /dev/urandom > /home/me/more/big")
        wanted = listing(vm, "/home/me")
        hold = Hold(vm, *MOMENTS[moment])
        stick = vm.stick("main")
        stick.plug()
        held = hold.wait()
        stick.fail(ONCE)
        held.go_on()
        end = ended(vm)
        nothing_left(vm)
        vm.wait_journal("critical medium error", _TRANSPORT="kernel")
        said = bool(vm.journal(MESSAGE=MAY))
        assert said != bool(vm.journal(MESSAGE=NOT_PROVEN))
        assert (said, said) == (drive(vm)["safe"], end["CRYPTBACK_OUTCOME"] == "done")
        stick.pull()
        vm.run(["systemctl", "mask", "--runtime", "--now", UNIT])
        stick.plug()
        with opened(vm) as container:
            names = container.versions()
            assert container.listing(names[0]) == files
            assert not said or container.listing(names[1]) == wanted
        stick.pull()
        vm.run(f"systemctl unmask --runtime {UNIT} && systemctl start {UNIT}")
        succeeds_next(vm)
        oracle.check(vm)


@pytest.mark.parametrize(
    "count", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 5))]
)
def test_nothing_is_written_after_you_may_unplug(enrolled: Machine, count: int) -> None:
    """What is on the drive at that moment is what is on it for good.

    The drive is so slow that what was left to be written would take seconds.
    """
    vm = enrolled
    hold = in_mid_sync(vm, 12)
    stick = vm.stick("main")
    stick.plug()
    syncing = hold.wait()
    stick.throttle(2 * MIB)
    syncing.go_on()
    since = now(vm)
    vm.wait_journal(f"^{MAY}$", since=since, CRYPTBACK_DRIVE="home")
    at_that_moment = digest(stick.path)
    writes = written(vm)
    end = ended(vm, since=since)
    assert end["CRYPTBACK_OUTCOME"] == "done"
    assert written(vm) == writes
    stick.pull()
    assert digest(stick.path) == at_that_moment


def digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def written(vm: Machine) -> int:
    """How many bytes the computer has ever written to the stick since it was plugged in."""
    shown = vm.monitor.call("query-blockstats")
    (stick,) = [each for each in shown if "/main/" in each.get("qdev", "")]
    count: int = stick["stats"]["wr_bytes"]
    return count
