"""A stranger on the bus: what they send ends nothing, costs little, and keeps nobody waiting."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import hostile
from tests.machine import Machine
from tests.vm.runs import PATIENCE, UNIT, drive, ended, now

HOSTILE = Path(hostile.__file__).read_bytes()
STOP = "/run/stop-looking"
AT_MOST = dict.fromkeys(hostile.ATTACKS, 1.0) | {"flood": 10.0}
"""Seconds within which others are answered.

The daemon, the bus and the stranger share one emulated processor, on which 10,000 calls alone take
seconds to pass (6.6 were seen); natively tests/unit/test_bus.py asks how long the daemon itself is
at work.
"""

GONE = r"^polkitd: Error converting subject to JS object: (Process \d+ terminated|.*NameHasNoOwner)"
"""polkit was asked about a stranger who has left by then."""


def descriptors(vm: Machine) -> int:
    """How many descriptors the daemon has open, when no question is being answered any more."""
    vm.run("while pgrep -f 'cryptbackd[.]query'; do sleep 0.2; done")
    drive(vm)  # it has noticed the end of the last one before it answers
    pid = vm.run(["systemctl", "show", "-P", "MainPID", UNIT]).out.strip()
    return len(vm.run(["ls", f"/proc/{pid}/fd"]).out.split())


@pytest.mark.parametrize("attack", list(hostile.ATTACKS))
def test_stranger_keeps_nobody_waiting_and_leaks_no_descriptor(
    enrolled: Machine,
    attack: str,
    record_property: Callable[[str, object], None],
) -> None:
    # The bus itself complains of a client that wants too many answers at once.
    enrolled.expect_journal("maximum number of pending replies")
    enrolled.expect_journal(GONE)
    assert drive(enrolled)["state"] == "absent"
    before = descriptors(enrolled)
    daemon = enrolled.run(["systemctl", "show", "-P", "MainPID", UNIT]).out
    python = ["python3", "-I", "-"]
    looking = enrolled.spawn([*python, "look", STOP, daemon.strip()], input=HOSTILE, user="me")
    sent = json.loads(
        enrolled.run([*python, attack], input=HOSTILE, user="me", timeout=PATIENCE).out
    )
    enrolled.run(["touch", STOP])
    seen = json.loads(looking.wait(timeout=PATIENCE).out)
    told = f"{seen['slowest']:.3f} s, of {seen['count']}, while {sent} messages were sent;"
    told += f" the daemon was at work for {seen['busiest']:.2f} s of one at most"
    record_property(f"slowest answer to others ({attack})", told)
    assert seen["slowest"] < AT_MOST[attack], told
    assert descriptors(enrolled) == before
    assert enrolled.run(["systemctl", "show", "-P", "MainPID", UNIT]).out == daemon
    assert not enrolled.journal(UNIT), "nothing happened to the daemon"


def test_what_is_handed_over_as_a_mount_and_cannot_be_closed_keeps_nothing_open(
    enrolled: Machine,
) -> None:
    vm = enrolled
    vm.stick("main").plug()
    assert ended(vm)["CRYPTBACK_OUTCOME"] == "done"
    since = now(vm)
    handing = vm.spawn(["python3", "-I", "-", "browse", STOP], input=HOSTILE)
    # A process that ends has no command line any more.
    daemon = vm.run(["systemctl", "show", "-P", "MainPID", UNIT]).out.strip()
    stuck = rf"ps -o args= --ppid {daemon} | grep -q '^\[python3\]$'"
    vm.run(["timeout", "60", "sh", "-c", f"until {stuck}; do sleep 0.2; done"], timeout=70)
    vm.run(["cryptback", "close", "home"])
    assert ended(vm, since=since)["CRYPTBACK_OUTCOME"] == "cancelled"  # it was never open
    assert drive(vm)["safe"]
    vm.run(stuck)
    vm.run(["touch", STOP])
    assert json.loads(handing.wait(timeout=PATIENCE).out) is False
    left = f"ps -o pid= --ppid {daemon} | grep -q ."
    vm.run(["timeout", "20", "sh", "-c", f"while {left}; do sleep 0.2; done"])


def test_drive_is_backed_up_to_while_a_stranger_floods_the_bus(enrolled: Machine) -> None:
    enrolled.expect_journal("maximum number of pending replies")
    enrolled.expect_journal(GONE)
    enrolled.push("/tmp/hostile.py", HOSTILE)
    flood = enrolled.spawn("for i in 1 2 3; do python3 -I /tmp/hostile.py flood; done", user="me")
    enrolled.stick("main").plug()
    assert ended(enrolled)["CRYPTBACK_OUTCOME"] == "done"
    flood.wait(timeout=PATIENCE, check=False)
    assert drive(enrolled)["safe"]
