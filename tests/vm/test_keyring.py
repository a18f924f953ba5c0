"""Keyrings for real: gnome-keyring by the library `keyring`, and root's own."""

from __future__ import annotations

from tests.machine import Machine
from tests.machine.enroll import PASSPHRASE
from tests.vm import runs, session
from tests.vm.test_keys import agent as ask_password_agent
from tests.vm.test_keys import told

BY_THE_AGENT = "unlocked with the passphrase from agent."
BACKEND = "[backend]\ndefault-keyring=keyrings.alt.file.PlaintextKeyring\n"
RC = "/root/.config/python_keyring/keyringrc.cfg"


def test_remembered_once_nobody_is_asked_again(enrolled: Machine) -> None:
    vm = enrolled
    session.own(vm)
    session.begin(vm, PASSPHRASE, "yes")
    session.keyring(vm)
    stick = vm.stick("main")
    stick.plug()
    assert runs.ended(vm)["CRYPTBACK_OUTCOME"] == "done"
    assert (session.asked(vm), session.asked(vm, "CONFIRM")) == (1, 1)
    vm.wait_journal("the keyring remembers", _SYSTEMD_USER_UNIT=session.AGENT)
    assert session.kept(vm) == PASSPHRASE
    session.answer(vm)
    here = runs.now(vm)
    stick.replug()
    assert runs.ended(vm, since=here)["CRYPTBACK_OUTCOME"] == "done"
    assert session.told(vm) == []
    assert told(vm).count(BY_THE_AGENT) == 2
    assert "answered from the keyring" in session.said(vm)


def test_not_remembered_unless_asked_for(enrolled: Machine) -> None:
    vm = enrolled
    session.own(vm)
    session.begin(vm, "wrong", PASSPHRASE, None)
    session.keyring(vm)
    vm.stick("main").plug()
    assert runs.ended(vm)["CRYPTBACK_OUTCOME"] == "done"
    assert (session.asked(vm), session.asked(vm, "CONFIRM")) == (2, 1)
    assert session.kept(vm) == "None"


def test_a_wrong_entry_is_tried_once_then_the_person_is_asked(enrolled: Machine) -> None:
    vm = enrolled
    session.own(vm)
    session.begin(vm, PASSPHRASE, "yes")
    session.keyring(vm)
    assert session.kept(vm, "out of date") == "out of date"
    vm.stick("main").plug()
    assert runs.ended(vm)["CRYPTBACK_OUTCOME"] == "done"
    assert told(vm).count("is wrong.") == 1
    assert session.asked(vm) == 1
    assert "SETERROR The passphrase in the keyring is wrong." in session.told(vm)
    vm.wait_journal("the keyring remembers", _SYSTEMD_USER_UNIT=session.AGENT)
    assert session.kept(vm) == PASSPHRASE


def test_a_locked_keyring_is_told_and_the_person_asked(enrolled: Machine) -> None:
    vm = enrolled
    session.own(vm)
    session.begin(vm, PASSPHRASE)
    session.keyring(vm)
    session.kept(vm, PASSPHRASE)
    lock = ["busctl", "--user", "call", "org.freedesktop.secrets", "/org/freedesktop/secrets"]
    lock += ["org.freedesktop.Secret.Service", "Lock", "ao", "1"]
    session.as_user(vm, [*lock, "/org/freedesktop/secrets/collection/login"])
    vm.stick("main").plug()
    assert runs.ended(vm)["CRYPTBACK_OUTCOME"] == "done"
    assert session.asked(vm) == 1
    said = session.said(vm)
    assert "The keyring is locked." in said or "it may be locked" in said


def test_a_keyring_that_blocks_is_not_waited_for(enrolled: Machine) -> None:
    """It is stopped in the middle of everything, and so never answers."""
    vm = enrolled
    session.own(vm)
    session.begin(vm, PASSPHRASE)
    session.keyring(vm)
    session.as_user(vm, ["systemctl", "--user", "kill", "--signal=STOP", "keyring"])
    vm.stick("main").plug()
    assert runs.ended(vm)["CRYPTBACK_OUTCOME"] == "done"
    assert session.asked(vm) == 1
    assert "did not answer within 25 seconds" in session.said(vm)
    session.as_user(vm, ["systemctl", "--user", "kill", "--signal=KILL", "keyring"])


def test_without_a_keyring_the_person_is_asked(enrolled: Machine) -> None:
    vm = enrolled
    session.own(vm)
    session.begin(vm, PASSPHRASE)
    vm.stick("main").plug()
    assert runs.ended(vm)["CRYPTBACK_OUTCOME"] == "done"
    assert (session.asked(vm), session.asked(vm, "CONFIRM")) == (1, 0)
    assert "There is no keyring that the library keyring could use." in session.said(vm)


def test_roots_own_keyring_needs_nobody(enrolled: Machine) -> None:
    vm = enrolled
    session.own(vm)
    vm.push(RC, BACKEND, 0o600)
    put = "import keyring, sys; keyring.set_password('cryptback', sys.argv[1], sys.argv[2])"
    vm.run(["python3", "-I", "-c", put, session.uuid(vm), PASSPHRASE])
    vm.stick("main").plug()
    assert runs.ended(vm)["CRYPTBACK_OUTCOME"] == "done"
    assert "unlocked with the passphrase from root's keyring." in told(vm)


def test_roots_keyring_that_others_may_change_is_not_used(enrolled: Machine) -> None:
    vm = enrolled
    session.own(vm)
    vm.push(RC, BACKEND, 0o666)
    ask_password_agent(vm, PASSPHRASE)
    vm.stick("main").plug()
    assert runs.ended(vm)["CRYPTBACK_OUTCOME"] == "done"
    assert "Root's keyring is not used" in told(vm)
    assert "unlocked with the passphrase from prompt." in told(vm)
