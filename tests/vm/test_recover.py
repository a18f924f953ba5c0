"""A computer that never saw the drive, and a drive that takes another one's place."""

from __future__ import annotations

import json
import re

from tests import by_hand
from tests.machine import Machine
from tests.machine.enroll import PASSPHRASE, credential
from tests.vm.container import TREE, opened
from tests.vm.runs import MIB, drive, ended, history, now, settled
from tests.vm.test_enrol import on_terminal
from tests.vm.test_passphrase import NEW, change, opens_here

ENTRY = "/etc/cryptback/drives.d/home.toml"
MORE = """
owner = "me"

[backup]
include = ["/home/me", "/etc"]
exclude = ["*.iso"]

[keep]
last = 7

[when]
remind = "14d"
"""
COPY = """
set -e
mkdir -p /mnt/old /mnt/new
mount -o ro {old} /mnt/old
mount {new} /mnt/new
cp /mnt/old/backup.luks /mnt/new/
umount /mnt/old /mnt/new
"""


def sequences(vm: Machine, partition: str = "") -> list[int]:
    """The numbers of the versions, in the order of their names."""
    with opened(vm, partition) as container:
        records = [
            json.loads(vm.pull(f"{TREE}/versions/{name}.json")) for name in container.versions()
        ]
    return [record["sequence"] for record in records]


def adopt(vm: Machine, node: str, *options: str, code: int = 0) -> str:
    words = ["cryptback", "init", node, "--adopt", "--yes", "--passphrase-fd", "0", *options]
    done = vm.run(words, PASSPHRASE.encode(), check=False, timeout=180)
    assert done.code == code, done.out + done.err
    return done.out + done.err


def test_a_computer_that_never_saw_the_drive_gets_name_settings_and_files(
    enrolled: Machine,
) -> None:
    vm = enrolled
    head = vm.run(f"grep -E '^(uuid|container)' {ENTRY}").out
    vm.push(ENTRY, head + MORE, 0o600)
    stick = vm.stick("main")
    stick.plug()
    assert ended(vm)["CRYPTBACK_OUTCOME"] == "done"
    files = by_hand.manifest(vm, "/home/me")
    stick.pull()
    vm.run(["systemctl", "stop", "cryptbackd"])
    vm.run(f"rm -r /var/lib/cryptbackd/* {ENTRY} /home/me/documents /home/me/photos")
    vm.run(["systemctl", "start", "cryptbackd"])
    stick.plug()
    node = stick.partition

    words = ["cryptback", "init", node, "--adopt"]
    answers = [("Go on?", "y"), ("passphrase", PASSPHRASE), ("Go on?", "n")]
    seen = on_terminal(vm, words, *answers)
    assert seen.code == 1
    (fingerprint,) = set(re.findall(r"\b[0-9a-f]{64}\b", seen.out))
    for line in ('owner = "me"', 'include = ["/home/me", "/etc"]', 'exclude = ["*.iso"]',
                 "last = 7", 'remind = "14d"', "It was home on the computer"):  # fmt: skip
        assert line in seen.out
    assert vm.run("ls -A /etc/cryptback/drives.d").out == ""

    assert adopt(vm, node).count(fingerprint) == 1
    text = vm.pull(ENTRY).decode()
    assert text.splitlines()[1:4] == [*head.splitlines(), 'owner = "me"']
    assert MORE.split("[backup]")[1] in text
    assert vm.run(["stat", "-c", "%a %U", ENTRY]).out == "600 root\n"
    vm.run(["cryptback", "restore", "home", "/home/me", "--setuid"], timeout=120)
    assert by_hand.difference(files, by_hand.manifest(vm, "/home/me")) == ""
    vm.run(["cryptback", "run", "home"], timeout=120)
    assert [run["outcome"] for run in history(vm)] == ["done"] * 3
    assert sequences(vm) == [1, 2, 3]


def test_a_copy_on_a_bigger_drive_takes_its_place(enrolled: Machine) -> None:
    """Versions and ledger go on, and so do the settings, comments and all."""
    vm = enrolled
    old = vm.stick("main")
    old.plug()
    assert ended(vm)["CRYPTBACK_OUTCOME"] == "done"
    new = vm.stick("bigger", size=640 * MIB, fs="ext4", partitioned=True)
    new.plug()
    vm.run(COPY.format(old=old.partition, new=new.partition), timeout=120)
    old.pull()
    text = vm.pull(ENTRY).decode().replace("[backup]", "# mine\n[backup]")
    vm.push(ENTRY, text, 0o600)
    told = adopt(vm, new.partition)
    assert "is a copy of the container of home" in told
    assert "You may unplug home now." in told
    before, after = (re.search('uuid = "(.*)"', t) for t in (text, vm.pull(ENTRY).decode()))
    assert before is not None
    assert after is not None
    assert vm.pull(ENTRY).decode() == text.replace(before[1], after[1])
    assert vm.run(["blkid", "-s", "UUID", "-o", "value", new.partition]).out == f"{after[1]}\n"
    vm.run(["cryptback", "run", "home"], timeout=120)
    run = history(vm)[0]
    assert (run["job"], run["outcome"], run["warnings"]) == ("backup", "done", [])
    assert sequences(vm, new.partition) == [1, 2, 3]
    # The next plug is the new one's, and the old one is nobody's any more.
    new.pull()
    since = now(vm)
    old.plug()
    assert settled(vm)["state"] == "absent"
    assert [e for e in vm.journal(since=since) if "CRYPTBACK_RUN" in e] == []
    old.pull()
    new.plug()
    assert ended(vm, since=since)["CRYPTBACK_OUTCOME"] == "done"
    assert drive(vm)["safe"]


def test_a_copy_from_before_a_passphrase_was_removed_does_not_bring_it_back(
    enrolled: Machine,
) -> None:
    vm = enrolled
    old = vm.stick("main")
    old.plug()
    assert ended(vm)["CRYPTBACK_OUTCOME"] == "done"
    new = vm.stick("copy", size=640 * MIB, fs="ext4", partitioned=True)
    new.plug()
    vm.run(COPY.format(old=old.partition, new=new.partition), timeout=120)
    change(vm, "change", PASSPHRASE, NEW)
    old.pull()
    adopt(vm, new.partition, code=12)  # it opens the copy's header, but not the stored one
    words = ["cryptback", "init", new.partition, "--adopt", "--yes", "--passphrase-fd", "0"]
    done = vm.run(words, NEW.encode(), check=False, timeout=180)
    assert done.code == 3, done.out + done.err
    assert "The header on the copy is older than the stored one" in done.out
    assert (opens_here(vm, PASSPHRASE), opens_here(vm, NEW)) == (False, True)
    vm.run(["cryptback", "doctor", "--repair", "home", "--yes"], timeout=120)
    credential(vm, "home", NEW)
    vm.run(["cryptback", "run", "home"], timeout=120)
    assert history(vm)[0]["outcome"] == "done"
