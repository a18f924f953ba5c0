"""A stick or card whose switch says that nothing may be written to it."""

from __future__ import annotations

import os

import pytest

from tests import by_hand
from tests.machine import Machine
from tests.machine.enroll import credential, init
from tests.vm.failing import NO_HOLES_ON_FAT, nothing_left
from tests.vm.runs import MIB, ended, history, now
from tests.vm.test_enrol import content
from tests.vm.test_recover import adopt

TOLD = "The drive is write-protected: "


def restored(vm: Machine, path: str) -> str:
    """How what is restored of *path* differs from it."""
    vm.run("rm -rf /var/back && mkdir /var/back")
    done = vm.run(["cryptback", "restore", "home", path, "--to", "/var/back"], timeout=120)
    assert "You may unplug home now." in done.out
    ours = by_hand.manifest(vm, path)
    return by_hand.difference(ours, by_hand.manifest(vm, f"/var/back/{os.path.basename(path)}"))


def test_files_are_restored_and_a_run_says_why_not(enrolled: Machine) -> None:
    vm = enrolled
    vm.expect_journal("^cryptbackd: home: failed: ")
    main = vm.stick("main")
    before = content(main)
    since = now(vm)
    main.plug(read_only=True)
    end = ended(vm, since=since)
    assert (end["CRYPTBACK_OUTCOME"], TOLD in end["MESSAGE"]) == ("failed", True)
    assert history(vm)[0]["safe"]
    asked = "home: A passphrase came from the source “credential”."
    assert not vm.journal(since=since, MESSAGE=asked)
    assert restored(vm, "/home/me/documents") == ""
    main.pull()
    assert content(main) == before


@pytest.mark.parametrize(
    ("outside", "inside"),
    [("ext4", "ext4"), ("exfat", "xfs"), ("ntfs", "btrfs"), ("luks", "ext4"), ("f2fs", "btrfs")],
)
def test_it_is_verified_browsed_and_enrolled_again(vm: Machine, outside: str, inside: str) -> None:
    vm.run("mkdir /home/me/more && echo hello > /home/me/more/first")
    credential(vm, "home")
    vm.expect_journal(f"^cryptbackd: home: failed: |{NO_HOLES_ON_FAT}")
    size = 400 * MIB if inside == "xfs" else 192 * MIB
    stick = vm.stick("main", size=size + 160 * MIB, fs=None if outside == "luks" else outside,
                     partitioned=True)  # fmt: skip
    stick.plug()
    chosen = ["--format", "luks"] if outside == "luks" else ["--size", str(size)]
    init(vm, stick.partition, "home", *chosen, "--filesystem", inside)
    stick.pull()
    before = content(stick)
    since = now(vm)
    stick.plug(read_only=True)
    ended(vm, since=since)
    assert "none is damaged" in vm.run(["cryptback", "verify", "home", "--full"], timeout=120).out
    place = vm.run(["cryptback", "browse", "home"]).out.strip()
    assert vm.run(f"cat {place}/*/home/me/more/first").out == "hello\n"
    vm.run(["cryptback", "close", "home"])
    nothing_left(vm)
    for words in (["resize", "home", "+1M"], ["run", "home"]):
        refused = vm.run(["cryptback", *words], check=False)
        assert (refused.code, TOLD in refused.err) == (1, True)
    vm.run(["systemctl", "stop", "cryptbackd"])
    vm.run("rm -r /var/lib/cryptbackd/* /etc/cryptback/drives.d/*")
    vm.run(["systemctl", "start", "cryptbackd"])
    adopt(vm, stick.partition, "--no-run")
    assert restored(vm, "/home/me/more") == ""
    stick.pull()
    assert content(stick) == before
