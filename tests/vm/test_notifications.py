"""Notifications for real: dunst on a screen of Xvfb calls a program for each that it shows."""

from __future__ import annotations

import pytest

from tests.machine import Machine
from tests.machine.enroll import PASSPHRASE
from tests.machine.layers import ROOT
from tests.vm import runs, session

pytestmark = pytest.mark.campaign

SHOWN = "/run/person/shown"
HOOK = f'#!/bin/sh\nprintf "%s: %s\\n" "$DUNST_SUMMARY" "$DUNST_BODY" >> {SHOWN}\n'
RC = '[global]\n    timeout = 60\n[every]\n    summary = "*"\n    script = /usr/local/bin/shown\n'


def desktop(vm: Machine) -> None:
    """A screen, and a notification server on it."""
    vm.push("/usr/local/bin/shown", HOOK, 0o755)
    vm.push("/home/me/.config/dunst/dunstrc", RC)
    vm.run(["chown", "-R", "me:me", "/home/me/.config"])
    screen = ["systemd-run", "--user", "--unit=screen", "Xvfb", ":7", "-screen", "0", "640x200x24"]
    session.as_user(vm, screen)
    vm.run(["timeout", "60", "sh", "-c", "until [ -e /tmp/.X11-unix/X7 ]; do sleep 0.1; done"])
    session.as_user(
        vm, ["systemd-run", "--user", "--unit=dunst", "--setenv=DISPLAY=:7", "/usr/bin/dunst"]
    )
    wait = "until busctl --user status org.freedesktop.Notifications; do sleep 0.2; done"
    session.as_user(vm, ["timeout", "60", "sh", "-c", wait])


def shown(vm: Machine, what: str) -> str:
    """All that was shown, once *what* was."""
    wait = f"until grep -q '{what}' {SHOWN}; do sleep 0.2; done"
    vm.run(["timeout", "60", "sh", "-c", wait], timeout=70)
    return vm.pull(SHOWN).decode()


def test_a_backup_is_told_from_its_beginning_to_its_end(enrolled: Machine) -> None:
    vm = enrolled
    session.own(vm)
    session.begin(vm, PASSPHRASE)
    desktop(vm)
    vm.stick("main").plug()
    assert runs.ended(vm)["CRYPTBACK_OUTCOME"] == "done"
    lines = shown(vm, "You can unplug home now: The backup is done").splitlines()
    assert lines[0].startswith("Backing up to home: ")
    take = ["scrot", "--overwrite", "/run/person/screen.png"]
    session.as_user(vm, take, DISPLAY=":7")
    (ROOT / "dist" / "notification.png").write_bytes(vm.pull("/run/person/screen.png"))


def test_a_failure_is_told_with_its_reason(enrolled: Machine) -> None:
    vm = enrolled
    session.own(vm)
    session.begin(vm, "one", "two", "three")
    desktop(vm)
    vm.stick("main").plug()
    assert runs.ended(vm)["CRYPTBACK_OUTCOME"] == "failed"
    assert "3 passphrases were tried" in shown(vm, "The backup to home failed: ")


def test_a_backup_that_is_overdue_is_told_once_a_day(enrolled: Machine) -> None:
    vm = enrolled
    session.own(vm)
    vm.run("printf '[when]\\nremind = \"1s\"\\n' >> /etc/cryptback/drives.d/home.toml")
    session.begin(vm)
    desktop(vm)
    restart = ["systemctl", "--user", "restart", session.AGENT]
    here = runs.now(vm)
    session.as_user(vm, restart)
    session.registered(vm, since=here)
    shown(vm, "home has not been backed up to for 0 days")
    session.as_user(vm, restart)
    vm.run(["sleep", "3"])
    assert vm.pull(SHOWN).decode().count("has not been backed up") == 1


def test_nobody_else_is_told(enrolled: Machine) -> None:
    vm = enrolled
    session.own(vm, "root")
    session.begin(vm)
    desktop(vm)
    vm.push("/etc/credstore/cryptback.home", PASSPHRASE, 0o600)
    vm.stick("main").plug()
    assert runs.ended(vm)["CRYPTBACK_OUTCOME"] == "done"
    vm.run(["sleep", "2"])
    assert vm.run(["cat", SHOWN], check=False).out == ""
