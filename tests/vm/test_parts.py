"""A container of several files, as on FAT32: one volume, armed and undone like any other.

The files are small, by an option of `cryptback init` that is there for these tests; what joins
them makes no difference between these and those of 4 GiB.
"""

from __future__ import annotations

import pytest

from tests import by_hand
from tests.machine import Machine, Stick
from tests.machine.enroll import CHEAP, PASSPHRASE, credential, init, make_files
from tests.machine.guest import CommandFailed
from tests.vm.container import listing
from tests.vm.failing import (
    KERNEL_MISSES_IT,
    NO_HOLES_ON_FAT,
    Hold,
    clock,
    kill,
    locked_in_time,
    nothing_left,
    succeeds_next,
    tells,
)
from tests.vm.runs import drive, ended, now

MIB = 1 << 20
IN_PARTS = ["--size", "80M", "--filesystem", "ext4", "--part-size", "32M"]
FILES = f"backup.luks.000 {32 * MIB}\nbackup.luks.001 {32 * MIB}\nbackup.luks.002 {16 * MIB}\n"


def enrolled_in_parts(vm: Machine, outside: str = "vfat", *options: str) -> Stick:
    """A machine that knows a stick whose container is three files; it is plugged in."""
    vm.expect_journal(NO_HOLES_ON_FAT)
    make_files(vm)
    credential(vm, "home")
    stick = vm.stick("main", size=128 * MIB, fs=outside, partitioned=True)
    stick.plug()
    init(vm, stick.partition, "home", *IN_PARTS, *options)
    return stick


def by_hand_as_told(vm: Machine, stick: Stick) -> str:
    """Open the container by the commands of the README; the name of the newest version."""
    opening = [*by_hand.commands(by_hand.MOUNT), *by_hand.commands(by_hand.OPEN_PARTS)]
    by_hand.run(vm, opening, stick.partition, PASSPHRASE)
    return by_hand.versions(vm)[-1]


def closed_as_told(vm: Machine, stick: Stick) -> None:
    by_hand.run(vm, by_hand.commands(by_hand.CLOSE_PARTS), stick.partition)
    vm.run(["udevadm", "settle"])


def gives_files_back(vm: Machine, stick: Stick) -> None:
    """The newest version, opened by hand, is what the user has."""
    version = by_hand_as_told(vm, stick)
    try:
        assert listing(vm, f"/mnt/versions/{version}/home/me") == listing(vm, "/home/me")
    finally:
        closed_as_told(vm, stick)


def on_drive(vm: Machine, stick: Stick, script: str) -> str:
    """Run a script in the root of the plugged stick, which nothing else uses."""
    vm.run(f"mkdir -p /mnt/drive && mount {stick.partition} /mnt/drive")
    out = vm.run(f"cd /mnt/drive && {script}").out
    vm.run("umount /mnt/drive && udevadm settle")
    return out


SHOWN = "for f in backup.luks*; do stat -c '%n %s' $f; done"


def test_a_container_of_several_files_is_one_volume_and_gives_files_back(vm: Machine) -> None:
    stick = enrolled_in_parts(vm)
    assert on_drive(vm, stick, SHOWN) == FILES
    vm.run("head -c 40M /dev/urandom > /home/me/big")  # reaches into the second file at least
    succeeds_next(vm)
    gives_files_back(vm, stick)


STACK = """
set -e
dmsetup table cryptback-home-parts
dmsetup info -c --noheadings -o uuid cryptback-home-parts
dmsetup info cryptback-home-parts | grep -c 'DEFERRED REMOVE'
dmsetup info cryptback-home | grep -c 'DEFERRED REMOVE'
cat /sys/block/loop[0-2]/loop/autoclear
"""


def held_in_mid_sync(vm: Machine, stick: Stick) -> int:
    """Plug the stick in, and hold the run in mid-sync; the worker."""
    vm.run("echo more > /home/me/more")
    hold = Hold(vm, "/usr/bin/rsync", "--info=progress2")
    stick.plug()
    return hold.wait().worker


@pytest.mark.parametrize("how", ["killed", "pulled"])
def test_it_is_armed_as_a_whole_and_leaves_nothing(vm: Machine, how: str) -> None:
    stick = enrolled_in_parts(vm)
    stick.pull()
    worker = held_in_mid_sync(vm, stick)
    sectors = 32 * MIB // 512
    table = [
        f"{start} {length} linear 7:{number} 0"
        for number, (start, length) in enumerate(
            [(0, sectors), (sectors, sectors), (2 * sectors, sectors // 2)]
        )
    ]
    told = ["CRYPTBACK-PARTS-home", "1", "1", "1", "1", "1"]
    assert vm.run(STACK).out.splitlines() == [*table, *told]
    vm.expect_journal("^cryptbackd: home: failed: ")
    if how == "killed":
        since, time = now(vm), clock(vm)
        kill(vm, worker)
        locked_in_time(vm, time)
        tells(vm, "The worker was killed by SIGKILL while syncing", since=since)
    else:
        vm.expect_journal(KERNEL_MISSES_IT)
        since, time = now(vm), clock(vm)
        stick.pull()
        locked_in_time(vm, time)
        tells(vm, "The drive was pulled out in the middle of the backup", since=since)
    assert not vm.journal(MESSAGE_ID="swept")
    succeeds_next(vm)
    gives_files_back(vm, stick)


GAP = {
    "joined, not armed": (
        "/usr/sbin/dmsetup",
        "remove --deferred --noudevsync cryptback-home-parts",
    ),
    "armed, not unlocked": ("/usr/sbin/cryptsetup", " open "),
    "unlocked, not armed": ("/usr/sbin/dmsetup", "remove --deferred --noudevsync cryptback-home $"),
}


@pytest.mark.parametrize("where", GAP)
def test_killed_while_it_is_joined_it_leaves_nothing(vm: Machine, where: str) -> None:
    stick = enrolled_in_parts(vm)
    stick.pull()
    hold = Hold(vm, GAP[where][0], GAP[where][1])
    stick.plug()
    stopped = hold.wait()
    vm.expect_journal("^cryptbackd: home: failed: ")
    since, time = now(vm), clock(vm)
    kill(vm, stopped.worker)
    locked_in_time(vm, time)
    tells(vm, "The worker was killed by SIGKILL", since=since)
    succeeds_next(vm)


def test_a_mapping_of_somebody_else_is_never_touched(vm: Machine) -> None:
    """Neither by a sweep, nor by a run that can't go on because of it."""
    stick = enrolled_in_parts(vm)
    stick.pull()
    vm.expect_journal("^cryptbackd: home: failed: ")
    vm.expect_journal("^kernel: Buffer I/O error on dev dm-")  # of the tables of these two
    theirs = "^mapping cryptback-(home|other)-parts$"
    vm.expect_leftovers(theirs)
    vm.run(
        "dmsetup create cryptback-home-parts --uuid CRYPTBACK-PARTS-other --table '0 2048 error'"
        " && dmsetup create cryptback-other-parts --uuid LVM-home --table '0 2048 error'"
    )
    vm.run(["systemctl", "restart", "cryptbackd"])
    since = now(vm)
    stick.plug()
    end = ended(vm, since=since)
    assert "There is a mapping cryptback-home-parts already" in end["MESSAGE"]
    vm.run(["/usr/bin/python3", "-I", "-m", "cryptbackd.worker", "--sweep"])
    vm.run(["dmsetup", "remove", "cryptback-home-parts"])
    vm.run(["dmsetup", "remove", "cryptback-other-parts"])
    vm.expected_leftovers.remove(theirs)
    succeeds_next(vm)


LIES = {
    "gap": ("mv backup.luks.001 other", 'The file "backup.luks.001" of the container is missing'),
    "first missing": ("mv backup.luks.000 other", '"backup.luks.000" of the container is missing'),
    "odd length": (
        "cp backup.luks.001 other && truncate -s 31M backup.luks.001",
        f'"backup.luks.001" of the container has {31 * MIB} bytes, which doesn\'t fit',
    ),
    "last too long": (
        "cp backup.luks.002 other && truncate -s 33M backup.luks.002",
        f'"backup.luks.002" of the container has {33 * MIB} bytes, which doesn\'t fit',
    ),
    "last missing": ("mv backup.luks.002 other", "The container was cut short"),
    "both": ("echo > backup.luks", 'There are both "backup.luks" and "backup.luks.000"'),
    "symlink": (
        "mv backup.luks.001 other && ln -s other backup.luks.001",
        '"backup.luks.001" on the drive is not a regular file with one name.',
    ),
    "hard link": (
        "ln backup.luks.001 other",
        '"backup.luks.001" on the drive is not a regular file with one name.',
    ),
    "directory": (
        "mv backup.luks.001 other && mkdir backup.luks.001",
        '"backup.luks.001" on the drive is not a regular file with one name.',
    ),
}


SOME = ["gap", "odd length", "both"]


@pytest.mark.parametrize("names", [SOME, LIES.keys() - SOME], ids=["some", "others"])
def test_files_that_are_not_what_they_must_be_are_told_and_refused(
    vm: Machine, names: list[str]
) -> None:
    stick = enrolled_in_parts(vm, "ext4")
    vm.expect_journal("^cryptbackd: home: failed: ")
    vm.run(["rm", "-rf", "/home/me/sparse.img"])
    for name in sorted(names):
        script, told = LIES[name]
        on_drive(vm, stick, f"mkdir kept && cp --sparse=always backup.luks.* kept && {script}")
        refused = vm.run(["cryptback", "run", "home"], check=False)
        assert refused.code == 1, name
        assert told in refused.out + refused.err, name
        nothing_left(vm)
        on_drive(vm, stick, "rm -rf backup.luks* other && mv kept/* . && rmdir kept")
    assert vm.run(["cryptback", "run", "home"]).code == 0
    assert drive(vm)["last_outcome"] == "done"


NEW = "a new passphrase"


def test_its_header_is_changed_repaired_and_adopted_in_the_first_file(vm: Machine) -> None:
    stick = enrolled_in_parts(vm)
    words = ["cryptback", "passphrase", "home", "change", "--passphrase-fd", "0", *CHEAP]
    given = f"{PASSPHRASE}\n{NEW}\n".encode()
    vm.run([*words, "--new-passphrase-fd", "0"], given, timeout=180)
    header = "/var/lib/cryptbackd/headers/home"
    same = f"cmp --bytes=16777216 backup.luks.000 {header}"
    on_drive(vm, stick, same)

    wiped = "dd if=/dev/zero of=backup.luks.000 bs=1M count=16 conv=notrunc,fsync status=none"
    on_drive(vm, stick, wiped)
    credential(vm, "home", NEW)
    told = vm.run(["cryptback", "run", "home"], check=False)
    assert told.code == 3
    vm.run(["cryptback", "doctor", "--repair", "home", "--yes"], timeout=120)
    on_drive(vm, stick, same)

    vm.run(f"rm /etc/cryptback/drives.d/home.toml {header}*")
    vm.run(["systemctl", "restart", "cryptbackd"])
    words = ["cryptback", "init", stick.partition, "--name", "home", "--adopt"]
    words += ["--include", "/home/me", "--passphrase-fd", "0", "--yes"]
    vm.run(words, f"{NEW}\n".encode(), timeout=180)
    on_drive(vm, stick, same)
    assert drive(vm)["last_outcome"] == "done"


def test_killed_while_its_files_get_their_names_the_next_init_takes_them_back(vm: Machine) -> None:
    stick = enrolled_in_parts(vm)
    vm.run("rm -r /etc/cryptback/drives.d/home.toml /var/lib/cryptbackd/headers/home")
    vm.run(["systemctl", "restart", "cryptbackd"])
    before = (
        "mv backup.luks.000 .cryptback-home.new.000 && mv backup.luks.001 .cryptback-home.new.001"
    )
    on_drive(vm, stick, before)
    init(vm, stick.partition, "home", *IN_PARTS)
    assert on_drive(vm, stick, "ls -A | grep -v '^backup' || true") == ""
    assert on_drive(vm, stick, SHOWN) == FILES
    # Where it is not plain that they are its own, they are left alone.
    vm.run("rm /etc/cryptback/drives.d/home.toml")
    vm.run(["systemctl", "restart", "cryptbackd"])
    on_drive(vm, stick, "mv backup.luks.000 .cryptback-home.new.000 && rm backup.luks.001")
    with pytest.raises(CommandFailed, match="of the container is missing"):
        init(vm, stick.partition, "home", *IN_PARTS)
    assert "backup.luks.002" in on_drive(vm, stick, SHOWN)


@pytest.mark.timeout(1800, func_only=True)
@pytest.mark.parametrize("size", [pytest.param("4200M", id="4 GiB"), "80M"])
def test_no_file_has_4_gib_on_fat(vm: Machine, size: str) -> None:
    """Without any option: on FAT32 the container is as many files as it takes."""
    vm.expect_journal(NO_HOLES_ON_FAT)
    make_files(vm)
    credential(vm, "home")
    large = size != "80M"
    stick = vm.stick("main", size=(5 << 30) if large else 128 * MIB, fs="vfat", partitioned=True)
    stick.plug(sparse=True)
    words = ["cryptback", "init", stick.partition, "--name", "home", "--include", "/home/me"]
    words += ["--size", size, "--filesystem", "ext4", "--passphrase-fd", "0", "--yes", *CHEAP]
    vm.run(words, PASSPHRASE.encode(), timeout=1500)
    shown = on_drive(vm, stick, SHOWN)
    if large:
        assert shown == f"backup.luks.000 {4095 * MIB}\nbackup.luks.001 {105 * MIB}\n"
        gives_files_back(vm, stick)
    else:
        assert shown == f"backup.luks {80 * MIB}\n"
    succeeds_next(vm)
