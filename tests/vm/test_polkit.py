"""Who may do what: polkit's answers about real users, and a table that knows every method."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests import hostile
from tests.machine import Machine
from tests.machine.layers import ROOT
from tests.vm.runs import PATIENCE, ended, hold, outcomes, random_files, settled
from tests.vm.seat import at_the_seat

HOSTILE = Path(hostile.__file__).read_bytes()
INTROSPECT = ["busctl", "--xml-interface", "introspect", "org.cryptback1", "/org/cryptback1"]
ENTRY = "/etc/cryptback/drives.d/home.toml"
REFUSED = "You may not do that without an administrator."


def asks(vm: Machine, members: list[str], *, interactive: bool) -> dict[str, str]:
    """The words in which a user without a session is refused; empty: they are not."""
    command = ["python3", "-I", "-", "ask_each", "4" if interactive else "0", *members]
    told = json.loads(vm.run(command, input=HOSTILE, user="me", timeout=PATIENCE).out)
    return {name: str(said["words"]) if said["refused"] else "" for name, said in told.items()}


def owned_by(vm: Machine, owner: str) -> None:
    vm.push(ENTRY, f'owner = "{owner}"\n'.encode() + vm.pull(ENTRY), 0o600)


def test_each_method_and_property_is_in_the_table_of_who_may_call_it(enrolled: Machine) -> None:
    """What is introspected is held against the documentation, and tried."""
    text = (ROOT / "docs" / "dbus.md").read_text()
    table = dict(re.findall(r"^\| `(\w+)` \| `\([^`]*` \| ([^|]+?) \|", text, re.MULTILINE))
    root = ET.fromstring(enrolled.run(INTROSPECT, user="me").out)
    members: dict[str, set[str]] = {}
    for interface in root.iter("interface"):
        found = {str(each.get("name")) for each in interface if each.tag in ("method", "property")}
        members[str(interface.get("name"))] = found
    assert members == {
        "org.cryptback1.Manager": set(table),
        "org.freedesktop.DBus.Introspectable": {"Introspect"},
        "org.freedesktop.DBus.Peer": {"Ping", "GetMachineId"},
    }
    asked = {member: who for member, who in table.items() if who != "everybody"}
    for interactive, who_may in ((False, table), (True, asked)):
        answers = asks(enrolled, list(who_may), interactive=interactive)
        for member, who in who_may.items():
            refused = answers[member]
            if who == "everybody":
                assert refused == "", member
            elif member == "HandOver":
                assert "Nothing is wanted from you" in refused
            else:
                assert REFUSED in refused, member
    assert outcomes(enrolled) == []


@pytest.mark.parametrize("owner", ["me", pytest.param(None, marks=pytest.mark.slow)])
def test_active_local_user_may_run_cancel_and_eject_a_drive(
    enrolled: Machine, owner: str | None
) -> None:
    if owner is not None:
        owned_by(enrolled, owner)
    stick = enrolled.stick("main")
    stick.plug()
    ended(enrolled)
    at_the_seat(enrolled, "cryptback", "run", "home", timeout=PATIENCE)
    assert outcomes(enrolled) == ["done", "done"]
    stick.pull()
    random_files(enrolled, 4, 8)
    hold(enrolled, stick)
    told = at_the_seat(enrolled, "cryptback", "cancel", "home", timeout=PATIENCE).out
    assert "Everything is locked." in told
    told = at_the_seat(enrolled, "cryptback", "eject", "home", timeout=PATIENCE).out
    assert told.endswith("You may unplug home now.\n")


def test_drive_of_somebody_else_takes_an_administrator(enrolled: Machine) -> None:
    owned_by(enrolled, "daemon")
    enrolled.stick("main").plug()
    ended(enrolled)
    for verb in ("run", "cancel", "eject"):
        refused = at_the_seat(enrolled, "cryptback", verb, "home", check=False)
        assert refused.code == 1
        assert REFUSED in refused.err
    assert settled(enrolled)["safe"]
    assert outcomes(enrolled) == ["done"]


def test_managing_takes_an_administrator(enrolled: Machine) -> None:
    stick = enrolled.stick("other", size=64 << 20, fs="ext4")
    stick.plug()
    words = ["init", stick.partition, "--name", "other", "--include", "/etc", "--yes"]
    refused = at_the_seat(
        enrolled, "sh", "-c", 'echo secret | cryptback "$@" --passphrase-fd 0', "sh", *words,
        check=False,
    )  # fmt: skip
    assert refused.code == 1
    assert REFUSED in refused.err


def test_without_polkit_root_alone_may(enrolled: Machine) -> None:
    enrolled.run(["systemctl", "mask", "--now", "polkit.service"])
    enrolled.expect_journal("polkit.service.*masked|Unit polkit.service is masked")
    enrolled.stick("main").plug()
    ended(enrolled)
    refused = at_the_seat(enrolled, "cryptback", "run", "home", check=False)
    assert "Only root may ask for that." in refused.err
    enrolled.run(["cryptback", "run", "home"], timeout=PATIENCE)
    assert outcomes(enrolled) == ["done", "done"]
