"""What a run needs is not there, or taken: memory, room, a clock that goes right, loop devices."""

from __future__ import annotations

import re

import pytest

from tests.machine import Machine
from tests.machine.enroll import credential, init, make_files
from tests.machine.stick import Fault, Stick
from tests.vm.container import listing, opened
from tests.vm.failing import (
    KERNEL_MISSES_IT,
    first_is_whole,
    nothing_left,
    succeeds_next,
    tells,
)
from tests.vm.runs import MIB, PATIENCE, drive, ended, go_on, hold, now, random_files

CONTAINER = "/mnt/drive/backup.luks"
ASKED = "home: A passphrase came from the source “credential”."
SMALL = ["--size", "56M", "--filesystem", "ext4"]
LIMIT = ["systemctl", "set-property", "--runtime", "cryptbackd.service"]
SPARSE = f"""
set -e
mkdir -p /mnt/drive
mount "$1" /mnt/drive
cp --sparse=always {CONTAINER} {CONTAINER}.new
mv {CONTAINER}.new {CONTAINER}
dd if=/dev/zero of=/mnt/drive/full bs=1M 2> /dev/null || true
dd if=/dev/zero of=/mnt/drive/full.too bs=4k 2> /dev/null || true
umount /mnt/drive
udevadm settle
"""


def without_the_service(vm: Machine, script: str) -> None:
    """Do something to the stick, which stays in, while the service is away."""
    vm.run(["systemctl", "mask", "--runtime", "--now", "cryptbackd.service"])
    stick = vm.stick("main")
    if not stick.plugged:
        stick.plug()
    vm.run(["/bin/sh", "-c", script, "sh", stick.partition], timeout=PATIENCE)
    stick.pull()
    vm.run("systemctl unmask --runtime cryptbackd.service && systemctl start cryptbackd")


def test_out_of_memory_everything_is_locked_and_the_next_run_succeeds(enrolled: Machine) -> None:
    vm = enrolled
    vm.expect_journal(
        "oom-kill|Out of memory|OOM|[Kk]illed process|Failed with result|Failed to|^kernel: BTRFS"
    )
    vm.expect_journal("^cryptbackd: home: failed: ")
    files = listing(vm, "/home/me")
    random_files(vm, 4, 8)
    stick = vm.stick("main")
    hold(vm, stick, at_least=MIB)
    since = now(vm)
    # What can be had is taken away (memory.max below what is in use kills; kernel.org, cgroup v2).
    vm.run([*LIMIT, "MemoryMax=8M"], check=False)
    vm.run(["pkill", "-CONT", "rsync"], check=False)
    vm.wait_journal("oom-kill", since=since, timeout=PATIENCE)
    vm.run([*LIMIT, "MemoryMax=infinity"])
    end = ended(vm, since=since)
    assert end["CRYPTBACK_OUTCOME"] in ("failed", "done", "warnings")
    vm.run(
        "until cryptback status home --json | grep -q '\"idle\"'; do sleep 0.5; done", timeout=90
    )
    nothing_left(vm)
    succeeds_next(vm)
    assert len(first_is_whole(vm, files)) >= 2


@pytest.mark.timeout(600, func_only=True)
def test_without_memory_for_the_key_this_run_fails_and_not_the_daemon(vm: Machine) -> None:
    """Argon2 may not have the 128 MiB that it takes (kernel.org, cgroup v2, memory.max)."""
    vm.expect_journal("oom-kill|Out of memory|OOM|[Kk]illed process")
    vm.expect_journal("^cryptbackd: home: failed: ")
    make_files(vm)
    credential(vm, "home")
    stick = vm.stick("main", size=96 * MIB, fs="ext4", partitioned=True)
    stick.plug()
    init(vm, stick.partition, "home", *SMALL, "--pbkdf-memory", "128")
    daemon = vm.run("systemctl show -P MainPID cryptbackd").out
    stick.pull()
    vm.run([*LIMIT, "MemoryMax=120M"])
    since = now(vm)
    stick.plug()
    tells(vm, "memory", since=since)
    assert vm.run("systemctl show -P MainPID cryptbackd").out == daemon
    (killed,) = oom_killed(vm, since)
    assert killed == "cryptsetup"
    assert drive(vm)["safe"]
    vm.run([*LIMIT, "MemoryMax=infinity"])
    succeeds_next(vm)


def oom_killed(vm: Machine, since: str) -> list[str]:
    """The programs that the kernel killed for want of memory."""
    lines = [str(entry["MESSAGE"]) for entry in vm.journal(since=since, _TRANSPORT="kernel")]
    return re.findall(r"Killed process \d+ \((\w+)\)", "\n".join(lines))


def test_a_sparse_container_on_a_full_drive_is_told(enrolled: Machine) -> None:
    vm = enrolled
    vm.expect_journal("^cryptbackd: home: failed: ")
    vm.expect_journal("^kernel: .*(loop0|dm-0|BTRFS|I/O error)")
    files = listing(vm, "/home/me")
    without_the_service(vm, SPARSE)
    random_files(vm, 4, 8)
    since = now(vm)
    vm.stick("main").plug()
    tells(vm, "could not write everything out|turned read-only", since=since)
    assert not vm.journal(since=since, MESSAGE="You may unplug home now.")
    without_the_service(vm, "mount $1 /mnt/drive && rm /mnt/drive/full* && umount /mnt/drive")
    succeeds_next(vm)
    assert len(first_is_whole(vm, files)) >= 2


@pytest.mark.parametrize("days", [-365, 365])
def test_the_clock_jumps_in_mid_run(enrolled: Machine, days: int) -> None:
    vm = enrolled
    files = listing(vm, "/home/me")
    random_files(vm, 8, 4)
    since = now(vm)
    hold(vm, vm.stick("main"), at_least=MIB)
    vm.set_clock(vm.clock() + days * 86400)
    go_on(vm)
    end = ended(vm, since=since)
    assert end["CRYPTBACK_OUTCOME"] == "done", end["MESSAGE"]
    succeeds_next(vm)
    with opened(vm) as container:
        names = container.versions()
        assert len(names) == 3
        assert files in [container.listing(name) for name in names]


def test_a_stick_that_turns_read_only_is_told(enrolled: Machine) -> None:
    """As a card does whose controller has given up: now, and whenever it is plugged in.

    To the computer each write fails; only when it is plugged in it is told why.
    """
    vm = enrolled
    vm.expect_journal("^cryptbackd: home: failed: ")
    vm.expect_journal("^kernel: .*(I/O error|EXT4-fs|BTRFS|JBD2|loop0|dm-0|Buffer I/O|sda)")
    files = listing(vm, "/home/me")
    random_files(vm, 8, 4)
    stick = vm.stick("main")
    since = now(vm)
    hold(vm, stick, at_least=MIB)
    stick.fail(Fault("write", errno=30))
    go_on(vm)
    tells(vm, "turned read-only|Input/output error", since=since)
    assert not vm.journal(since=since, MESSAGE="You may unplug home now.")
    stick.pull()
    since = now(vm)
    stick.plug(read_only=True)
    tells(vm, "write-protected", since=since)
    assert not vm.journal(since=since, MESSAGE=ASKED)
    stick.pull()
    succeeds_next(vm)
    assert len(first_is_whole(vm, files)) >= 2


SHORTER = 24 * MIB
"""Of a stick's bytes, those that are there when it has lost its end."""


def whole_again(stick: Stick, kept: bytes) -> None:
    """Have a stick that lost its end be as long as it was, with what was there before."""
    with stick.path.open("r+b") as image:
        image.truncate(len(kept))
        image.seek(SHORTER)
        image.write(kept[SHORTER:])


def test_a_stick_that_becomes_smaller_is_told(enrolled: Machine) -> None:
    """As one does whose controller has lost a part of its memory: the end is not there any more."""
    vm = enrolled
    vm.expect_journal(f"^cryptbackd: home: failed: |{KERNEL_MISSES_IT}")
    vm.expect_journal("^kernel: .*(attempt to access beyond end|sda|loop0|dm-0|Buffer I/O)")
    files = listing(vm, "/home/me")
    random_files(vm, 8, 4)
    stick = vm.stick("main")
    since = now(vm)
    hold(vm, stick, at_least=MIB)
    kept = stick.path.read_bytes()
    vm.monitor.call("block_resize", node_name="main", size=SHORTER)
    vm.run(f"echo 1 > /sys/block/{str(stick.device).rsplit('/', 1)[1]}/device/rescan")
    go_on(vm)
    tells(vm, "Input/output error", since=since)
    assert not vm.journal(since=since, MESSAGE="You may unplug home now.")
    stick.pull()
    whole_again(stick, kept)
    succeeds_next(vm)
    assert len(first_is_whole(vm, files)) >= 2


def test_a_stick_that_was_shortened_is_told_before_a_passphrase_is_asked_for(
    enrolled: Machine,
) -> None:
    """As a copy of its image on a smaller one: the kernel cuts the partition off at the end."""
    vm = enrolled
    vm.expect_journal("^cryptbackd: home: failed: |^kernel: .*(EXT4-fs|sda)")
    files = listing(vm, "/home/me")
    stick = vm.stick("main")
    kept = stick.path.read_bytes()
    with stick.path.open("r+b") as image:
        image.truncate(SHORTER)
    since = now(vm)
    stick.plug()
    tells(vm, "filesystem of the drive takes .*, and 23.0 MiB of it are there", since=since)
    assert not vm.journal(since=since, MESSAGE=ASKED)
    assert drive(vm)["safe"]
    stick.pull()
    whole_again(stick, kept)
    succeeds_next(vm)
    assert len(first_is_whole(vm, files)) == 2


TAKEN = """
set -e
mkdir -p /root/taken
for number in $(seq 0 23); do
    truncate -s 1M /root/taken/$number
    losetup /dev/loop$number /root/taken/$number
done
"""


def test_loop_devices_of_others_and_a_copy_of_all_mounts_are_in_nobodys_way(
    enrolled: Machine,
) -> None:
    """Another service clones the mount namespace in mid-run, and lives on."""
    vm = enrolled
    vm.expect_leftovers("/root/taken/")
    vm.run(TAKEN)
    random_files(vm, 8, 4)
    since = now(vm)
    hold(vm, vm.stick("main"), at_least=MIB)
    clone = ["systemd-run", "--quiet", "--unit=clone", "--property=PrivateMounts=yes"]
    vm.run([*clone, "sleep", "infinity"])
    go_on(vm)
    assert ended(vm, since=since)["CRYPTBACK_OUTCOME"] == "done"
    assert vm.journal(since=since, MESSAGE="You may unplug home now.")
    nothing_left(vm)
    succeeds_next(vm)
    vm.run("systemctl stop clone && losetup -D && rm -r /root/taken")


# A device's file is made by the kernel in /dev, and has no place there any more.
NO_MORE = """
set -e
take() {
    truncate -s 1M /root/taken/$1
    losetup /dev/loop$1 /root/taken/$1
}
mkdir -p /root/taken
for number in $(ls -d /sys/block/loop* | sed s,.*loop,,); do
    [ -z "$1" ] || take $number
done
mount -o remount,nr_inodes=$(df --output=iused /dev | tail -n 1 | tr -d ' ') /dev
"""


@pytest.mark.parametrize(
    ("taken", "sentence"),
    [("loop devices", "No loop device is to be had"), ("", "udev did not see")],
)
def test_when_no_more_devices_can_be_made_it_is_told(
    enrolled: Machine, taken: str, sentence: str
) -> None:
    """With all loop devices taken, there is none; else there is none for the mapping."""
    vm = enrolled
    vm.expect_leftovers("/root/taken/")
    vm.expect_journal("^cryptbackd: home: failed: ")
    vm.expect_journal("No space left on device")
    files = listing(vm, "/home/me")
    vm.stick("main").plug()
    assert ended(vm)["CRYPTBACK_OUTCOME"] == "done"
    vm.run(["/bin/sh", "-c", NO_MORE, "sh", taken])
    since = now(vm)
    vm.run(["cryptback", "run", "home"], check=False, timeout=PATIENCE)
    tells(vm, sentence, since=since)
    assert drive(vm)["safe"]
    vm.run("mount -o remount,nr_inodes=0 /dev && losetup -D && rm -r /root/taken")
    succeeds_next(vm)
    assert len(first_is_whole(vm, files)) >= 2


NO_MODULE = """
set -e
echo 'install loop /bin/false' > /etc/modprobe.d/none.conf
rmmod loop
"""


def test_a_kernel_that_has_no_loop_devices_is_told(enrolled: Machine) -> None:
    """As after an update of the kernel that took away the modules of the one that runs."""
    vm = enrolled
    vm.expect_journal("^cryptbackd: home: failed: ")
    vm.run(NO_MODULE)
    since = now(vm)
    vm.stick("main").plug()
    told = tells(vm, "The kernel has no loop devices", since=since)
    assert not vm.journal(since=since, MESSAGE=ASKED)
    assert "restart the computer" in vm.run(["cryptback", "status", "home"]).out, told
    vm.run("rm /etc/modprobe.d/none.conf")
    succeeds_next(vm)
