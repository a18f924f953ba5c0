"""The drive is never believed: what a stranger changed on it changes nothing, and is told."""

from __future__ import annotations

import pytest

from tests.machine import Machine, Stick
from tests.machine.enroll import CHEAP, PASSPHRASE
from tests.machine.machine import Entry
from tests.machine.stick import copy_sparse
from tests.vm.container import listing, opened
from tests.vm.failing import first_is_whole, succeeds_next, tells
from tests.vm.runs import drive, ended, history, now

CONTAINER = "/mnt/drive/backup.luks"
STORED = ("--header", "/var/lib/cryptbackd/headers/home")

FORGE = r"""
# Makes both copies of the header say that nothing is encrypted, with the right checksums.
import hashlib, json, sys

with open(sys.argv[1], "r+b") as file:
    size = int.from_bytes(file.read(16)[8:], "big")
    for at in (0, size):
        file.seek(at)
        area = bytearray(file.read(size))
        text = json.loads(area[4096:].split(b"\0", 1)[0])
        text["segments"]["0"]["encryption"] = "cipher_null-ecb"
        area[4096:] = json.dumps(text).encode().ljust(size - 4096, b"\0")
        area[448:512] = bytes(64)
        area[448:480] = hashlib.sha256(area).digest()
        file.seek(at)
        file.write(area)
"""
OTHER_KEY = f"""
set -e
truncate -s 32M /root/other
printf %s '{PASSPHRASE}' | cryptsetup luksFormat -q --type luks2 --sector-size 4096 \
    --pbkdf argon2id --pbkdf-memory 32 --pbkdf-force-iterations {CHEAP[-1]} /root/other
dd if=/root/other of={CONTAINER} bs=1M count=16 conv=notrunc,fsync status=none
rm /root/other
"""
WIPE = f"dd if=/dev/zero of={CONTAINER} bs=1M count=16 conv=notrunc,fsync status=none"


def tamper(vm: Machine, script: str, input: bytes = b"") -> None:  # noqa: A002
    """Change something on the stick while nobody looks; it stays plugged in."""
    vm.run(["systemctl", "mask", "--runtime", "--now", "cryptbackd.service"])
    stick = vm.stick("main")
    stick.plug()
    vm.run(f"mkdir -p /mnt/drive && mount {stick.partition} /mnt/drive")
    vm.run(script, input)
    vm.run("umount /mnt/drive && udevadm settle && systemctl unmask --runtime cryptbackd.service")


def back_up(vm: Machine) -> Entry:
    """The service starts, and finds the stick as it is now; the end of the run."""
    since = now(vm)
    vm.run(["systemctl", "start", "cryptbackd"])
    return ended(vm, since=since)


FORGERIES = {
    "null cipher": (
        f"python3 -I - {CONTAINER}",
        FORGE,
        "its cipher is cipher_null-ecb. It may be damaged or forged.",
    ),
    "another volume key": (
        OTHER_KEY,
        "",
        "It belongs to another volume key: it may be forged, or another volume's.",
    ),
    "wiped": (WIPE, "", "it has no LUKS2 magic. It may be damaged or forged."),
}


@pytest.mark.parametrize(
    "forgery",
    [
        pytest.param(each, marks=[] if each == "null cipher" else pytest.mark.slow)
        for each in FORGERIES
    ],
)
def test_forged_header_changes_nothing_and_is_reported(enrolled: Machine, forgery: str) -> None:
    vm = enrolled
    script, input_, sentence = FORGERIES[forgery]
    files = listing(vm, "/home/me")
    secret = "nobody is to read this in clear text"
    vm.run(f"yes '{secret}' | head -c 1M > /home/me/letter")
    tamper(vm, script, input_.encode())
    partition = vm.stick("main").partition
    if forgery == "null cipher":  # it would open, and do harm, if it were believed
        shown = vm.run(
            f"mount -r {partition} /mnt/drive; loop=$(losetup -rf --show {CONTAINER});"
            f" printf %s '{PASSPHRASE}' | cryptsetup open -r $loop byhand;"
            " dmsetup table byhand; cryptsetup close byhand; losetup -D; umount /mnt/drive"
        )
        assert "cipher_null" in shown.out

    end = back_up(vm)
    assert end["CRYPTBACK_OUTCOME"] == "warnings"
    told = "The LUKS header on the drive is not the one that this computer stored."
    assert "home: finished with 1 warning: " in end["MESSAGE"]
    for warning in (end["MESSAGE"], *history(vm)[0]["warnings"], *drive(vm)["warnings"]):
        assert told in warning
        assert sentence in warning
    assert len(vm.journal(MESSAGE_ID=message_id(vm, "is not the one that is stored"))) == 1
    assert vm.journal(MESSAGE="You may unplug home now.")

    names = first_is_whole(vm, files, STORED)
    assert len(names) == 2
    with opened(vm, options=STORED) as container:
        assert container.listing(names[1]) == listing(vm, "/home/me")
        clear = vm.run(["grep", "-c", "--text", secret, CONTAINER], check=False)
        assert clear.out == "0\n"


def message_id(vm: Machine, subject: str) -> str:
    """The id of the message in the catalog whose subject has these words."""
    catalog = vm.run(["journalctl", "--list-catalog"]).out
    found = [line.split()[0] for line in catalog.splitlines() if subject in line]
    assert len(found) == 1, catalog
    return found[0]


def set_back(vm: Machine) -> Stick:
    """The stick as it was before its last backup; a file has gone since."""
    stick = vm.stick("main")
    old = stick.path.with_suffix(".old")
    copy_sparse(stick.path, old)
    vm.run("echo new > /home/me/new")
    succeeds_next(vm)
    stick.pull()
    copy_sparse(old, stick.path)
    vm.run("rm /home/me/tagged")
    return stick


def test_drive_set_back_is_reported_and_nothing_is_deleted(enrolled: Machine) -> None:
    vm = enrolled
    files = listing(vm, "/home/me")
    stick = set_back(vm)
    since = vm.journal()[-1]["__CURSOR"]
    stick.plug()
    told = "It is older than this computer remembers: its newest version is .* It may be a copy"
    end = tells(vm, told, outcome="warnings", since=since)
    assert "Nothing on it is deleted in this run." in end["MESSAGE"]
    assert len(vm.journal(MESSAGE_ID=message_id(vm, "older than"))) == 1
    names = first_is_whole(vm, files)
    assert len(names) == 2
    with opened(vm):
        shown = vm.run("cd /mnt/tree/current/home/me && cat tagged new").out
        assert shown == "tagged\nnew\n"
    # That it is as it is, and is to be used, was seen by now: it is not told for ever.
    succeeds_next(vm)


IMPOSTORS = {
    "symlink": "ln -s real backup.luks",
    "symlink out of the drive": "ln -s /dev/vda backup.luks",
    "fifo": "mkfifo backup.luks",
    "directory": "mkdir backup.luks",
    "hard link": "ln real backup.luks",
    "device": "mknod backup.luks b 254 0",
}


@pytest.mark.parametrize(
    "impostor",
    [pytest.param(kind, marks=[] if kind == "symlink" else pytest.mark.slow) for kind in IMPOSTORS],
)
def test_container_that_is_no_plain_file_is_refused(enrolled: Machine, impostor: str) -> None:
    vm = enrolled
    vm.expect_journal("^cryptbackd: home: failed: ")
    files = listing(vm, "/home/me")
    tamper(vm, f"cd /mnt/drive && mv backup.luks real && {IMPOSTORS[impostor]}")
    vm.run(["systemctl", "start", "cryptbackd"])
    tells(vm, '"backup.luks" on the drive is not a regular file with one name.')
    assert vm.journal(MESSAGE="You may unplug home now.")
    vm.stick("main").pull()
    tamper(vm, "cd /mnt/drive && rm -r backup.luks && mv real backup.luks")
    assert back_up(vm)["CRYPTBACK_OUTCOME"] == "done"
    assert len(first_is_whole(vm, files)) == 2


LOCK = """
# Keeps the history from being written, as a full /var does, but not from being read.
import os, sqlite3, time

db = sqlite3.connect("/var/lib/cryptbackd/history.db", isolation_level=None)
db.execute("BEGIN IMMEDIATE")
open("/run/locked", "w").close()
while os.path.exists("/run/locked"):
    time.sleep(0.1)
"""


def test_drive_set_back_is_reported_while_the_history_cannot_be_written(enrolled: Machine) -> None:
    vm = enrolled
    files = listing(vm, "/home/me")
    stick = set_back(vm)
    holder = vm.spawn(["/usr/bin/python3", "-I", "-"], LOCK.encode())
    vm.run("timeout 20 sh -c 'until [ -e /run/locked ]; do sleep 0.1; done'")
    since = now(vm)
    stick.plug()
    end = tells(vm, "It is older than this computer remembers", outcome="warnings", since=since)
    assert "Nothing on it is deleted in this run." in end["MESSAGE"]
    shown = [str(entry["MESSAGE"]) for entry in vm.journal(since=since)]
    assert any("history.db can't be used (database is locked)" in line for line in shown)
    vm.run(["rm", "/run/locked"])
    holder.wait()

    # What was known meanwhile is in the file afterwards.
    succeeds_next(vm)
    vm.run(["systemctl", "restart", "cryptbackd"])
    assert len(history(vm)) == 4
    succeeds_next(vm)
    assert len(first_is_whole(vm, files)) == 4


def test_drive_is_in_doubt_when_the_history_was_lost(enrolled: Machine) -> None:
    vm = enrolled
    files = listing(vm, "/home/me")
    vm.run("systemctl stop cryptbackd && echo broken > /var/lib/cryptbackd/history.db")
    since = now(vm)
    vm.run(["systemctl", "start", "cryptbackd"])
    vm.stick("main").plug()
    end = tells(vm, "What this computer remembered .* is lost", outcome="warnings", since=since)
    assert "Nothing on it is deleted in this run." in end["MESSAGE"]
    succeeds_next(vm)
    assert len(first_is_whole(vm, files)) == 3
