"""The system bus dies in the middle of a run, and is started anew."""

from __future__ import annotations

from tests.machine import Machine
from tests.vm import session
from tests.vm.runs import MIB, drive, ended, go_on, hold, now, random_files

HELD = "until systemd-inhibit --list | grep -q cryptbackd; do sleep 0.2; done"


def test_a_run_goes_on_without_a_bus_and_the_next_one_is_told(enrolled: Machine) -> None:
    vm = enrolled
    session.begin(vm)
    random_files(vm, 8, 8)
    hold(vm, vm.stick("main"), at_least=MIB)
    here = now(vm)
    vm.expect_journal("^(?!cryptback)")  # whoever else was on that bus
    vm.run(["systemctl", "kill", "--signal=SIGKILL", "dbus.service"])
    vm.run(["systemctl", "restart", "systemd-logind"])  # which doesn't come back by itself
    vm.wait_journal("The connection to the system bus is lost", since=here, timeout=30)
    vm.wait_journal("The system bus is there again", since=here, timeout=60)
    session.registered(vm, since=here)
    vm.run(HELD, timeout=60)
    assert drive(vm)["phase"] == "syncing"
    go_on(vm)
    assert ended(vm, since=here)["CRYPTBACK_OUTCOME"] in ("done", "warnings")
    assert drive(vm)["safe"]
