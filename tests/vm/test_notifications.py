"""Notifications for real: dunst on a screen of Xvfb calls a program for each that it shows."""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass

from tests.machine import Machine, enroll
from tests.machine.enroll import PASSPHRASE
from tests.machine.layers import ROOT
from tests.vm import runs, session
from tests.vm.seat import sit_down

ENTRIES = "/etc/cryptback/drives.d"
DAY = 86_400
PICTURE = ROOT / "dist" / "notification.png"
"""Of the screen when a backup is done, for the README."""

SCREEN = "640x212x24"
FRAME = "#5e81ac"
LOG = f"{session.PLACE}/shown"
CHOICE = f"{session.PLACE}/choice"
HOOK = f"""\
#!/bin/sh
echo "$DUNST_ID $DUNST_PROGRESS $DUNST_SUMMARY: $DUNST_BODY" >> {LOG}
"""
MENU = f"""\
#!/bin/sh
exec grep --max-count=1 --fixed-strings --file={CHOICE}
"""
"""Gets the buttons of all notifications, a line each, and prints the one that is pressed."""
DUNSTRC = f"""\
[global]
    dmenu = /usr/local/bin/menu
    width = 592
    origin = top-center
    offset = (0, 24)
    separator_height = 2
    separator_color = frame
    font = DejaVu Sans 14
    padding = 16
    horizontal_padding = 20
    frame_width = 2
    icon_position = off
    show_indicators = no
    show_age_threshold = -1
[every]
    summary = "*"
    script = /usr/local/bin/shown
    timeout = 0
    background = "#eceff4"
    foreground = "#2e3440"
    frame_color = "{FRAME}"
"""


@dataclass(frozen=True)
class Shown:
    """A notification, each time that it was shown."""

    number: int
    progress: int
    """Percent; -1: none."""
    text: str


def desktop(vm: Machine, *answers: str | None) -> None:
    """Begin a session of the drive's owner, with a screen and a notification server."""
    session.own(vm)
    session.begin(vm, *answers)
    vm.push("/usr/local/bin/shown", HOOK, 0o755)
    vm.push("/usr/local/bin/menu", MENU, 0o755)
    vm.push("/home/me/.config/dunst/dunstrc", DUNSTRC)
    vm.run(["chown", "-R", "me:me", "/home/me/.config"])
    screen = ["Xvfb", ":7", "-screen", "0", SCREEN, "-wr", "-fbdir", session.PLACE]
    session.as_user(vm, ["systemd-run", "--user", "--unit=screen", *screen])
    vm.run(["timeout", "60", "sh", "-c", "until [ -e /tmp/.X11-unix/X7 ]; do sleep 0.1; done"])
    session.as_user(vm, ["systemctl", "--user", "start", "dunst"])


def shown(vm: Machine, text: str) -> list[Shown]:
    """All that was shown so far, once that text was."""
    wait = 'until grep --quiet --fixed-strings -- "$1" "$2"; do sleep 0.1; done 2> /dev/null'
    vm.run(["timeout", "60", "sh", "-c", wait, "sh", text, LOG], timeout=70)
    lines = vm.pull(LOG).decode().splitlines()
    parts = [line.split(" ", 2) for line in lines]
    return [Shown(int(number), int(progress), text) for number, progress, text in parts]


def press(vm: Machine, button: str, summary: str) -> None:
    """Press a button of the notification whose summary begins so."""
    vm.push(CHOICE, f"#{button} ({summary}")
    session.as_user(vm, ["dunstctl", "context"])


def edit(vm: Machine, *edits: str) -> None:
    """Change the drive's entry, and have the daemon read it."""
    vm.run(["sed", "-i", *(f"-e{each}" for each in edits), f"{ENTRIES}/home.toml"])
    vm.run(["systemctl", "kill", "--signal=HUP", runs.UNIT])


def test_one_notification_tells_of_a_backup_to_its_end(enrolled: Machine) -> None:
    vm = enrolled
    desktop(vm)
    enroll.credential(vm, "home")
    entry = re.sub('uuid = ".*"', 'uuid = "0123-4567"', vm.pull(f"{ENTRIES}/home.toml").decode())
    vm.push(f"{ENTRIES}/work.toml", f'{entry}\n[when]\nremind = "1s"\n', 0o600)
    vm.run(["systemctl", "kill", "--signal=HUP", runs.UNIT])
    shown(vm, "work has never been backed up: Plug the drive in.")

    runs.random_files(vm, 8, 8, "/etc/random")
    runs.hold(vm, vm.stick("main"), at_least=16 * runs.MIB)
    shown(vm, " % done. Please don't unplug it.")
    runs.go_on(vm)
    assert runs.ended(vm)["CRYPTBACK_OUTCOME"] == "done"
    told = shown(vm, "You can unplug home now: The backup is done: ")[1:]
    assert len({each.number for each in told}) == 1
    assert told[0].text == "Backing up to home: Please don't unplug it."
    progress = [each.progress for each in told[:-1]]
    assert progress[0] == 0
    assert progress == sorted(progress)
    assert told[-1].progress == -1
    count = session.as_user(vm, ["dunstctl", "count", "displayed"]).out
    assert int(count) == 2

    screen = vm.pull(f"{session.PLACE}/Xvfb_screen0")
    assert bytes.fromhex(FRAME[1:])[::-1] in screen
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_bytes(png(screen))


def test_a_failure_is_told_and_a_button_begins_another_backup(enrolled: Machine) -> None:
    vm = enrolled
    desktop(vm, "one", "two", "three")
    sit_down(vm)
    vm.stick("main").plug()
    assert runs.ended(vm)["CRYPTBACK_OUTCOME"] == "failed"
    (*_, failed) = shown(vm, "The backup to home failed: ")
    home = runs.drive(vm)
    assert home["last_sentence"] in failed.text
    assert home["last_hint"]
    assert home["last_hint"] in failed.text

    session.answer(vm, PASSPHRASE)
    before = runs.now(vm)
    press(vm, "Back up now", "The backup to home failed")
    assert runs.ended(vm, since=before)["CRYPTBACK_OUTCOME"] == "done"
    shown(vm, "You can unplug home now: The backup is done: ")


def test_a_reminder_comes_once_a_day_and_a_button_ejects(enrolled: Machine) -> None:
    vm = enrolled
    desktop(vm)
    sit_down(vm)
    enroll.credential(vm, "home")
    edit(vm, 's/^owner = .*/owner = "daemon"/')
    vm.stick("main").plug()
    assert runs.ended(vm)["CRYPTBACK_OUTCOME"] == "done"
    edit(vm, 's/^owner = .*/owner = "me"/', '$a[when]\\nremind = "14d"')
    success = float(runs.drive(vm)["last_success"])
    vm.set_clock(success + 14 * DAY + 60)
    (first,) = shown(vm, "home has not been backed up for 14 days: The drive is plugged in.")
    assert first.text.startswith("home has not been")  # and nothing of what was not the user's

    before = runs.now(vm)
    session.as_user(vm, ["systemctl", "--user", "restart", session.AGENT])
    session.registered(vm, since=before)
    vm.set_clock(success + 15 * DAY + 120)
    assert len(shown(vm, "home has not been backed up for 15 days")) == 2

    press(vm, "Eject", "home has not been backed up for 15 days")
    shown(vm, "You can unplug home now: It was ejected.")
    assert runs.settled(vm)["safe"]


def png(screen: bytes) -> bytes:
    """What Xvfb keeps of a screen of 24 bits, a file of xwd's, as a picture for a web page."""
    start, width, height, line, colours = (
        int.from_bytes(screen[at : at + 4]) for at in (0, 16, 20, 48, 76)
    )
    start += 12 * colours
    rows = bytearray()
    for at in range(start, start + height * line, line):
        pixels = screen[at : at + 4 * width]
        row = bytearray(3 * width)
        row[0::3], row[1::3], row[2::3] = pixels[2::4], pixels[1::4], pixels[0::4]
        rows += b"\0" + row
    head = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )
