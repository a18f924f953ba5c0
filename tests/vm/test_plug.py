"""A drive goes in: what is run, what is not, and how often."""

from __future__ import annotations

import itertools
import subprocess

import pytest

from tests.machine import Machine, Stick, enroll
from tests.machine.stick import START
from tests.vm.runs import (
    MIB,
    UNIT,
    begun,
    drive,
    ended,
    go_on,
    history,
    hold,
    now,
    outcomes,
    random_files,
    settled,
)
from tests.vm.test_may_unplug import digest

OTHER = ["ext4", "btrfs", None]
"""Further content of a drive that nobody enrolled."""
SMALL = ["--filesystem", "ext4", "--size", "48M"]


def test_a_plug_backs_up_and_says_that_it_may_be_pulled(enrolled: Machine) -> None:
    enrolled.run("echo new > /home/me/new")
    stick = enrolled.stick("main")
    stick.plug()
    assert ended(enrolled)["CRYPTBACK_OUTCOME"] == "done"
    told = [entry["MESSAGE"] for entry in enrolled.journal(CRYPTBACK_DRIVE="home")]
    assert "You may unplug home now." in told
    assert drive(enrolled)["safe"]
    last = history(enrolled)[0]
    assert (last["outcome"], last["changed_files"], last["changed_bytes"]) == ("done", 1, 4)
    stick.pull()
    assert settled(enrolled)["state"] == "absent"


def test_one_insertion_is_one_run(enrolled: Machine) -> None:
    """Neither later events of the drive, nor restarts of the daemon, nor dm and loop events."""
    stick = enrolled.stick("main")
    stick.plug()
    ended(enrolled)
    for node in (stick.partition, stick.device):
        for action in ("change", "add"):
            enrolled.run(["udevadm", "trigger", f"--action={action}", str(node)])
    enrolled.run(["udevadm", "trigger", "--action=change", "--subsystem-match=block"])
    assert settled(enrolled)["state"] == "idle"
    for verb in ("restart", "restart", "kill --signal=KILL", "start"):
        enrolled.run(f"systemctl {verb} {UNIT}")
    assert settled(enrolled)["state"] == "idle"
    assert begun(enrolled) == 1
    assert outcomes(enrolled) == ["done"]
    before = now(enrolled)
    stick.replug()
    ended(enrolled, since=before)
    assert outcomes(enrolled) == ["done", "done"]


def test_an_interrupted_insertion_is_taken_up_again(enrolled: Machine) -> None:
    random_files(enrolled, 4, 8)
    hold(enrolled, enrolled.stick("main"))
    enrolled.run(["systemctl", "restart", UNIT])
    first = ended(enrolled)
    assert first["CRYPTBACK_OUTCOME"] == "cancelled"
    assert "begins again" in first["MESSAGE"]
    assert ended(enrolled, since=first["__CURSOR"])["CRYPTBACK_OUTCOME"] == "done"
    enrolled.run(["systemctl", "restart", UNIT])
    assert settled(enrolled)["state"] == "idle"
    assert outcomes(enrolled) == ["cancelled", "done"]
    assert [run["interrupted"] for run in history(enrolled)[:2]] == [False, True]


def test_a_drive_that_was_in_before_the_daemon_started(enrolled: Machine) -> None:
    enrolled.run(["systemctl", "mask", "--now", "--runtime", UNIT])
    enrolled.stick("main").plug()
    enrolled.run(["udevadm", "settle"])
    assert enrolled.run(["systemctl", "is-active", UNIT], check=False).out == "inactive\n"
    enrolled.run(["systemctl", "unmask", "--runtime", UNIT])
    enrolled.run(["systemctl", "start", UNIT])
    assert ended(enrolled)["CRYPTBACK_OUTCOME"] == "done"


@pytest.mark.slow
def test_a_drive_that_was_in_at_boot(enrolled: Machine) -> None:
    stick = enrolled.stick("main")
    stick.plug()
    ended(enrolled)
    before = now(enrolled)
    enrolled.reboot()
    ended(enrolled, since=before)
    assert settled(enrolled)["state"] == "idle"
    assert outcomes(enrolled) == ["done", "done"]


def test_a_partition_that_appears_late(enrolled: Machine) -> None:
    stick = enrolled.stick("main")
    with open(stick.path, "r+b") as file:
        table = file.read(512)
        file.seek(0)
        file.write(bytes(512))
    stick.plug()
    assert settled(enrolled)["state"] == "absent"
    enrolled.run(["dd", f"of={stick.device}", "conv=notrunc", "status=none"], input=table)
    enrolled.run(["udevadm", "wait", "--timeout=30", f"{stick.device}1"])
    assert ended(enrolled)["CRYPTBACK_OUTCOME"] == "done"


def test_a_partition_that_goes_and_comes_back_is_the_same_insertion(enrolled: Machine) -> None:
    stick = enrolled.stick("main")
    stick.plug()
    ended(enrolled)
    enrolled.run(["partx", "--delete", str(stick.device)])
    assert settled(enrolled)["state"] == "absent"
    enrolled.run(["partx", "--add", str(stick.device)])
    enrolled.run(["udevadm", "wait", "--timeout=30", stick.partition])
    assert settled(enrolled)["state"] == "idle"
    assert outcomes(enrolled) == ["done"]


def test_a_filesystem_on_the_whole_disk(enrolled: Machine) -> None:
    """The filesystem of the enrolled drive, moved to a disk without partitions."""
    partitioned = enrolled.stick("main")
    path = enrolled.stick_path("whole")
    command = ["dd", f"if={partitioned.path}", f"of={path}", "bs=1M", "conv=sparse", "status=none"]
    subprocess.run([*command, f"skip={START // MIB}"], check=True)
    whole = enrolled.stick("whole")
    whole.plug()
    assert whole.partition == whole.device
    assert ended(enrolled)["CRYPTBACK_OUTCOME"] == "done"
    assert drive(enrolled)["device"] == whole.device


@pytest.mark.parametrize(
    "fs", ["vfat", *(pytest.param(fs, marks=pytest.mark.slow) for fs in OTHER)]
)
def test_an_unknown_drive_is_ignored_without_a_trace(enrolled: Machine, fs: str | None) -> None:
    stick = enrolled.stick("other", size=128 * MIB, fs=fs, partitioned=fs == "ext4")
    stick.plug()
    assert settled(enrolled)["state"] == "absent"
    stick.pull()
    assert settled(enrolled)["state"] == "absent"
    assert enrolled.journal(UNIT) == []


def test_two_drives_at_once_run_side_by_side(enrolled: Machine) -> None:
    work = second_drive(enrolled)
    work.pull()
    before = now(enrolled)
    random_files(enrolled, 4, 8)
    hold(enrolled, enrolled.stick("main"))
    work.plug()
    assert ended(enrolled, "work", since=before)["CRYPTBACK_OUTCOME"] == "done"
    assert drive(enrolled)["state"] == "running"
    go_on(enrolled)
    assert ended(enrolled)["CRYPTBACK_OUTCOME"] == "done"


@pytest.mark.slow
def test_two_entries_on_one_drive_run_one_after_the_other(enrolled: Machine) -> None:
    home = enrolled.stick("main")
    home.plug()
    ended(enrolled)
    enroll.credential(enrolled, "more")
    more = ["--container", "more.luks", "--no-run", *SMALL]
    enroll.init(enrolled, home.partition, "more", *more, include=("/etc/systemd",))
    before = now(enrolled)
    home.replug()
    last = [ended(enrolled, name, since=before) for name in ("home", "more")]
    assert [entry["CRYPTBACK_OUTCOME"] for entry in last] == ["done", "done"]
    entries = [entry for entry in enrolled.journal(since=before) if "CRYPTBACK_RUN" in entry]
    runs = [run for run, _lines in itertools.groupby(entry["CRYPTBACK_RUN"] for entry in entries)]
    assert len(runs) == 2, "the lines of two runs are mixed"


def test_two_sticks_with_the_same_uuid_are_refused(enrolled: Machine) -> None:
    """Which of them is the enrolled one can't be known; with one alone it goes on."""
    original = enrolled.stick("main")
    clone = original.clone("clone")
    enrolled.run(["systemctl", "mask", "--now", "--runtime", UNIT])
    original.plug()
    clone.plug()
    enrolled.run(["systemctl", "unmask", "--runtime", UNIT])
    enrolled.run(["systemctl", "start", UNIT])
    told = enrolled.wait_journal("several devices show the UUID", CRYPTBACK_DRIVE="home")
    assert original.uuid in told["MESSAGE"]
    refused = enrolled.run(["cryptback", "run", "home"], check=False)
    assert refused.code == 1
    assert "Several devices show the UUID of home: /dev/sda1, /dev/sdb1." in refused.err
    assert begun(enrolled) == 0
    clone.pull()
    assert ended(enrolled)["CRYPTBACK_OUTCOME"] == "done"
    assert drive(enrolled)["device"] == original.partition


def test_a_second_stick_with_the_same_uuid_leaves_the_run_of_the_first_alone(
    enrolled: Machine,
) -> None:
    """It comes in the middle of it, and nothing is written on it."""
    original = enrolled.stick("main")
    clone = original.clone("clone")
    untouched = digest(clone.path)
    random_files(enrolled, 8, 4)
    held = hold(enrolled, original)
    clone.plug()
    enrolled.run(["udevadm", "settle"])
    assert drive(enrolled)["device"] == original.partition
    assert enrolled.run(["ps", "-o", "stat=", str(held.writer)]).out.startswith("T")
    go_on(enrolled)
    ended(enrolled)
    enrolled.wait_journal("several devices show the UUID", CRYPTBACK_DRIVE="home")
    assert outcomes(enrolled) == ["done"]
    assert digest(clone.path) == untouched
    before = now(enrolled)
    original.pull()
    # It was refused when it came, and is the only one now: it may run, and is told to be a copy.
    ended(enrolled, since=before)
    assert drive(enrolled)["device"] == clone.partition
    assert any("not as this computer remembers it" in told for told in drive(enrolled)["warnings"])


def test_disabled_still_starts_on_plug(enrolled: Machine) -> None:
    enrolled.run(["systemctl", "disable", "--now", UNIT])
    enrolled.stick("main").plug()
    assert ended(enrolled)["CRYPTBACK_OUTCOME"] == "done"


def second_drive(vm: Machine) -> Stick:
    """Another enrolled drive, "work", plugged in."""
    stick = vm.stick("work", size=80 * MIB, fs="ext4", partitioned=True)
    stick.plug()
    enroll.credential(vm, "work")
    enroll.init(vm, stick.partition, "work", "--no-run", *SMALL, include=("/etc/systemd",))
    return stick
