"""`cryptback resize`: longer and shorter containers, and what cuts that off."""

from __future__ import annotations

import pytest

from tests.machine import Machine, Stick
from tests.machine.enroll import CHEAP, PASSPHRASE, credential, init, make_files
from tests.machine.guest import Result
from tests.vm.container import TREE, listing, opened
from tests.vm.failing import KERNEL_MISSES_IT, NO_PLYMOUTH, Hold, kill, nothing_left, tells
from tests.vm.runs import ended, history, news, now

MIB = 1 << 20
BTRFS, RESIZE2FS, DMSETUP = "/usr/bin/btrfs", "/usr/sbin/resize2fs", "/usr/sbin/dmsetup"
CRYPTSETUP, UMOUNT = "/usr/sbin/cryptsetup", "/usr/bin/umount"
BEFORE = {"btrfs": 320, "ext4": 160}
"""MiB of the containers that the tests begin with."""

LENGTH = """
mkdir -p /mnt/drive
mount -o ro {device} /mnt/drive
stat -c '%s %b' /mnt/drive/{container}
umount /mnt/drive
"""


CHECK = """
mount -o ro {device} /mnt/drive
loop=$(losetup --read-only --find --show /mnt/drive/other)
cryptsetup open --readonly $loop byhand
e2fsck -f -n /dev/mapper/byhand
code=$?
cryptsetup close byhand
losetup --detach $loop
umount /mnt/drive
udevadm settle
exit $code
"""


def stick(vm: Machine, fstype: str) -> Stick:
    """The stick "main", plugged in and backed up to, with an ext4 container if need be."""
    main = vm.stick("main")
    if fstype == "btrfs":
        since = now(vm)
        main.plug()
        assert ended(vm, since=since)["CRYPTBACK_OUTCOME"] == "done"
        return main
    main.plug()
    ended(vm)
    vm.run("rm /etc/cryptback/drives.d/home.toml")
    options = ["--container", "other", "--filesystem", fstype, "--size", f"{BEFORE[fstype]}M"]
    vm.run(f"mount {main.partition} /mnt && rm /mnt/backup.luks && umount /mnt && udevadm settle")
    init(vm, main.partition, "home", *options)
    return main


def container(fstype: str) -> str:
    return "backup.luks" if fstype == "btrfs" else "other"


def resize(vm: Machine, size: str, check: bool = True) -> Result:
    return vm.run(["cryptback", "resize", "home", size], check=check, timeout=180)


def length(vm: Machine, fstype: str) -> int:
    """MiB of the container's file."""
    script = LENGTH.format(device=vm.stick("main").partition, container=container(fstype))
    size, _blocks = map(int, vm.run(script).out.split())
    assert size % MIB == 0
    return size // MIB


def inside(vm: Machine, fstype: str, files: str, mebibytes: int) -> None:
    """The filesystem in the container has this length, is sound, and the first version whole."""
    with opened(vm, container=container(fstype)) as found:
        size = int(vm.run(f"df --output=size -B1 {TREE} | tail -n 1").out)
        room = (mebibytes - 16) * MIB
        assert 0.8 * room < size <= room
        assert found.listing(found.versions()[0]) == files
        if fstype == "btrfs":
            vm.run(f"btrfs scrub start -B -r {TREE}")
    if fstype == "ext4":
        check = CHECK.format(device=vm.stick("main").partition)
        vm.run(check, input=PASSPHRASE.encode())


def no_note(vm: Machine) -> bool:
    return vm.run("ls -A /var/lib/cryptbackd/unfinished 2> /dev/null", check=False).out == ""


@pytest.mark.parametrize("fstype", ["btrfs", pytest.param("ext4", marks=pytest.mark.slow)])
def test_longer_and_shorter_with_everything_in_it(enrolled: Machine, fstype: str) -> None:
    vm = enrolled
    files = listing(vm, "/home/me")
    stick(vm, fstype)
    before = BEFORE[fstype]
    done = resize(vm, "+40M")
    assert f"{before + 40} MiB, {before} MiB before" in done.out
    assert "You may unplug home now." in done.out
    assert length(vm, fstype) == before + 40
    run = history(vm)[0]
    assert (run["job"], run["outcome"], run["safe"]) == ("resize", "done", True)
    done = resize(vm, f"{before - 20}M")
    assert f"{before - 20} MiB, {before + 40} MiB before" in done.out
    assert length(vm, fstype) == before - 20
    inside(vm, fstype, files, before - 20)
    assert no_note(vm)


def refuses(vm: Machine, size: str, told: str) -> None:
    """A plain refusal, after which there is nothing to be finished or undone."""
    refused = resize(vm, size, check=False)
    assert refused.code == 1
    assert told in refused.err
    assert no_note(vm)


def test_what_does_not_fit_is_refused(enrolled: Machine) -> None:
    vm = enrolled
    vm.expect_journal("^cryptbackd: home: failed: ")
    stick(vm, "btrfs")
    refuses(vm, "1G", "A container of 1.0 GiB does not fit: it has 320 MiB now, and ")
    refuses(vm, "100M", "A container of 100 MiB is too short: ")
    assert length(vm, "btrfs") == 320
    resize(vm, "max")
    most = length(vm, "btrfs")
    assert 350 < most < 400
    assert "as it had before" in resize(vm, "max").out
    assert length(vm, "btrfs") == most


def test_nothing_changes_before_the_drive_is_unlocked(enrolled: Machine) -> None:
    vm = enrolled
    stick(vm, "btrfs")
    credential(vm, "home", "wrong")
    vm.expect_journal(NO_PLYMOUTH)
    asking = vm.spawn(["cryptback", "resize", "home", "+40M"])
    vm.wait_journal("The passphrase from the source “credential” is wrong")
    assert no_note(vm)
    vm.run(["cryptback", "cancel", "home"])
    assert asking.wait(check=False).code == 130
    assert length(vm, "btrfs") == 320
    assert no_note(vm)


def test_an_xfs_becomes_longer_and_not_shorter(vm: Machine) -> None:
    make_files(vm)
    credential(vm, "home")
    main = vm.stick("main", size=560 << 20, fs="xfs", partitioned=True)
    main.plug()
    options = ["--container", "other", "--filesystem", "xfs", "--size", "360M"]
    init(vm, main.partition, "home", *options)
    files = listing(vm, "/home/me")
    resize(vm, "420M")
    assert length(vm, "xfs") == 420
    inside(vm, "xfs", files, 420)
    vm.expect_journal("^cryptbackd: home: failed: ")
    refuses(vm, "400M", "An xfs filesystem can't be made shorter.")
    assert length(vm, "xfs") == 420


def test_a_longer_partition_is_filled(vm: Machine) -> None:
    """Without a container file: here the whole stick is encrypted, and its copy is larger."""
    make_files(vm)
    credential(vm, "home")
    main = vm.stick("main", size=200 << 20)
    main.plug()
    init(vm, str(main.device), "home", "--format", "luks")
    files = listing(vm, "/home/me")
    refuses(vm, "+10M", "the partition itself is encrypted, and as long as it is.")
    assert "It fills its partition of 200 MiB already." in resize(vm, "max").out
    main.pull()
    with open(main.path, "r+b") as image:
        image.truncate(240 << 20)
    since = now(vm)
    main.plug()
    assert ended(vm, since=since)["CRYPTBACK_OUTCOME"] == "done"
    vm.expect_journal("^cryptbackd: home: failed: ")
    refuses(vm, "max", "The length of a btrfs can only be changed to 256 MiB and more.")
    main.pull()
    with open(main.path, "r+b") as image:
        image.truncate(288 << 20)
    since = now(vm)
    main.plug()
    assert ended(vm, since=since)["CRYPTBACK_OUTCOME"] == "done"
    assert "It fills its partition of 288 MiB now; " in resize(vm, "max").out
    with opened(vm, partition=str(main.device), container="") as found:
        size = int(vm.run(f"df --output=size -B1 {TREE} | tail -n 1").out)
        assert size == (288 - 16) * MIB
        assert found.listing(found.versions()[0]) == files


def test_a_copy_on_a_larger_drive_goes_on_and_grows(enrolled: Machine) -> None:
    """The container may be moved: also by a copy that leaves holes where there are zeros."""
    vm = enrolled
    files = listing(vm, "/home/me")
    main = vm.stick("main")
    main.plug()
    ended(vm)
    vm.run(f"mkdir /root/old && mount -o ro {main.partition} /root/old")
    vm.run("cp --sparse=always /root/old/backup.luks /root/copy && umount /root/old")
    uuid = main.uuid
    main.pull()
    large = vm.stick("large", size=600 << 20, fs="ext4", partitioned=True, uuid=uuid)
    vm.run("mv /etc/cryptback/drives.d/home.toml /root")
    large.plug()
    vm.run(f"mount {large.partition} /mnt && cp --sparse=always /root/copy /mnt/backup.luks")
    vm.run("umount /mnt && udevadm settle && rm /root/copy")
    large.pull()
    vm.run("mv /root/home.toml /etc/cryptback/drives.d/")
    since = now(vm)
    large.plug()
    assert ended(vm, since=since)["CRYPTBACK_OUTCOME"] == "done"
    resize(vm, "max")
    script = LENGTH.format(device=large.partition, container="backup.luks")
    size, blocks = map(int, vm.run(script).out.split())
    assert size > 500 * MIB
    assert blocks * 512 >= size
    with opened(vm, large.partition) as found:
        assert found.listing(found.versions()[0]) == files


# Cut off anywhere

GROW, SHRINK = 12, -8
BTRFS_CUTS = {
    "longer: volume": (GROW, CRYPTSETUP, " resize ", True),
    "longer: filesystem": (GROW, BTRFS, "filesystem resize max", True),
    "longer: locking": (GROW, UMOUNT, "cryptbackd/home/tree", True),
    "shorter: filesystem": (SHRINK, BTRFS, "filesystem resize [0-9]", False),
    "shorter: locking": (SHRINK, UMOUNT, "cryptbackd/home/tree", True),
}
EXT4_CUTS = {
    "longer: volume": (GROW, CRYPTSETUP, " resize ", True),
    "longer: locking": (GROW, UMOUNT, "cryptbackd/home/tree", True),
    "shorter: beginning": (SHRINK, DMSETUP, "--table .* snapshot ", False),
    "shorter: moving": (SHRINK, DMSETUP, "reload", False),
    "shorter: filesystem": (SHRINK, RESIZE2FS, "cryptback-home", False),
    "shorter: before merging": (SHRINK, DMSETUP, "snapshot-merge", True),
    "shorter: merging": (SHRINK, DMSETUP, "status", True),
}
"""Where the worker is killed: how many MiB the container changes by, a program that it starts,
and whether the change is then done (or undone)."""
CUTS = {
    "btrfs": ("longer: filesystem",),
    "ext4": ("shorter: filesystem", "shorter: merging"),
    "btrfs everywhere": tuple(BTRFS_CUTS),
    "ext4 everywhere": tuple(EXT4_CUTS),
}


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.timeout(900, func_only=True)
def test_killed_at_a_step_it_is_finished_or_undone(enrolled: Machine, cuts: str) -> None:
    """The worker is killed when it starts a program; the next run settles it, and backs up."""
    vm = enrolled
    fstype = cuts.partition(" ")[0]
    files = listing(vm, "/home/me")
    main = stick(vm, fstype)
    vm.expect_journal("^cryptbackd: home: failed: ")
    before = BEFORE[fstype]
    for cut in CUTS[cuts]:
        by, program, pattern, done = (BTRFS_CUTS if fstype == "btrfs" else EXT4_CUTS)[cut]
        hold = Hold(vm, program, pattern)
        working = vm.spawn(["cryptback", "resize", "home", f"{before + by}M"])
        held = hold.wait()
        since = now(vm)
        kill(vm, held.worker)
        assert working.wait(check=False, timeout=60).code == 1, cut
        told = "what was begun is finished or undone when the drive is opened next"
        tells(vm, told, since=since)
        before += by if done else 0
        settles(vm, main, files, fstype, before)


def settles(vm: Machine, main: Stick, files: str, fstype: str, mebibytes: int) -> None:
    """The next run brings it to an end, before it backs up; nothing is left to be done."""
    since = now(vm)
    if main.plugged:
        main.pull()
    main.plug()
    end = ended(vm, since=since)
    assert end["CRYPTBACK_OUTCOME"] == "done", end["MESSAGE"]
    assert length(vm, fstype) == mebibytes
    inside(vm, fstype, files, mebibytes)
    assert no_note(vm)


@pytest.mark.parametrize("how", ["cancelled", "killed", "pulled"])
def test_interrupted_in_the_filling_it_is_undone(vm: Machine, how: str) -> None:
    """An exFAT zeroes later what is allocated now: every byte is written, which takes time."""
    make_files(vm)
    credential(vm, "home")
    main = vm.stick("main", size=300 << 20, fs="exfat", partitioned=True)
    main.plug()
    init(
        vm, main.partition, "home", "--container", "other", "--filesystem", "ext4", "--size", "80M"
    )
    files = listing(vm, "/home/me")
    vm.expect_journal("^cryptbackd: home: failed: ")
    main.throttle(8 * MIB)
    filling = news(vm, r'"phase": "resizing", "done": [1-9]')
    working = vm.spawn(["cryptback", "resize", "home", "+120M"])
    filling.wait(timeout=60)
    if how == "cancelled":
        vm.run(["cryptback", "cancel", "home"])
        assert working.wait(check=False, timeout=60).code == 130
        assert no_note(vm)
        main.throttle(0)
        assert length(vm, "ext4") == 80
    elif how == "killed":
        daemon = vm.run(["systemctl", "show", "-P", "MainPID", "cryptbackd"]).out.strip()
        stub = vm.run(["pgrep", "-P", daemon]).out.strip()
        kill(vm, int(vm.run(["pgrep", "-P", stub]).out))
        assert working.wait(check=False, timeout=60).code == 1
        main.throttle(0)
    else:
        vm.expect_journal(KERNEL_MISSES_IT)
        main.pull()
        assert working.wait(check=False, timeout=60).code == 75
    settles(vm, main, files, "ext4", 80)


def test_pulled_in_the_merging_it_is_finished(enrolled: Machine) -> None:
    vm = enrolled
    files = listing(vm, "/home/me")
    main = stick(vm, "ext4")
    hold = Hold(vm, DMSETUP, "status")
    vm.expect_journal("^cryptbackd: home: failed: ")
    vm.expect_journal(KERNEL_MISSES_IT)
    working = vm.spawn(["cryptback", "resize", "home", "140M"])
    hold.wait()
    main.pull()
    assert working.wait(check=False, timeout=60).code != 0
    nothing_left(vm)
    settles(vm, main, files, "ext4", 140)


def test_half_merged_and_changed_elsewhere_nothing_more_is_written(enrolled: Machine) -> None:
    vm = enrolled
    files = listing(vm, "/home/me")
    main = stick(vm, "ext4")
    hold = Hold(vm, DMSETUP, "snapshot-merge")
    vm.expect_journal("^cryptbackd: home: failed: ")
    working = vm.spawn(["cryptback", "resize", "home", "140M"])
    kill(vm, hold.wait().worker)
    working.wait(check=False, timeout=60)
    vm.run(ELSEWHERE.format(device=main.partition), input=PASSPHRASE.encode())
    since = now(vm)
    main.replug()
    end = ended(vm, since=since)
    assert end["CRYPTBACK_OUTCOME"] == "warnings", end["MESSAGE"]
    assert "something else has changed it since: the rest was not written." in end["MESSAGE"]
    inside(vm, "ext4", files, 160)
    assert no_note(vm)


def test_half_merged_and_its_name_given_away_it_is_finished_when_it_is_back(
    enrolled: Machine,
) -> None:
    vm = enrolled
    files = listing(vm, "/home/me")
    main = stick(vm, "ext4")
    hold = Hold(vm, DMSETUP, "status")
    vm.expect_journal("^cryptbackd: (home|new): failed: ")
    working = vm.spawn(["cryptback", "resize", "home", "140M"])
    kill(vm, hold.wait().worker)
    working.wait(check=False, timeout=60)
    state, entry = "/var/lib/cryptbackd", "/etc/cryptback/drives.d/home.toml"
    vm.run(f"mv {entry} /root/entry && cp {state}/headers/home /root/header")
    main.pull()

    # Nobody is given that name, unless the entry is written by hand.
    credential(vm, "new")
    other = vm.stick("other", size=128 << 20, fs="ext4")
    other.plug()
    options = ["--filesystem", "ext4", "--size", "48M"]
    asked = ["--name", "home", "--include", "/home/me", "--passphrase-fd", "0", "--yes", *CHEAP]
    command = ["cryptback", "init", other.partition, *asked, *options]
    refused = vm.run(command, input=f"{PASSPHRASE}\n".encode(), check=False, timeout=120)
    assert refused.code == 1
    assert "A drive that was called home is half written to" in refused.err
    assert vm.run(f"ls {state}/unfinished").out.split() == ["home.blocks", "home.json"]
    init(vm, other.partition, "new", *options)
    other.pull()
    vm.run(f"mv /etc/cryptback/drives.d/new.toml {entry}")
    vm.run(f"cp {state}/headers/new {state}/headers/home")
    since = now(vm)
    other.plug()
    ended(vm, since=since)
    said = [str(line["MESSAGE"]) for line in vm.journal(since=since)]
    assert any("cut off of another drive that was called home" in line for line in said)
    names = vm.run(f"ls {state}/unfinished").out.split()
    assert [name.rpartition(".")[2] for name in names] == ["blocks", "json"]
    assert "home.json" not in names
    other.pull()

    vm.run(f"mv /root/entry {entry} && mv /root/header {state}/headers/home")
    since = now(vm)
    main.plug()
    ended(vm, since=since)
    assert length(vm, "ext4") == 140
    inside(vm, "ext4", files, 140)
    assert no_note(vm)


ELSEWHERE = """
set -e
mkdir -p /mnt/drive /mnt/tree
mount {device} /mnt/drive
loop=$(losetup --find --show /mnt/drive/other)
cryptsetup open $loop byhand
mount /dev/mapper/byhand /mnt/tree
touch /mnt/tree/elsewhere
umount /mnt/tree
cryptsetup close byhand
losetup --detach $loop
umount /mnt/drive
udevadm settle
"""
