"""The rules of [keep], applied for real."""

from __future__ import annotations

import pytest

from tests.machine import Machine
from tests.machine.enroll import credential, init
from tests.vm.container import TREE, listing, opened
from tests.vm.runs import ended, now

ENTRY = "/etc/cryptback/drives.d/home.toml"
DAY = 86_400
MIB = 1 << 20


def keep(vm: Machine, rules: str) -> None:
    text = vm.pull(ENTRY).decode()
    vm.push(ENTRY, f"{text}\n[keep]\n{rules}\n", 0o600)


def back_up(vm: Machine, content: str) -> None:
    """Another version, whose file has this content."""
    vm.run(f"echo {content} > /home/me/diary")
    here = now(vm)
    vm.run(["cryptback", "run", "home"], timeout=120)
    assert ended(vm, since=here)["CRYPTBACK_OUTCOME"] == "done"


@pytest.mark.parametrize("inside", ["btrfs", "ext4"])
def test_versions_that_no_rule_holds_go(vm: Machine, inside: str) -> None:
    credential(vm, "home")
    vm.run("mkdir -p /home/me && echo first > /home/me/diary")
    stick = vm.stick("main", size=256 * MIB, fs="ext4", partitioned=True)
    stick.plug()
    init(vm, stick.partition, "home", "--size", "160M", "--filesystem", inside)
    keep(vm, "last = 1\ndaily = 2")
    start = vm.clock()
    for day in (1, 2):
        vm.set_clock(start + day * DAY)
        back_up(vm, f"morning-{day}")
        back_up(vm, f"evening-{day}")
    removed = vm.journal(MESSAGE_ID="7d9d62ac4b4f4f6ab34a2bb6f8b0a1c5")
    assert len(removed) == 3
    here = listing(vm, "/home/me")
    with opened(vm, stick.partition) as container:
        names = container.versions()
        assert len(names) == 2
        shown = [vm.run(f"cat {TREE}/versions/{name}/home/me/diary").out for name in names]
        assert shown == ["evening-1\n", "evening-2\n"]
        assert container.listing(names[-1]) == here
        left = vm.run(f"ls -A {TREE}/versions").out.split()
        assert sorted(left) == sorted([*names, *(f"{name}.json" for name in names)])
