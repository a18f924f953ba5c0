"""What is due by the clock, whatever happens to the clock."""

from __future__ import annotations

import re
from collections.abc import Callable

from tests.machine import Machine, Stick
from tests.vm.runs import PATIENCE, UNIT, begun, drive, ended, now, outcomes, settled

ENTRY = "/etc/cryptback/drives.d/home.toml"
DAY = 86_400


def when(vm: Machine, *keys: str) -> None:
    """Give the drive's entry a table [when]."""
    text = vm.pull(ENTRY).decode()
    vm.push(ENTRY, "\n".join([text, "[when]", *keys, ""]), 0o600)
    vm.run(["systemctl", "kill", "--signal=HUP", UNIT])


def fresh(vm: Machine) -> Stick:
    """The drive, just backed up to, and pulled."""
    stick = vm.stick("main")
    stick.plug()
    ended(vm)
    stick.pull()
    return stick


def last_success(vm: Machine) -> float:
    return float(drive(vm)["last_success"])


def reminders(vm: Machine) -> list[str]:
    """What the journal says of drives that were not backed up."""
    entries = vm.journal(UNIT)
    return [e["MESSAGE"] for e in entries if "has not been backed up" in e["MESSAGE"]]


def test_not_again_within_at_most(enrolled: Machine) -> None:
    stick = fresh(enrolled)
    when(enrolled, 'at_most = "1d"')
    before = now(enrolled)
    stick.plug()
    assert ended(enrolled, since=before)["CRYPTBACK_OUTCOME"] == "skipped"
    stick.pull()
    enrolled.set_clock(enrolled.clock() + DAY + 60)
    before = now(enrolled)
    stick.plug()
    assert ended(enrolled, since=before)["CRYPTBACK_OUTCOME"] == "done"


def test_drive_that_stays_in_is_backed_up_to_again(enrolled: Machine) -> None:
    when(enrolled, 'repeat = "1d"')
    enrolled.stick("main").plug()
    ended(enrolled)
    before = now(enrolled)
    enrolled.set_clock(enrolled.clock() + DAY - 15)  # it comes by itself, not by the setting
    assert settled(enrolled)["state"] == "idle"
    assert ended(enrolled, since=before)["CRYPTBACK_OUTCOME"] == "done"
    assert outcomes(enrolled) == ["done", "done"]
    enrolled.run(["systemctl", "restart", UNIT])
    assert settled(enrolled)["state"] == "idle"
    assert begun(enrolled) == 2


def test_clock_set_back_or_forth_begins_one_run_at_most(enrolled: Machine) -> None:
    when(enrolled, 'repeat = "1d"')
    enrolled.stick("main").plug()
    ended(enrolled)
    start = enrolled.clock()
    before = now(enrolled)
    enrolled.set_clock(start + 400 * DAY)
    ended(enrolled, since=before)
    for shift in (0, -DAY, -30 * DAY):
        enrolled.set_clock(start + shift)
        assert settled(enrolled)["state"] == "idle"
    enrolled.run(["systemctl", "restart", UNIT])
    assert settled(enrolled)["state"] == "idle"
    assert begun(enrolled) == 2
    before = now(enrolled)
    enrolled.set_clock(enrolled.clock() + 2 * DAY)  # the run "in 400 days" does not silence it
    assert ended(enrolled, since=before)["CRYPTBACK_OUTCOME"] == "done"


def test_reminder_comes_once_a_day_in_the_journal_and_on_the_bus(enrolled: Machine) -> None:
    fresh(enrolled)
    start = last_success(enrolled)
    when(enrolled, 'remind = "14d"')
    rule = "type='signal',sender='org.cryptback1',member='Reminder'"
    monitor = enrolled.spawn(f'timeout 300 dbus-monitor --system "{rule}" > /tmp/heard')
    enrolled.run("until [ -s /tmp/heard ]; do sleep 0.1; done")
    enrolled.set_clock(start + 13 * DAY)
    drive(enrolled)
    assert reminders(enrolled) == []
    enrolled.set_clock(start + 14 * DAY + 60)
    entry = enrolled.wait_journal("^home has not been backed up for 14 days", unit=UNIT)
    assert entry["PRIORITY"] == "4"
    assert entry["CRYPTBACK_DRIVE"] == "home"
    catalogue = enrolled.run(["journalctl", "--dump-catalog", entry["MESSAGE_ID"]]).out
    assert "has not been backed up for long" in catalogue
    enrolled.run(["systemctl", "restart", UNIT])
    enrolled.set_clock(start + 14 * DAY + 3600)
    drive(enrolled)
    assert len(reminders(enrolled)) == 1
    enrolled.set_clock(start + 15 * DAY + 120)
    enrolled.wait_journal("for 15 days", unit=UNIT)
    assert len(reminders(enrolled)) == 2
    enrolled.run(["kill", str(monitor.pid)], check=False)
    heard = enrolled.pull("/tmp/heard").decode()
    assert re.findall(r'member=Reminder\n +string "home"\n +uint32 (\d+)', heard) == ["14", "15"]


def test_backup_ends_the_reminders(enrolled: Machine) -> None:
    stick = fresh(enrolled)
    when(enrolled, 'remind = "14d"')
    enrolled.set_clock(last_success(enrolled) + 20 * DAY + 60)
    enrolled.wait_journal("for 20 days", unit=UNIT)
    before = now(enrolled)
    stick.plug()
    ended(enrolled, since=before)
    enrolled.set_clock(last_success(enrolled) + 13 * DAY)
    drive(enrolled)
    assert len(reminders(enrolled)) == 1


def test_a_drive_that_is_left_open_is_reminded_of(enrolled: Machine) -> None:
    enrolled.stick("main").plug()
    ended(enrolled)
    when(enrolled, 'remind = "14d"')
    enrolled.run(["cryptback", "browse", "home"], timeout=PATIENCE)
    enrolled.set_clock(last_success(enrolled) + 14 * DAY + 60)
    enrolled.wait_journal("^home has not been backed up for 14 days", unit=UNIT)
    assert drive(enrolled)["phase"] == "browsing"
    enrolled.run(["cryptback", "close", "home"])
    assert len(reminders(enrolled)) == 1


def test_what_is_not_due_wakes_nobody(
    enrolled: Machine, record_property: Callable[[str, object], None]
) -> None:
    when(enrolled, 'repeat = "1d"', 'remind = "14d"')
    enrolled.stick("main").plug()
    ended(enrolled)
    assert settled(enrolled)["state"] == "idle"
    pid = enrolled.run(["systemctl", "show", "-P", "MainPID", UNIT]).out.strip()
    seconds = 65
    trace = f"timeout --signal=INT {seconds} strace -f -o /tmp/trace -p {pid}"
    enrolled.run(trace, check=False, timeout=seconds + PATIENCE)
    lines = enrolled.pull("/tmp/trace").decode().splitlines()
    woken = [line for line in lines if re.search(r"epoll_wait.*= \d+$", line)]
    pings = [line for line in lines if "WATCHDOG=1" in line]
    told = f"{len(woken)} in {seconds} s, of which {len(pings)} for the watchdog"
    record_property("wake-ups of the idle daemon that has something to do later", told)
    assert len(woken) == len(pings), told
