"""The computer goes to sleep in the middle of a run.

`systemctl suspend` goes all the way through logind and the kernel, which freezes every process
for five seconds and then lets them go on (`pm_test`): real hardware that sleeps is not to be
had in an emulated machine.
"""

from __future__ import annotations

from tests.machine import Machine
from tests.machine.machine import Entry
from tests.vm.runs import (
    MIB,
    PATIENCE,
    drive,
    ended,
    go_on,
    hold,
    outcomes,
    random_files,
    syncing,
)

LATE = "the computer went to sleep before everything was locked"
SETTINGS = "[Sleep]\nAllowSuspend=yes\nSuspendState=freeze\n"
LOGINDS_OWN = "[Login]\nInhibitDelayMaxSec=5\n"


LOGIND = ["org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager"]


def logind_waits(vm: Machine, seconds: int) -> None:
    """Wait until logind lets whoever delays the sleep do so for that long."""
    ask = " ".join(["busctl", "get-property", *LOGIND, "InhibitDelayMaxUSec"])
    vm.run(f"until {ask} | grep -qx 't {seconds}000000'; do sleep 0.1; done", timeout=20)


def sleeps(vm: Machine) -> None:
    """Have the machine go to sleep; it is back after five seconds by itself."""
    vm.push("/etc/systemd/sleep.conf.d/test.conf", SETTINGS)
    vm.run("echo freezer > /sys/power/pm_test")
    vm.expect_journal("Failed to put system to sleep")
    vm.run(["systemctl", "suspend"])


def told(vm: Machine, pattern: str) -> Entry:
    return vm.wait_journal(pattern, timeout=PATIENCE)


def test_sleep_in_mid_run_locks_everything_first_and_goes_on_after(enrolled: Machine) -> None:
    random_files(enrolled, 8, 8)
    stick = enrolled.stick("main")
    syncing(enrolled, stick, at_least=MIB)
    assert "cryptbackd" in enrolled.run(["systemd-inhibit", "--list"]).out
    logind_waits(enrolled, 30)
    sleeps(enrolled)
    first = ended(enrolled)
    assert first["CRYPTBACK_OUTCOME"] == "cancelled"
    assert "because the computer goes to sleep" in first["MESSAGE"]
    asleep = told(enrolled, "PM: suspend entry|Performing sleep operation")
    assert int(first["__MONOTONIC_TIMESTAMP"]) < int(asleep["__MONOTONIC_TIMESTAMP"])
    assert ended(enrolled, since=first["__CURSOR"])["CRYPTBACK_OUTCOME"] == "done"
    assert outcomes(enrolled) == ["cancelled", "done"]
    assert not [e for e in enrolled.journal() if LATE in str(e.get("MESSAGE"))]
    assert drive(enrolled)["safe"]
    assert "cryptbackd" not in enrolled.run(["systemd-inhibit", "--list"]).out


def test_what_was_not_locked_in_time_is_said_on_waking(enrolled: Machine) -> None:
    """A slow drive with much to write: the computer waits no longer than it is told to."""
    enrolled.push("/etc/systemd/logind.conf.d/test.conf", LOGINDS_OWN)
    enrolled.run(["systemctl", "kill", "--signal=HUP", "systemd-logind.service"])
    logind_waits(enrolled, 5)
    random_files(enrolled, 20, 4)
    stick = enrolled.stick("main")
    hold(enrolled, stick, at_least=8 * MIB)
    stick.throttle(MIB // 2)
    go_on(enrolled)
    sleeps(enrolled)
    assert "longer than the 5 seconds" in told(enrolled, f"^home: {LATE}")["MESSAGE"]
    stick.throttle(0)
    first = ended(enrolled)
    assert first["CRYPTBACK_OUTCOME"] == "cancelled"
    assert ended(enrolled, since=first["__CURSOR"])["CRYPTBACK_OUTCOME"] == "done"


def test_nothing_holds_an_idle_computer(enrolled: Machine) -> None:
    enrolled.stick("main").plug()
    ended(enrolled)
    assert drive(enrolled)["state"] == "idle"
    assert "cryptbackd" not in enrolled.run(["systemd-inhibit", "--list"]).out
    sleeps(enrolled)
    told(enrolled, "System returned from sleep|PM: suspend exit")
    assert outcomes(enrolled) == ["done"]
