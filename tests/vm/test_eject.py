"""Letting go of a drive: within ten seconds whatever is going on, and nothing copied is lost."""

from __future__ import annotations

import json
import re

from tests.machine import Machine, Stick, enroll
from tests.vm.runs import (
    MIB,
    PATIENCE,
    UNIT,
    begun,
    drive,
    ended,
    go_on,
    history,
    hold,
    news,
    now,
    outcomes,
    random_files,
    settled,
)

TEN_MEGABYTES = 10_000_000
EJECT = ["busctl", "call", "org.cryptback1", "/org/cryptback1", "org.cryptback1.Manager"]
EJECT += ["Eject", "s", "home"]
"""What `cryptback eject` asks for, without the seconds that Python takes to start here."""
NOTHING_OPEN = "! dmsetup ls | grep cryptback && ! losetup --list --noheadings | grep ."


def test_an_eject_in_mid_sync_takes_at_most_ten_seconds(enrolled: Machine) -> None:
    """From the request to the line with the outcome, which comes when everything is locked."""
    random_files(enrolled, 20, 4)
    stick = enrolled.stick("main")
    hold(enrolled, stick, at_least=8 * MIB)
    stick.throttle(TEN_MEGABYTES)
    go_on(enrolled)
    start = enrolled.clock()
    enrolled.run(EJECT)
    last = ended(enrolled)
    enrolled.run(NOTHING_OPEN)
    assert int(last["__REALTIME_TIMESTAMP"]) / 1e6 - start < 10
    assert last["CRYPTBACK_OUTCOME"] == "cancelled"
    assert "home: cancelled: It was stopped because the drive was to be ejected." in last["MESSAGE"]
    entries = enrolled.journal(CRYPTBACK_DRIVE="home")
    assert entries[-2]["MESSAGE"] == "You may unplug home now."
    stick.pull()


def test_what_was_copied_before_an_eject_is_kept_for_the_next_run(enrolled: Machine) -> None:
    number = 10
    random_files(enrolled, number, 4)
    stick = enrolled.stick("main")
    hold(enrolled, stick, at_least=13 * MIB)
    told = enrolled.run(["cryptback", "eject", "home"]).out
    assert told.splitlines()[-1] == "You may unplug home now."
    assert outcomes(enrolled) == ["cancelled"]
    before = now(enrolled)
    stick.replug()
    assert ended(enrolled, since=before)["CRYPTBACK_OUTCOME"] == "done"
    last, stopped = history(enrolled)[:2]
    assert (stopped["outcome"], stopped["version"], stopped["safe"]) == ("cancelled", "", True)
    assert 0 < last["changed_files"] <= number - 3


def test_a_slower_drive_shows_what_remains_while_it_is_ejected(enrolled: Machine) -> None:
    random_files(enrolled, 20, 4)
    stick = enrolled.stick("main")
    hold(enrolled, stick, at_least=8 * MIB)
    stick.throttle(MIB // 2)
    go_on(enrolled)
    remaining = '"phase": "locking", "done": [1-9][0-9]*, "total": [1-9]'
    watcher = news(enrolled, remaining)
    ejecting = enrolled.spawn(["cryptback", "eject", "home", "--json"])
    values = json.loads(watcher.wait(timeout=PATIENCE).out)["drive"]
    assert values["done"] < values["total"] < 40 * MIB
    assert not ejecting.done()
    stick.throttle(0)
    lines = [json.loads(line) for line in ejecting.wait(timeout=PATIENCE).out.splitlines()]
    shown = [line["drive"] for line in lines if line["event"] == "progress"]
    left = [d["total"] - d["done"] for d in shown if d["phase"] == "locking" and d["total"]]
    assert len(set(left)) > 1
    assert lines[-1] == {"event": "ejected", "name": "home", "safe": True}


def test_an_idle_drive_is_ejected_at_once(enrolled: Machine) -> None:
    enrolled.stick("main").plug()
    ended(enrolled)
    told = enrolled.run(["cryptback", "eject", "home"]).out.splitlines()
    assert told[-1] == "You may unplug home now."
    lines = enrolled.run(["cryptback", "eject", "home", "--json"]).out.splitlines()
    assert json.loads(lines[-1]) == {"event": "ejected", "name": "home", "safe": True}
    assert outcomes(enrolled) == ["done"]


def test_an_ejected_drive_is_not_run_again_before_it_is_plugged_in_anew(enrolled: Machine) -> None:
    random_files(enrolled, 4, 8)
    stick = enrolled.stick("main")
    hold(enrolled, stick)
    enrolled.run(["cryptback", "eject", "home"])
    enrolled.run(["udevadm", "trigger", "--action=change", stick.partition])
    assert settled(enrolled)["state"] == "idle"
    enrolled.run(["systemctl", "restart", UNIT])
    assert settled(enrolled)["state"] == "idle"
    assert outcomes(enrolled) == ["cancelled"]
    before = now(enrolled)
    stick.replug()
    assert ended(enrolled, since=before)["CRYPTBACK_OUTCOME"] == "done"
    assert begun(enrolled) == 2


def test_an_eject_locks_every_entry_of_the_drive(enrolled: Machine) -> None:
    """The one that runs, and the one that waits for its turn."""
    stick = second_entry(enrolled)
    random_files(enrolled, 4, 8)
    before = now(enrolled)
    hold(enrolled, stick)
    assert drive(enrolled, "more")["state"] == "queued"
    told = enrolled.run(["cryptback", "eject", "more"]).out
    assert told.splitlines()[-1] == "You may unplug more now."
    assert ended(enrolled, since=before)["CRYPTBACK_OUTCOME"] == "cancelled"
    for name in ("home", "more"):
        values = settled(enrolled, name)
        assert (values["state"], values["safe"]) == ("idle", True)
    assert begun(enrolled, "more") == 0
    enrolled.run(NOTHING_OPEN)
    before = now(enrolled)
    stick.replug()
    for name in ("home", "more"):
        assert ended(enrolled, name, since=before)["CRYPTBACK_OUTCOME"] == "done"


def test_stopping_the_service_locks_the_drive_and_the_next_start_takes_it_up(
    enrolled: Machine,
) -> None:
    random_files(enrolled, 10, 4)
    stick = enrolled.stick("main")
    hold(enrolled, stick, at_least=13 * MIB)
    stick.throttle(TEN_MEGABYTES)
    enrolled.run(["systemctl", "stop", UNIT])
    enrolled.run(NOTHING_OPEN)
    assert outcomes(enrolled) == ["cancelled"]
    told = [entry["MESSAGE"] for entry in enrolled.journal(CRYPTBACK_DRIVE="home")]
    assert "You may unplug home now." in told
    before = now(enrolled)
    enrolled.run(["systemctl", "start", UNIT])
    assert ended(enrolled, since=before)["CRYPTBACK_OUTCOME"] == "done"
    assert 0 < history(enrolled)[0]["changed_files"] <= 7, "what was copied was copied again"


def test_a_drive_is_powered_off_when_it_is_done(enrolled: Machine) -> None:
    entry = "/etc/cryptback/drives.d/home.toml"
    enrolled.run(f"printf '\\n[after]\\npower_off = true\\n' >> {entry}")
    stick = enrolled.stick("main")
    stick.plug()
    serials = "cat /sys/bus/usb/devices/*/serial"
    assert "main" in enrolled.run(serials).out.split()
    last = ended(enrolled)
    assert last["CRYPTBACK_OUTCOME"] == "done"
    told = [entry["MESSAGE"] for entry in enrolled.journal(CRYPTBACK_DRIVE="home")]
    assert told[-2] == "home is powered off. You may unplug it now."
    assert "main" not in enrolled.run(serials, check=False).out.split()
    assert settled(enrolled)["state"] == "absent"
    assert history(enrolled)[0]["powered_off"]
    stick.pull()
    before = now(enrolled)
    stick.plug()
    assert ended(enrolled, since=before)["CRYPTBACK_OUTCOME"] == "done"


def test_an_eject_while_the_volume_is_being_unlocked(enrolled: Machine) -> None:
    stick = enrolled.stick("main")
    watcher = news(enrolled, '"phase": "(attaching|unlocking|mounting)"')
    stick.plug()
    watcher.wait(timeout=PATIENCE)
    told = enrolled.run(["cryptback", "eject", "home"]).out
    assert re.search(r"^You may unplug home now\.$", told, re.MULTILINE)
    enrolled.run(NOTHING_OPEN)
    assert outcomes(enrolled) == ["cancelled"]


def second_entry(vm: Machine) -> Stick:
    """The enrolled drive with another container and its entry, "more"; pulled."""
    stick = vm.stick("main")
    stick.plug()
    ended(vm)
    enroll.credential(vm, "more")
    options = ["--container", "more.luks", "--no-run", "--filesystem", "ext4", "--size", "48M"]
    enroll.init(vm, stick.partition, "more", *options, include=("/etc/systemd",))
    stick.pull()
    return stick
