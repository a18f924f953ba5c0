"""What a drive is made to look like, and what becomes of it in the middle of a run."""

from __future__ import annotations

import pytest

from tests.machine import Machine
from tests.machine.enroll import CHEAP, PASSPHRASE, credential, init, make_files
from tests.vm.container import listing
from tests.vm.failing import (
    KERNEL_MISSES_IT,
    NO_HOLES_ON_FAT,
    Hold,
    first_is_whole,
    nothing_left,
    succeeds_next,
    tells,
)
from tests.vm.runs import MIB, drive, ended, go_on, hold, now, random_files, settled
from tests.vm.test_drive_lies import CONTAINER, tamper
from tests.vm.test_enrol import content

FAILED = "^cryptbackd: home: failed: "
ON_DRIVE = """
set -e
mkdir -p /mnt/drive
mount {device} /mnt/drive
( {script} )
umount /mnt/drive
udevadm settle
"""


def on_drive(vm: Machine, script: str) -> str:
    """Change something on the stick that is in, between two runs."""
    device = vm.stick("main").partition
    return vm.run(ON_DRIVE.format(device=device, script=script)).out


def runs(vm: Machine) -> str:
    """A run that is asked for; since when the journal tells of it."""
    since = now(vm)
    vm.run(["cryptback", "run", "home"], check=False, timeout=180)
    return since


LENGTHS = {
    "truncate -s 0": "The container was cut short: 0 B of it are there",
    "truncate -s 4095": "The container was cut short: .* and what it holds begins after 16.0 MiB",
    "truncate -s 16M": "The container was cut short: 16.0 MiB of it are there",
    "truncate -s 17M": "The container was cut short: its filesystem takes 304 MiB",
}


def test_a_container_of_any_length_is_told(enrolled: Machine) -> None:
    """Cut short at any place it is refused; longer than any drive it is what it was."""
    vm = enrolled
    vm.expect_journal(FAILED)
    files = listing(vm, "/home/me")
    vm.stick("main").plug()
    assert ended(vm)["CRYPTBACK_OUTCOME"] == "done"
    for cut, sentence in LENGTHS.items():
        on_drive(vm, f"cd /mnt/drive; mv backup.luks whole; cp --sparse=always whole backup.luks;"
                     f" {cut} backup.luks")  # fmt: skip
        since = runs(vm)
        tells(vm, sentence, since=since)
        assert drive(vm)["safe"], cut
        # What is in it is known when it is unlocked, and not before.
        asked = "home: A passphrase came from the source “credential”."
        assert bool(vm.journal(since=since, MESSAGE=asked)) == ("17M" in cut)
        on_drive(vm, "cd /mnt/drive; mv -f whole backup.luks")
    on_drive(vm, f"truncate -s 3T {CONTAINER}")  # a small ext4 has files of up to 4 TiB
    tells(vm, "The container claims 3.0 TiB on a drive of", outcome="warnings", since=runs(vm))
    on_drive(vm, f"truncate -s 320M {CONTAINER}")
    succeeds_next(vm)
    assert len(first_is_whole(vm, files)) == 4


def test_a_container_of_8_eib_is_no_container_of_that_length(vm: Machine) -> None:
    make_files(vm)
    credential(vm, "home")
    stick = vm.stick("main", size=320 * MIB, fs="xfs", partitioned=True)
    stick.plug()
    init(vm, stick.partition, "home", "--size", "56M", "--filesystem", "ext4")
    on_drive(vm, f"truncate -s {(1 << 63) - 4096} {CONTAINER}")
    tells(vm, "The container claims 8.0 EiB on a drive of", outcome="warnings", since=runs(vm))
    assert drive(vm)["safe"]
    told = vm.run(["cryptback", "resize", "home", "max"], check=False, timeout=120)
    assert told.code == 1, told.out + told.err
    assert "somebody made its file longer" in told.out + told.err
    assert "`cryptback resize home 56M` makes it as long as what is in it" in told.out + told.err
    vm.run(["cryptback", "resize", "home", "56M"], timeout=120)
    assert on_drive(vm, f"stat -c %s {CONTAINER}") == f"{56 * MIB}\n"
    succeeds_next(vm)


@pytest.mark.timeout(600, func_only=True)
def test_what_happens_to_an_open_container_is_told_and_leads_nowhere(enrolled: Machine) -> None:
    """Somebody has mounted the drive as well, and replaces, rewrites or cuts the container."""
    vm = enrolled
    vm.expect_journal(f"{FAILED}|{KERNEL_MISSES_IT}|^kernel: .*loop0|{NO_HOLES_ON_FAT}")
    files = listing(vm, "/home/me")
    stick = vm.stick("main")
    random_files(vm, 8, 4)
    for what, script in {
        "replaced": "mv backup.luks real; cp /etc/services backup.luks",
        "rewritten": "dd if=/dev/zero of=backup.luks bs=1M count=16 conv=notrunc status=none",
        "cut": "cp --sparse=always backup.luks /root/real && truncate -s 40M backup.luks",
    }.items():
        since = now(vm)
        hold(vm, stick)
        vm.run(f"mkdir -p /mnt/drive && mount {stick.partition} /mnt/drive && cd /mnt/drive"
               f" && {script} && sync")  # fmt: skip
        go_on(vm)
        end = ended(vm, since=since)
        assert not vm.journal(since=since, MESSAGE="You may unplug home now."), what
        assert "/mnt/drive" in " ".join([end["MESSAGE"], *drive(vm)["warnings"]]), what
        vm.run("for real in /mnt/drive/real /root/real; do"
               " if [ -e $real ]; then mv -f $real /mnt/drive/backup.luks; fi; done;"
               " umount /mnt/drive")  # fmt: skip
        nothing_left(vm)
        stick.pull()
        random_files(vm, 8, 4)
    since = now(vm)
    stick.plug()
    end = ended(vm, since=since)
    assert end["CRYPTBACK_OUTCOME"] == "warnings"
    assert "The LUKS header on the drive is not the one" in end["MESSAGE"]  # it was rewritten
    vm.run(["cryptback", "doctor", "--repair", "home", "--yes"], timeout=120)
    succeeds_next(vm)
    first_is_whole(vm, files)


OTHER_CONTAINER = f"""
set -e
cd /mnt/drive
rm backup.luks
truncate -s 320M backup.luks
printf %s '{PASSPHRASE}' | cryptsetup luksFormat -q --type luks2 --sector-size 4096 \\
    --pbkdf argon2id --pbkdf-memory 32 --pbkdf-force-iterations {CHEAP[-1]} backup.luks
"""


def test_another_container_on_a_drive_with_the_same_uuid_is_not_written_to(
    enrolled: Machine,
) -> None:
    vm = enrolled
    vm.expect_journal(FAILED)
    hashed = "sha256sum < /mnt/drive/backup.luks"
    tamper(vm, OTHER_CONTAINER)
    before = on_drive(vm, hashed)
    vm.run(["systemctl", "start", "cryptbackd"])
    tells(vm, "The container holds no filesystem, which can't hold a backup.")
    assert "It belongs to another volume key" in " ".join(drive(vm)["warnings"])
    assert drive(vm)["safe"]
    assert on_drive(vm, hashed) == before


def test_a_drive_that_is_two_things_at_once_is_none(enrolled: Machine) -> None:
    """An ext4 whose unused beginning says that it is a LUKS partition."""
    vm = enrolled
    vm.expect_journal(FAILED)
    stick = vm.stick("main")
    with stick.path.open("r+b") as image:
        image.seek(stick.start)
        image.write(b"LUKS\xba\xbe\x00\x01".ljust(168, b"\0") + stick.uuid.encode())
    stick.plug()
    tells(vm, "holds crypto_LUKS, which can't hold a container")
    assert not vm.journal(MESSAGE="home: A passphrase came from the source “credential”.")
    assert drive(vm)["safe"]
    vm.run(["dd", "if=/dev/zero", f"of={stick.partition}", "bs=512", "count=2", "conv=notrunc"])
    succeeds_next(vm)


SAME_FSID = """
set -e
mkdir -p /mnt/theirs
dd if={device} of=/root/theirs bs=1M conv=sparse status=none
mount -o loop /root/theirs /mnt/theirs
rm /mnt/theirs/backup.luks
echo theirs > /mnt/theirs/mine
sync
"""
SEVERAL = """
set -e
truncate -s 128M /root/second
mkdir -p /mnt/drive
mount {device} /mnt/drive
btrfs device add $(losetup -f --show /root/second) /mnt/drive
umount /mnt/drive
"""


def test_a_btrfs_drive_is_itself_alone(vm: Machine) -> None:
    """Not the mounted filesystem of which it has the fsid, and not one of several devices."""
    vm.expect_journal(f"{FAILED}|^kernel: BTRFS")
    vm.expect_leftovers("/root/(theirs|second)|mount of /dev/loop.* on /mnt/theirs")
    make_files(vm)
    credential(vm, "home")
    stick = vm.stick("main", size=192 * MIB, fs="btrfs", partitioned=True)
    stick.plug()
    init(vm, stick.partition, "home", "--size", "56M", "--filesystem", "ext4")
    stick.pull()
    vm.run(["systemctl", "mask", "--runtime", "--now", "cryptbackd"])
    stick.plug()
    vm.run(SAME_FSID.format(device=stick.partition))
    vm.run("systemctl unmask --runtime cryptbackd && systemctl start cryptbackd")
    assert ended(vm)["CRYPTBACK_OUTCOME"] == "done"
    assert vm.run("ls /mnt/theirs; cat /mnt/theirs/mine").out == "mine\ntheirs\n"
    vm.run("umount /mnt/theirs; rm /root/theirs")

    vm.run(SEVERAL.format(device=stick.partition))
    since = runs(vm)
    tells(vm, "The btrfs filesystem of the drive spans 2 devices", since=since)
    asked = "home: A passphrase came from the source “credential”."
    assert not vm.journal(since=since, MESSAGE=asked)
    vm.run(f"mount {stick.partition} /mnt/drive && btrfs device remove $(losetup -nO NAME"
           " -j /root/second) /mnt/drive && umount /mnt/drive && losetup -D")  # fmt: skip
    assert ended(vm, since=runs(vm))["CRYPTBACK_OUTCOME"] == "done"


def test_a_node_that_is_another_disk_by_now_is_not_touched(enrolled: Machine) -> None:
    """The stick goes and another gets its name, and the daemon, which is busy, has not heard."""
    vm = enrolled
    vm.expect_journal(FAILED)
    main = vm.stick("main")
    other = vm.stick("other", fs="ext4", partitioned=True)
    before = content(other)
    starts = Hold(vm, "/usr/bin/python3", "cryptbackd.worker --socket")
    node = str(main.plug())
    held = starts.wait()
    vm.run(["systemctl", "kill", "--kill-whom=main", "--signal=STOP", "cryptbackd"])
    main.pull(wait=False)
    vm.run(f"while [ -e /sys/block/{node.removeprefix('/dev/')} ]; do sleep 0.05; done")
    other.plug(wait=False)
    vm.run(f"until [ -e {node}1 ]; do sleep 0.05; done")
    held.go_on()
    vm.run(f"while [ -e /proc/{held.pid} ] && ! grep -q '^State:.Z' /proc/{held.pid}/status;"
           " do sleep 0.05; done")  # fmt: skip
    vm.run(["systemctl", "kill", "--kill-whom=main", "--signal=CONT", "cryptbackd"])
    end = ended(vm)
    assert f"{node}1 is not the drive any more that was plugged in." in end["MESSAGE"]
    assert settled(vm)["state"] == "absent"
    other.pull(wait=False)
    assert content(other) == before
    succeeds_next(vm)


RESET = """
for file in /sys/bus/usb/devices/*/serial; do
    if [ "$(cat $file)" = main ]; then port=${file%/serial}; fi
done
echo 0 > $port/authorized
sleep 1
echo 1 > $port/authorized
"""


def test_a_drive_that_comes_back_as_another_device_is_begun_with_anew(enrolled: Machine) -> None:
    """As on a port with a bad contact, in the middle of a run."""
    vm = enrolled
    vm.expect_journal(f"{FAILED}|{KERNEL_MISSES_IT}")
    files = listing(vm, "/home/me")
    random_files(vm, 8, 4)
    stick = vm.stick("main")
    hold(vm, stick)
    vm.run(RESET)
    first = ended(vm)
    assert first["CRYPTBACK_OUTCOME"] == "failed"
    assert "unplugged" in first["MESSAGE"] or "pulled" in first["MESSAGE"], first["MESSAGE"]
    again = ended(vm, since=first["__CURSOR"])
    assert again["CRYPTBACK_OUTCOME"] == "done"
    stick.device = drive(vm)["device"].rstrip("1")
    first_is_whole(vm, files)
