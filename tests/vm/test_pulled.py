"""A stick that is pulled out, whenever, harms nothing that was on it."""

from __future__ import annotations

import time

import pytest

from tests.machine import Machine
from tests.machine.enroll import credential, init
from tests.machine.stick import copy_sparse
from tests.vm.container import listing, opened
from tests.vm.failing import (
    KERNEL_MISSES_IT,
    NO_HOLES_ON_FAT,
    NO_PLYMOUTH,
    Hold,
    clock,
    first_is_whole,
    locked_in_time,
    succeeds_next,
    tells,
)
from tests.vm.runs import MIB, PATIENCE, copied, drive, ended, news, now, wait_news

PULLED = "The drive was pulled out in the middle of the backup; the last complete version is whole."
QUESTION = "until grep -qs Id=cryptback:home /run/systemd/ask-password/ask.*; do sleep 0.1; done"


def pull(vm: Machine) -> None:
    """Pull it: five seconds later at the latest nothing is left, and it is told."""
    vm.expect_journal("^cryptbackd: home: failed: The drive was pulled out")
    vm.expect_journal(KERNEL_MISSES_IT)
    since, time = now(vm), clock(vm)
    vm.stick("main").pull()
    locked_in_time(vm, time)
    tells(vm, PULLED, since=since)


def pulled_in_mid_sync(vm: Machine, options: tuple[str, ...] = ()) -> None:
    """Pull it while it takes more data than memory is to hold for it, and plug it in again."""
    files = listing(vm, "/home/me")
    vm.run("mkdir /home/me/more && head -c 48M /dev/urandom > /home/me/more/big")
    hold = Hold(vm, "/usr/bin/rsync", "--info=progress2")
    stick = vm.stick("main")
    under_way = news(vm, copied(2 * MIB))  # which takes its time to come up
    stick.plug()
    syncing = hold.wait()
    stick.throttle(2 * MIB)
    syncing.go_on()
    under_way.wait(timeout=PATIENCE)
    pull(vm)
    succeeds_next(vm)
    names = first_is_whole(vm, files, options)
    assert len(names) == 2


@pytest.mark.alone
def test_pulled_in_mid_sync(enrolled: Machine) -> None:
    pulled_in_mid_sync(enrolled)


@pytest.mark.parametrize(
    ("outside", "inside"),
    [
        ("ext4", "ext4"),
        *((fs, inner) for fs in ("vfat", "exfat", "ntfs") for inner in ("btrfs", "ext4")),
    ],
)
def test_pulled_in_mid_sync_with_other_filesystems(vm: Machine, outside: str, inside: str) -> None:
    vm.run("mkdir /home/me/letters && echo hello > /home/me/letters/first && chown -R me: /home/me")
    credential(vm, "home")
    stick = vm.stick("main", size=256 * MIB, fs=outside, partitioned=True)
    stick.plug()
    vm.expect_journal(NO_HOLES_ON_FAT)
    init(vm, stick.partition, "home", "--size", "176M", "--filesystem", inside)
    stick.pull()
    pulled_in_mid_sync(vm)


def test_pulled_while_unlocking(enrolled: Machine) -> None:
    vm = enrolled
    files = listing(vm, "/home/me")
    hold = Hold(vm, "/usr/sbin/cryptsetup", " open ")
    vm.stick("main").plug()
    hold.wait()
    pull(vm)
    succeeds_next(vm)
    first_is_whole(vm, files)


def test_pulled_while_a_passphrase_is_asked_for(enrolled: Machine) -> None:
    """The question goes away with the drive."""
    vm = enrolled
    vm.expect_journal(NO_PLYMOUTH)
    vm.run(["mv", "/etc/credstore/cryptback.home", "/root"])
    vm.stick("main").plug()
    vm.run(QUESTION)
    pull(vm)
    # systemd-ask-password takes its question back when it is ended, not always its socket.
    assert vm.run("ls -d /run/systemd/ask-password/ask.* 2> /dev/null", check=False).out == ""
    vm.run(["mv", "/root/cryptback.home", "/etc/credstore"])
    succeeds_next(vm)


@pytest.mark.parametrize(
    "count", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 5))]
)
def test_pulled_right_after_you_may_unplug_all_is_there(
    enrolled: Machine, bare_vm: Machine, count: int
) -> None:
    """On a clean machine, by hand, without anything of ours."""
    vm = enrolled
    vm.expect_journal("^kernel: .*Synchronize Cache")
    vm.run("mkdir /home/me/more && head -c 8M /dev/urandom > /home/me/more/big")
    stick = vm.stick("main")
    stick.plug()
    vm.wait_journal("^You may unplug home now.$", CRYPTBACK_DRIVE="home")
    stick.pull()
    copy_sparse(stick.path, bare_vm.stick_path("main"))
    bare_vm.stick("main").plug()
    with opened(bare_vm) as container:
        names = container.versions()
        assert len(names) == 2
        assert container.listing(names[1]) == listing(vm, "/home/me")


# A drive that hangs: it is there, and answers nothing.


def hanging(vm: Machine) -> None:
    """The stick hangs in mid-sync, and that is noticed and told as what it is."""
    vm.run("mkdir /home/me/more && head -c 48M /dev/urandom > /home/me/more/big")
    hold = Hold(vm, "/usr/bin/rsync", "--info=progress2")
    stick = vm.stick("main")
    stick.plug()
    syncing = hold.wait()
    # After this time the kernel resets the drive, and QEMU waits in that for its own throttle.
    disk = stick.device.removeprefix("/dev/") if stick.device else ""
    vm.push(f"/sys/block/{disk}/device/timeout", "600\n")
    stick.throttle(1)
    syncing.go_on()
    vm.wait_journal("^home: The drive does not answer", CRYPTBACK_DRIVE="home", timeout=90)
    assert not wait_news(vm, '"state": "not-answering"')["safe"]
    assert "does not answer" in vm.run(["cryptback", "status"]).out
    service = "systemctl show --property=StatusText --value cryptbackd"
    assert "home: the drive does not answer" in vm.run(service).out
    assert not vm.journal(MESSAGE="You may unplug home now.")


def test_hanging_drive_is_told_and_can_be_pulled(enrolled: Machine) -> None:
    vm = enrolled
    files = listing(vm, "/home/me")
    hanging(vm)
    pull(vm)
    succeeds_next(vm)
    first_is_whole(vm, files)


@pytest.mark.timeout(600, func_only=True)
def test_hanging_drive_keeps_no_computer_from_going_down(enrolled: Machine) -> None:
    """Whoever wants it ejected is told what they wait for, and the service can be stopped."""
    vm = enrolled
    vm.expect_journal("^cryptbackd: home: failed: |^systemd: cryptbackd.service: ")
    vm.expect_journal(KERNEL_MISSES_IT)
    # Of whoever waits for the drive, after two minutes (hung_task_timeout_secs).
    vm.expect_journal(r"^kernel: (INFO: task \S+ blocked for more| +Tainted|\"echo 0 > /proc/sys)")
    files = listing(vm, "/home/me")
    hanging(vm)
    for verb in ("eject", "cancel"):
        told = vm.run(["timeout", "20", "cryptback", verb, "home"], check=False, timeout=60)
        assert told.out == "home: the drive does not answer\n"
    began = clock(vm)
    vm.run(["systemctl", "stop", "cryptbackd"], check=False, timeout=300)
    # After SIGTERM, and after SIGKILL, it is waited for as long (systemd.service(5)).
    assert clock(vm) - began < 2 * 90 + 30
    assert not vm.journal(MESSAGE="You may unplug home now.")
    vm.stick("main").pull()
    vm.run("systemctl reset-failed cryptbackd && systemctl start cryptbackd")
    succeeds_next(vm)
    first_is_whole(vm, files)


def test_hanging_drive_harms_no_other_and_goes_on_when_it_answers(enrolled: Machine) -> None:
    vm = enrolled
    vm.run("mkdir -p /srv/other && echo 1 > /srv/other/file")
    credential(vm, "other")
    other = vm.stick("other", size=96 * MIB, fs="ext4")
    other.plug()
    options = ["--size", "48M", "--filesystem", "ext4"]
    init(vm, other.partition, "other", *options, include=("/srv/other",))
    other.pull()
    hung = clock(vm)
    hanging(vm)
    started = time.monotonic()
    succeeds_next(vm, "other", "other")
    assert time.monotonic() - started < 60
    assert drive(vm)["state"] == "not-answering"
    vm.run(["sleep", str(max(0, 60 - (clock(vm) - hung)))], timeout=90)
    vm.stick("main").throttle(0)
    vm.wait_journal("^home: The drive answers again", CRYPTBACK_DRIVE="home")
    end = ended(vm)
    assert end["CRYPTBACK_OUTCOME"] == "done"
    assert end["MESSAGE"].startswith("home: finished: ")
    assert vm.journal(MESSAGE="You may unplug home now.")
