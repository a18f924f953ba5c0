"""What is on the drive is read back from the drive, and what is damaged there is named."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.machine import Machine, Stick
from tests.machine.enroll import credential, init
from tests.machine.guest import Result
from tests.machine.stick import Fault
from tests.vm.flip import flip, places
from tests.vm.runs import MIB, PATIENCE, ended, history, news, now
from tests.vm.test_drive_lies import message_id

ENTRY = "/etc/cryptback/drives.d/home.toml"
PLACE = "/home/me/verified"
MAKE = f"""
mkdir -p {PLACE}
cd {PLACE}
head -c 3M /dev/urandom > plain
head -c 1M /dev/urandom > letter
head -c 1M /dev/urandom > twin-1
cp twin-1 twin-2
head -c 100K /dev/urandom > small
chown -R me: .
"""
CHANGE = f"head -c 1M /dev/urandom > {PLACE}/letter"
SIZE = 6 * MIB + 100 * 1024
KERNEL_TELLS = "^kernel: .*(BTRFS|csum)"


def verify(vm: Machine, *options: str, code: int = 0) -> Result:
    words = ["cryptback", "verify", "home", *options]
    told = vm.run(words, check=False, timeout=PATIENCE)
    assert told.code == code, told.out + told.err
    return told


def result(told: Result) -> dict[str, Any]:
    """The last line of what was told as JSON."""
    found: dict[str, Any] = json.loads(told.out.splitlines()[-1])
    return found


def sectors(vm: Machine, stick: Stick) -> int:
    """How many sectors were read from the stick."""
    assert stick.device
    shown = vm.run(["cat", f"/sys/class/block/{stick.device.rsplit('/', 1)[1]}/stat"]).out
    return int(shown.split()[2])


def sample(vm: Machine, share: str) -> None:
    vm.push(ENTRY, vm.pull(ENTRY).decode() + f'\n[verify]\nsample = "{share}"\n', 0o600)


def enrolled_with(vm: Machine, filesystem: str) -> Stick:
    """The stick "main", with two versions of some files; it is plugged in."""
    vm.run(MAKE)
    credential(vm, "home")
    size = {"btrfs": 160, "ext4": 64, "xfs": 400}[filesystem]
    stick = vm.stick("main", size=(size * 9 // 8 + 48) * MIB, fs="ext4")
    stick.plug()
    options = ("--size", f"{size}M", "--filesystem", filesystem)
    init(vm, stick.partition, "home", *options, include=(PLACE,))
    vm.run(CHANGE)
    vm.run(["cryptback", "run", "home"], timeout=PATIENCE)
    return stick


def test_what_is_read_back_comes_from_the_stick(enrolled: Machine) -> None:
    """After a run, which has just written it, and when somebody asks."""
    vm = enrolled
    vm.run(MAKE)
    sample(vm, "100%")
    stick = vm.stick("main")
    stick.plug()
    end = ended(vm)
    assert end["CRYPTBACK_OUTCOME"] == "done", end["MESSAGE"]
    assert sectors(vm, stick) * 512 >= SIZE
    assert vm.journal(CRYPTBACK_PHASE="verifying")[-1]["MESSAGE"].endswith("; none is damaged.")
    before = sectors(vm, stick)
    told = result(verify(vm, "--json"))
    assert (sectors(vm, stick) - before) * 512 >= SIZE
    assert (told["data"]["damaged"], told["data"]["versions"]) == (0, 1)
    assert told["data"]["bytes"] >= SIZE
    assert told["safe"]
    assert history(vm)[0]["job"] == "verify"
    assert "last verification: " in vm.run(["cryptback", "status", "home"]).out


def check_told(told: dict[str, Any], filesystem: str) -> None:
    """What a full verification told of the flipped bits, in the third version."""
    assert told["sentence"].startswith("3 files of 3 versions are damaged; ")
    assert "cryptback run home --full" in told["hint"]
    assert told["safe"]
    assert told["data"]["damaged"] == 3
    damaged = {
        each["path"].removeprefix(f"{PLACE}/"): each for each in told["data"]["damaged_files"]
    }
    plain, letter = damaged.pop("plain"), damaged.pop("letter")
    ((twin, twin_file),) = damaged.items()
    why = "its content is not what was backed up"
    if filesystem == "btrfs":
        why = "it can't be read (Input/output error)"
        assert any("The scrub of btrfs found " in warning for warning in told["warnings"])
    assert {plain["why"], letter["why"], twin_file["why"]} == {why}
    third, second, first = plain["versions"]
    assert third > second > first
    assert plain["good"] == []
    assert letter["versions"] == [third, second]
    assert letter["good"] == [{"version": first, "path": f"{PLACE}/letter", "same": False}]
    other = {"twin-1": "twin-2", "twin-2": "twin-1"}[twin]
    assert twin_file["versions"] == [third, second, first]
    assert {copy["path"] for copy in twin_file["good"]} == {f"{PLACE}/{other}"}
    assert all(copy["same"] for copy in twin_file["good"])
    words = " ".join(told["warnings"])
    assert f"cryptback restore home {PLACE}/letter --at {first}" in words
    assert f"cryptback restore home {PLACE}/{other} --at {third}" in words
    assert f'"{PLACE}/plain" is damaged in {third}, {second}, {first}: {why}.' in words
    assert "No version has a good copy." in words


@pytest.mark.timeout(600, func_only=True)
@pytest.mark.parametrize("filesystem", ["btrfs", "ext4", "xfs"])
def test_flipped_bits_on_the_raw_stick_are_caught(vm: Machine, filesystem: str) -> None:
    """After the next run by its sample, and by `verify`, which knows what good copies there are."""
    vm.expect_journal(KERNEL_TELLS)
    vm.expect_journal("^cryptbackd: home: damaged: ")
    stick = enrolled_with(vm, filesystem)
    sound = result(verify(vm, "--full", "--json"))
    assert (sound["outcome"], sound["data"]["damaged"]) == ("done", 0)
    assert sound["data"]["versions"] == 2
    assert sound["data"]["files"] == 6  # what did not change was read once
    assert sound["data"]["bytes"] == SIZE + MIB
    found = places(vm, *(f"{PLACE}/{name}" for name in ("plain", "letter", "twin-1")))
    stick.pull()
    flip(stick, *found)
    sample(vm, "100%")
    since = now(vm)
    stick.plug()
    end = ended(vm, since=since)
    assert end["CRYPTBACK_OUTCOME"] == "warnings"
    assert end["MESSAGE"].startswith("home: finished with 4 warnings: ")
    assert history(vm)[0]["version"]
    (line,) = vm.journal(since=since, MESSAGE_ID=message_id(vm, "is damaged"))[:1]
    assert " is damaged in " in line["MESSAGE"]
    assert vm.journal(since=since, MESSAGE="You may unplug home now.")

    told = result(verify(vm, "--full", "--json", code=1))
    check_told(told, filesystem)

    # The files on the computer are sound: copied anew, the next version is.
    vm.run(["cryptback", "run", "home", "--full"], timeout=PATIENCE)
    assert result(verify(vm, "--json"))["data"]["damaged"] == 0


def test_a_read_error_is_damage_of_that_file_and_a_dead_drive_ends_it(enrolled: Machine) -> None:
    vm = enrolled
    vm.expect_journal(
        "^kernel: .*(I/O error|BTRFS|EXT4-fs|JBD2|journal|Buffer|Sense|sense|FAILED|CDB)"
    )
    vm.expect_journal("^cryptbackd: home: (damaged|failed): ")
    vm.run(MAKE)
    vm.run(f"head -c 12M /dev/urandom > {PLACE}/zzz-large")
    stick = vm.stick("main")
    stick.plug()
    ended(vm)
    (found,) = places(vm, f"{PLACE}/plain")
    bad = Fault("read", sector=(stick.start + found) // 512)
    stick.fail(bad)
    told = verify(vm, "--sample", "100%", code=1)
    assert f'"{PLACE}/plain" is damaged in ' in told.out
    assert "it can't be read (Input/output error)" in told.out
    assert "1 file of the version " in told.err

    stick.fail()
    stick.throttle(3 * MIB)
    began = news(vm, '"phase": "verifying", "done": [1-9][0-9]{6}')
    asked = vm.spawn(["cryptback", "verify", "home"])
    began.wait(timeout=PATIENCE)
    stick.throttle(0)
    stick.fail(Fault("read"))
    told = asked.wait(check=False, timeout=PATIENCE)
    assert told.code == 1
    assert "The drive can't be read any more: Input/output error." in told.err
    stick.fail()
    assert verify(vm, "--json").code == 0
