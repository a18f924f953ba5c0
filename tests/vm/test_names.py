"""Names that a stranger chose: none reaches a terminal or the journal as it is."""

from __future__ import annotations

import re

from tests.machine import Machine
from tests.machine.enroll import credential, make_files
from tests.vm.runs import MIB, ended, now
from tests.vm.test_enrol import init, on_terminal

LABEL = "\x1b]0;title\x07\x1b[31m%s\x9b31m\u202e\n<3>cryptbackd: forged"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
LONG = "ä" * 2048
FILES = r"""
cd /home/me
for name in "$1" '%s%n%d' "$(printf '\r\033[A<0>init: forged')" -rf '~' '$(reboot)' '`id`'; do
    : > "$name"
done
for level in $(seq 15); do mkdir -p "$2" && cd "$2"; done
echo deep > "$2"
chown -R me: /home/me
"""


def clean(text: str, *, terminal: bool = False) -> None:
    """Nothing in it moves a cursor, or begins a line that is not ours.

    `terminal`: it came by way of one, which ends a line with a carriage return as well.
    """
    if terminal:
        text = text.replace("\r\n", "\n")
    assert not CONTROL.search(text), ascii(text)
    assert not re.search(r"^(<\d>|cryptbackd: forged)", text, re.MULTILINE), ascii(text)


def test_what_a_stranger_named_reaches_no_terminal_and_no_journal(vm: Machine) -> None:
    make_files(vm)
    vm.run(["/bin/sh", "-c", FILES, "sh", LABEL, LONG[:125]])
    credential(vm, "home")
    stick = vm.stick("main", size=320 * MIB, fs="btrfs", partitioned=True, label=LABEL)
    stick.plug()
    since = now(vm)
    asked = on_terminal(
        vm, ["cryptback", "init", stick.partition, "--name", "home", "--include", "/home/me"],
        ("Go on?", "n"),
    )  # fmt: skip
    assert "^[]0;title" in asked.out  # as blkid(8) has it
    clean(asked.out, terminal=True)
    init(vm, stick.partition, "--size", "160M")
    end = ended(vm, since=since)
    vm.run("rm /home/me/*reboot* && chmod 000 /home/me/%s%n%d", user="me")
    vm.run(["cryptback", "run", "home"], check=False, timeout=120)
    shown = {"": str(end["MESSAGE"])}
    for words in (
        "cryptback status home", "cryptback history", "cryptback versions home",
        "cryptback versions home --diff first newest", "cryptback find forged",
        f"systemctl status {'cryptbackd'}", "journalctl -u cryptbackd -o cat --all",
        "cryptback restore home /home/me --to /srv --dry-run",
    ):  # fmt: skip
        told = vm.run(words, check=False, timeout=120)
        shown[words] = told.out + told.err
    for text in shown.values():
        clean(text.replace("●", ""))
    # Such names are told, as something that a terminal only shows.
    assert "forged" in shown["cryptback find forged"]
    assert "/home/me/$(reboot)" in shown["cryptback versions home --diff first newest"]
    assert LONG[:100] in shown["cryptback restore home /home/me --to /srv --dry-run"]
    for entry in vm.journal(since=since, SYSLOG_IDENTIFIER="cryptbackd"):
        assert isinstance(entry["MESSAGE"], str)
        clean(entry["MESSAGE"])
    assert not vm.journal(since=since, MESSAGE="forged")


def test_what_a_drive_says_of_itself_reaches_no_terminal_and_no_journal(enrolled: Machine) -> None:
    """Its vendor and its model are whatever its maker, or a stranger, wrote into it."""
    vm = enrolled
    since = now(vm)
    strings = {"vendor": "\x1b[31m%s", "product": "\r\n<3>forged\x9b"}
    vm.stick("main").plug(strings=strings, wait=False)
    assert ended(vm, since=since)["CRYPTBACK_OUTCOME"] == "done"
    begun = vm.wait_journal("backup begun", since=since, CRYPTBACK_DRIVE="home")["MESSAGE"]
    assert "31m s" in begun
    assert "forged" in begun
    for entry in vm.journal(since=since, SYSLOG_IDENTIFIER="cryptbackd"):
        clean(entry["MESSAGE"])
    for words in (["cryptback", "status", "home"], ["systemctl", "status", "cryptbackd"]):
        told = vm.run(words, check=False)
        clean((told.out + told.err).replace("●", ""))
    clean(on_terminal(vm, ["cryptback", "status", "home"]).out, terminal=True)
