"""More happens than can be followed: events by the thousand, a stick that is in and out."""

from __future__ import annotations

import json

import pytest

from tests.machine import Machine
from tests.vm.container import listing
from tests.vm.failing import KERNEL_MISSES_IT, first_is_whole, succeeds_next
from tests.vm.runs import (
    CALL,
    PATIENCE,
    UNIT,
    begun,
    drive,
    ended,
    go_on,
    hold,
    outcomes,
    random_files,
    settled,
)
from tests.vm.seat import at_the_seat

# As `udevadm trigger` does it, without a process for each.
EVENTS = """
import sys, time
path, number = sys.argv[1], int(sys.argv[2])
began = time.monotonic()
for turn in range(number):
    with open(path, "w") as uevent:
        uevent.write(("change", "add", "remove", "add")[turn % 4])
print(time.monotonic() - began)
"""
RESTORES = """
import asyncio, json
from dbus_fast import BusType, Message
from dbus_fast.aio import MessageBus


async def main():
    bus = await MessageBus(bus_type=BusType.SYSTEM).connect()
    names = []
    for _turn in range(600):
        reply = await bus.call(Message(
            destination="org.cryptback1", path="/org/cryptback1",
            interface="org.cryptback1.Manager", member="Restore", signature="sa{sv}",
            body=["home", {}]))
        names.append(reply.error_name or "")
    print(json.dumps(names))


asyncio.run(main())
"""


@pytest.mark.timeout(1200)
def test_a_thousand_events_begin_one_run(enrolled: Machine) -> None:
    """The last of them says that the stick is there, as it was all the time."""
    vm = enrolled
    stick = vm.stick("main")
    stick.plug()
    name = stick.partition.rsplit("/", 1)[1]
    script = ["python3", "-c", EVENTS, f"/sys/class/block/{name}/uevent", "1000"]
    assert float(vm.run(script).out) < 10
    vm.run(["udevadm", "settle", "--timeout=600"], timeout=600)
    assert settled(vm)["state"] in ("idle", "running")
    vm.run(
        "until cryptback status home --json | grep -q '\"idle\"'; do sleep 0.5; done", timeout=90
    )
    assert outcomes(vm) == ["done"]
    assert drive(vm)["safe"]
    vm.run(["cryptback", "run", "home"], timeout=PATIENCE)
    assert begun(vm) == 2


@pytest.mark.parametrize("times", [10, 100])
@pytest.mark.timeout(1200)
def test_a_stick_that_is_in_and_out(enrolled: Machine, times: int) -> None:
    """However short it was in, the next time it is backed up to."""
    vm = enrolled
    vm.expect_journal("^cryptbackd: home: failed: ")
    vm.expect_journal(KERNEL_MISSES_IT)
    vm.expect_journal("^kernel: (usb|xhci_hcd|Dev sd|sd )")
    vm.expect_journal("^systemd-udevd: ")
    files = listing(vm, "/home/me")
    stick = vm.stick("main")
    for turn in range(times):
        stick.plug(wait=False)
        vm.run(["sleep", f"{turn % 10 * 0.3:.1f}"])
        stick.pull(wait=False)
    vm.run(["udevadm", "settle"])
    # The last one that was pulled has to be told first, or its end is taken for the next one's.
    vm.run(
        "until cryptback status home --json | grep -q '\"absent\"'; do sleep 0.5; done", timeout=90
    )
    succeeds_next(vm)
    assert len(first_is_whole(vm, files)) >= 2
    assert len(outcomes(vm)) == begun(vm)  # each was told how it ended


def test_whatever_somebody_names_at_length_goes_on_with_the_others(enrolled: Machine) -> None:
    """A letter of two bytes has six in what the worker is told."""
    vm = enrolled
    stick = vm.stick("main")
    random_files(vm, 4, 8)
    daemon = vm.run(["systemctl", "show", "-P", "MainPID", UNIT]).out
    hold(vm, stick)
    for member in ("Verify", "Restore"):
        long = [*CALL, member, "sa{sv}", "home", "1", "at", "s", "é" * 60_000]
        refused = at_the_seat(vm, *long, check=False)
        assert "That is neither a time nor a version." in refused.err
    go_on(vm)
    assert ended(vm)["CRYPTBACK_OUTCOME"] == "done"
    assert vm.run(["systemctl", "show", "-P", "MainPID", UNIT]).out == daemon


def test_an_entry_that_is_too_long_disables_itself_alone(enrolled: Machine) -> None:
    vm = enrolled
    vm.expect_journal("it has more than 60 KiB")
    long = 'uuid = "1A2B-3C4D"\n[backup]\ninclude = ["/etc"]\n' + f"# {'x' * 70}\n" * 5000
    vm.push("/etc/cryptback/drives.d/long.toml", long.encode(), 0o600)
    vm.stick("main").plug()
    assert ended(vm)["CRYPTBACK_OUTCOME"] == "done"
    told = drive(vm, "long")
    assert (told["state"], "more than 60 KiB" in told["problem"]) == ("bad", True)


def test_restores_that_wait_take_no_room(enrolled: Machine) -> None:
    """Each has two descriptors of the daemon; whoever asks for more than one is refused."""
    vm = enrolled
    stick = vm.stick("main")
    random_files(vm, 4, 8)
    hold(vm, stick)
    told = at_the_seat(vm, "python3", "-I", "-c", RESTORES, timeout=PATIENCE)
    first, *others = json.loads(told.out)
    assert first == ""
    assert set(others) == {"org.cryptback1.Error.Busy"}
    go_on(vm)
    vm.run(
        "until cryptback status home --json | grep -q '\"idle\"'; do sleep 0.5; done", timeout=90
    )
    assert outcomes(vm) == ["cancelled", "done"]  # who waited has left
