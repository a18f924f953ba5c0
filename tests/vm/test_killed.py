"""Whoever is killed, and whenever: within moments nothing is open, and the next plug succeeds.

A phase is held by stopping the program that the worker starts in it; the worker stands and
waits for that.
"""

from __future__ import annotations

import pytest

from tests.machine import Machine
from tests.machine.enroll import CHEAP, PASSPHRASE, credential, init, make_files
from tests.vm.container import listing
from tests.vm.failing import (
    Held,
    Hold,
    clock,
    first_is_whole,
    kill,
    locked_in_time,
    nothing_left,
    succeeds_next,
    tells,
)
from tests.vm.runs import MIB, drive, ended, history, now

MOUNT, UMOUNT = "/usr/bin/mount", "/usr/bin/umount"
CRYPTSETUP, RSYNC = "/usr/sbin/cryptsetup", "/usr/bin/rsync"
HELD_BY = {
    "attaching": (MOUNT, "--target /run/cryptbackd/home/drive"),
    "unlocking": (CRYPTSETUP, " open "),
    "mounting": (MOUNT, "--target /run/cryptbackd/home/tree"),
    "comparing": (RSYNC, "--dry-run"),
    "syncing": (RSYNC, "--info=progress2"),
    "keeping": ("/usr/bin/btrfs", "snapshot -r"),
    "locking": (UMOUNT, "/run/cryptbackd/home/tree"),
}
MAPPING_STANDS = """
until grep -qx cryptback-home /sys/block/dm-*/dm/name 2> /dev/null &&
    [ "$(cat /sys/block/dm-*/dm/suspended)" = 0 ]; do sleep 0.05; done
ps -C cryptsetup -o pid= || exit 1
"""
SERVICE_DROP_IN = "/run/systemd/system/cryptbackd.service.d/test.conf"


def held(vm: Machine, phase: str) -> Held:
    """Plug the stick in, and hold the run in this phase."""
    if phase == "comparing":
        # A quick run compares without rsync.
        vm.run("echo >> /etc/cryptback/drives.d/home.toml")
    if phase == "syncing":
        # Where nothing has changed nothing is copied.
        vm.run("touch /etc/hostname")
    hold = Hold(vm, *HELD_BY[phase])
    vm.stick("main").plug()
    return hold.wait()


def dies(vm: Machine, victim: int, sentence: str) -> None:
    """Kill it: nothing is left, it is told, the version before is whole, and so is the next."""
    vm.expect_journal("^cryptbackd: home: failed: ")
    files = listing(vm, "/home/me")
    kill(vm, victim)
    tells(vm, sentence)
    succeeds_next(vm)
    assert len(first_is_whole(vm, files)) >= 2


@pytest.mark.parametrize(
    "phase",
    [
        pytest.param(phase, marks=[] if phase == "syncing" else pytest.mark.slow)
        for phase in HELD_BY
    ],
)
def test_worker_killed_in_each_phase_leaves_nothing(enrolled: Machine, phase: str) -> None:
    stopped = held(enrolled, phase)
    assert drive(enrolled)["phase"] == phase
    dies(
        enrolled,
        stopped.worker,
        f"The worker was killed by SIGKILL while {phase}; the last complete version is whole.",
    )


@pytest.mark.parametrize("phase", ["unlocking", "syncing", "locking"])
def test_stub_killed_leaves_nothing(enrolled: Machine, phase: str) -> None:
    stopped = held(enrolled, phase)
    dies(
        enrolled,
        stopped.stub,
        f"The worker was killed by SIGKILL while {phase}; the last complete version is whole.",
    )


@pytest.mark.parametrize(
    ("phase", "sentence"),
    [
        ("attaching", "The ext4 filesystem of the drive can't be mounted: .*killed by SIGKILL"),
        ("unlocking", "The volume can't be unlocked: it was killed by SIGKILL"),
        ("mounting", "The btrfs filesystem in the container can't be mounted: .*killed by SIGKILL"),
        ("comparing", "The copy by rsync failed: it was killed by SIGKILL"),
        ("syncing", "The copy by rsync failed: it was killed by SIGKILL"),
    ],
)
def test_tool_killed_ends_the_run_in_order(enrolled: Machine, phase: str, sentence: str) -> None:
    """The worker lives, so it undoes everything itself and even proves that it did."""
    dies(enrolled, held(enrolled, phase).pid, sentence)
    assert enrolled.journal(MESSAGE="You may unplug home now.")


def test_mkfs_killed_leaves_nothing_and_is_begun_anew(vm: Machine) -> None:
    vm.expect_journal("^cryptbackd: home: failed: ")
    make_files(vm)
    credential(vm, "home")
    stick = vm.stick("main", size=320 * MIB, fs="ext4", partitioned=True)
    stick.plug()
    before = listing(vm, "/etc/cryptback")
    hold = Hold(vm, "/usr/sbin/mkfs.btrfs")
    words = ["cryptback", "init", stick.partition, "--name", "home", "--include", "/home/me"]
    words += ["--passphrase-fd", "0", "--yes", "--size", "256M", *CHEAP]
    running = vm.spawn(words, PASSPHRASE.encode())
    kill(vm, hold.wait().pid)
    told = running.wait(check=False, timeout=60)
    assert told.code == 1
    assert (
        "The inner filesystem can't be made: /usr/sbin/mkfs.btrfs failed: it was killed"
        in told.out + told.err
    )
    nothing_left(vm)
    assert listing(vm, "/etc/cryptback") == before
    init(vm, stick.partition, "home", "--size", "256M")
    succeeds_next(vm)


# The gap: the mapping stands, but nothing is armed yet.


def in_the_gap(vm: Machine) -> Held:
    """Hold a run in the gap: cryptsetup made the mapping, and waits for a udev that is stopped."""
    vm.expect_journal("^cryptbackd: home: failed: ")
    stopped = held(vm, "unlocking")
    vm.run(["udevadm", "control", "--stop-exec-queue"])
    stopped.go_on()
    assert vm.run(MAPPING_STANDS).out.split() == [str(stopped.pid)]
    return stopped


def still_open(vm: Machine) -> bool:
    return vm.run("grep -qx cryptback-home /sys/block/dm-*/dm/name", check=False).code == 0


def cookies(vm: Machine) -> int:
    return int(vm.run("awk '$1 >= 223150080 && $1 < 223215616' /proc/sysvipc/sem | wc -l").out)


def udev_goes_on(vm: Machine) -> None:
    vm.run("udevadm control --start-exec-queue && udevadm settle")


def drop_in(vm: Machine, text: str) -> None:
    vm.push(SERVICE_DROP_IN, f"[Service]\n{text}\n")
    vm.run(["systemctl", "daemon-reload"])


def test_worker_killed_in_the_gap_is_swept_by_the_daemon(enrolled: Machine) -> None:
    vm = enrolled
    stopped = in_the_gap(vm)
    assert cookies(vm) == 1
    kill(vm, stopped.worker)
    tells(vm, "The worker was killed by SIGKILL while unlocking")
    swept = vm.journal(MESSAGE="The volume cryptback-home had been left open and was locked.")
    assert len(swept) == 1
    udev_goes_on(vm)
    succeeds_next(vm)


def test_tool_killed_in_the_gap_is_swept_by_the_worker(enrolled: Machine) -> None:
    vm = enrolled
    stopped = in_the_gap(vm)
    kill(vm, stopped.pid)
    tells(vm, "The volume can't be unlocked: it was killed by SIGKILL")
    assert cookies(vm) == 0
    udev_goes_on(vm)
    succeeds_next(vm)


def test_tool_killed_after_udev_used_its_cookie_is_swept_by_the_daemon(enrolled: Machine) -> None:
    """The worker can't see who used it last: udev is not in its PID namespace."""
    vm = enrolled
    stopped = in_the_gap(vm)
    vm.run(["kill", "-STOP", str(stopped.pid)])
    udev_goes_on(vm)
    assert cookies(vm) == 1
    kill(vm, stopped.pid)
    tells(vm, "The volume can't be unlocked: it was killed by SIGKILL")
    assert cookies(vm) == 0
    succeeds_next(vm)


OTHERS_COOKIE = """
# A program that has told udev of its cookie, and waits for it later than udev has answered.
import subprocess, time

def run(*argv):
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()

DMSETUP = "/usr/sbin/dmsetup"
cookie = run(DMSETUP, "udevcreatecookie")
run(DMSETUP, "create", "other", "--udevcookie", cookie, "--table", "0 8 zero")
try:
    # udev may just be looking at it.
    run(DMSETUP, "remove", "--retry", "other", "--udevcookie", cookie)
    run("/usr/bin/udevadm", "settle")
finally:
    open("/run/settled", "w").close()
time.sleep(0.3)
run(DMSETUP, "udevreleasecookie", cookie)
"""


def test_another_programs_cookie_stays_until_it_is_waited_for(enrolled: Machine) -> None:
    vm = enrolled
    stopped = in_the_gap(vm)
    vm.run(["kill", "-STOP", str(stopped.pid)])
    udev_goes_on(vm)
    vm.run("mkfifo /run/settled")
    other = vm.spawn(["/usr/bin/python3", "-I", "-"], OTHERS_COOKIE.encode())
    vm.run("cat /run/settled", timeout=20)
    kill(vm, stopped.worker)
    assert other.wait(timeout=60).code == 0
    tells(vm, "The worker was killed by SIGKILL while unlocking")
    assert cookies(vm) == 0
    succeeds_next(vm)


def test_service_killed_in_the_gap_is_swept_by_exec_stop_post(enrolled: Machine) -> None:
    vm = enrolled
    drop_in(vm, "Restart=no")
    in_the_gap(vm)
    kill_service(vm)
    vm.run("until systemctl is-failed --quiet cryptbackd; do sleep 0.1; done")
    nothing_left(vm)
    udev_goes_on(vm)
    taken_up(vm)


def test_service_killed_in_the_gap_is_swept_at_its_start(enrolled: Machine) -> None:
    vm = enrolled
    drop_in(vm, "Restart=no\nExecStopPost=")
    in_the_gap(vm)
    kill_service(vm)
    vm.run("until systemctl is-failed --quiet cryptbackd; do sleep 0.1; done")
    assert still_open(vm)  # nobody else was there to do it
    assert cookies(vm) == 1
    vm.run("mv /etc/cryptback/drives.d/home.toml /root; systemctl reset-failed cryptbackd")
    vm.run(["systemctl", "start", "cryptbackd"])
    nothing_left(vm)
    vm.wait_journal("The service was killed in the middle; everything was locked.")
    udev_goes_on(vm)
    vm.run("mv /root/home.toml /etc/cryptback/drives.d/")
    succeeds_next(vm)


def taken_up(vm: Machine) -> None:
    """Started again, the service takes the interrupted insertion up, and finishes."""
    since = now(vm)
    vm.run("systemctl reset-failed cryptbackd && systemctl start cryptbackd")
    told = ended(vm, since=since)
    assert told["MESSAGE"] == (
        "home: failed: The service was killed in the middle; everything was locked."
    )
    end = ended(vm, since=told["__CURSOR"], timeout=90)
    assert end["CRYPTBACK_OUTCOME"] == "done", end["MESSAGE"]
    assert vm.journal(since=since, MESSAGE="You may unplug home now.")


def kill_service(vm: Machine) -> None:
    """Kill the daemon and all that belongs to it, at once."""
    vm.expect_journal("^systemd: cryptbackd.service: .*(Killing|Failed|failed)")
    vm.run(["systemctl", "kill", "--signal=KILL", "cryptbackd"])


def test_mapping_of_somebody_else_is_never_touched(enrolled: Machine) -> None:
    """Whatever it is called: neither by a sweep, nor by a run that can't go on because of it."""
    vm = enrolled
    vm.expect_journal("^cryptbackd: home: failed: ")
    theirs = "^mapping (cryptback-home|cryptback-other|theirs)$"
    vm.expect_leftovers(theirs)
    vm.run(
        "for name in cryptback-home cryptback-other theirs; do"
        " dmsetup create $name --uuid CRYPT-PLAIN-$name --table '0 2048 zero'; done"
    )
    shown = "dmsetup info -c --noheadings -o name,uuid,open | sort"
    mappings = vm.run(shown).out
    assert mappings.count("CRYPT-PLAIN-") == 3
    vm.run(["systemctl", "restart", "cryptbackd"])
    vm.run(["systemctl", "start", "cryptbackd"])
    vm.stick("main").plug()
    tells(vm, "There is a mapping cryptback-home already")
    vm.run(["systemctl", "stop", "cryptbackd"])
    vm.run(["/usr/bin/python3", "-I", "-m", "cryptbackd.worker", "--sweep"])
    assert vm.run(shown).out == mappings
    vm.run("dmsetup remove cryptback-home && systemctl start cryptbackd")
    vm.expected_leftovers.remove(theirs)
    vm.expect_leftovers("^mapping (cryptback-other|theirs)$")
    succeeds_next(vm)


def test_service_killed_in_mid_sync_takes_the_insertion_up_again(enrolled: Machine) -> None:
    vm = enrolled
    files = listing(vm, "/home/me")
    vm.run("mkdir /home/me/more && head -c 4M /dev/urandom > /home/me/more/big")
    held(vm, "syncing")
    since = now(vm)
    kill_service(vm)
    first = ended(vm, since=since)
    assert first["MESSAGE"] == (
        "home: failed: The service was killed in the middle; everything was locked."
    )
    end = ended(vm, since=first["__CURSOR"], timeout=90)
    assert end["CRYPTBACK_OUTCOME"] == "done", end["MESSAGE"]
    assert vm.journal(since=since, MESSAGE="You may unplug home now.")
    assert history(vm)[0]["outcome"] == "done"
    names = first_is_whole(vm, files)
    assert len(names) == 2
    succeeds_next(vm)


@pytest.mark.slow
@pytest.mark.parametrize("phase", HELD_BY)
def test_service_killed_in_each_phase_leaves_nothing(enrolled: Machine, phase: str) -> None:
    vm = enrolled
    drop_in(vm, "Restart=no")
    held(vm, phase)
    time = clock(vm)
    kill_service(vm)
    locked_in_time(vm, time)
    vm.run("until systemctl is-failed --quiet cryptbackd; do sleep 0.1; done")
    taken_up(vm)
