"""What whoever knows the passphrase can put into a container: it leads nowhere out of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.machine import Machine
from tests.machine.enroll import PASSPHRASE, credential, init, make_files
from tests.vm.container import CLOSE, OPEN, TREE, listing, opened
from tests.vm.failing import tells
from tests.vm.runs import MIB, drive, ended, now
from tests.vm.test_drive_changes import FAILED, runs

EVIL = "2026-01-01T00:00:00Z\x1b[31m\n<3>cryptbackd: forged %s"
COMPUTER = "find /etc /root -xdev ! -path '/etc/cryptback*' -printf '%p %m %U %s %T@ %l\\n' | sort"
"""What of the computer would show it, if something had been led out of the container."""


@contextmanager
def altered(vm: Machine) -> Iterator[None]:
    """The tree in the container of the stick that is in can be written to while the block runs."""
    script = OPEN.replace("mount -o ro", "mount")
    words = ["/bin/sh", "-c", script, "sh", vm.stick("main").partition, "backup.luks"]
    vm.run(words, input=PASSPHRASE.encode())
    yield
    vm.run(CLOSE)


def alter(vm: Machine, script: str) -> None:
    with altered(vm):
        vm.run(f"cd {TREE} && {script}")


INSTEAD = {
    "current": ("current", '"current" in the container is not'),
    "versions": ("versions", '"versions" in the container is not a directory.'),
}


@pytest.mark.parametrize("inside", ["btrfs", "ext4"])
@pytest.mark.timeout(600, func_only=True)
def test_what_lies_in_a_container_leads_nowhere(vm: Machine, inside: str) -> None:
    vm.expect_journal(f"{FAILED}|^kernel: (BTRFS|EXT4)")
    make_files(vm)
    credential(vm, "home")
    stick = vm.stick("main", size=224 * MIB, fs="ext4", partitioned=True)
    stick.plug()
    init(vm, stick.partition, "home", "--size", "160M", "--filesystem", inside)
    computer = vm.run(COMPUTER).out
    first = listing(vm, "/home/me")

    # A link in the place of a directory that is written to, or that versions are looked for in.
    for name, sentence in INSTEAD.values():
        alter(vm, f"if [ -e {name} ]; then mv {name} aside; fi; ln -s /etc {name}")
        since = runs(vm)
        tells(vm, sentence, since=since)
        alter(vm, f"rm {name}; if [ -e aside ]; then mv aside {name}; fi")
    alter(vm, "mkdir -p current/home/me; cd current/home/me && rm -rf documents photos"
              " && ln -s /etc documents && ln -s ../../../../../../../../root photos")  # fmt: skip
    assert ended(vm, since=runs(vm))["CRYPTBACK_OUTCOME"] == "done"

    # Names that are no version's, and records that say what no record can.
    newest = "versions/$(ls versions | grep Z.json | tail -n 1)"
    record = {"format": 1, "sequence": 9, "nonce": "0", "entry": "", "host": EVIL}
    odd = {
        "...json": record,
        "..json": record,
        ".json": record,
        "big.json": {**record, "sequence": 10**60},
        "endless.json": {**record, "sequence": float("inf")},
        "text.json": {**record, "sequence": "9"},
        "list.json": [1],
        "gone.json": record,
        f"{EVIL}.json": {**record, "sequence": 4},
    }
    with altered(vm):
        for name, text in odd.items():
            vm.push(f"{TREE}/versions/{name}", json.dumps(text))
        vm.push(f"{TREE}/versions/deep.json", "[" * (1 << 20))
        vm.run(["mkdir", "-p", *(f"{TREE}/versions/{name}" for name in (
            "big", "endless", "text", "list", "deep", EVIL, "directory.json", "x.manifest",
            "../.interrupted-evil"))])  # fmt: skip
        vm.run(f"cd {TREE} && ln -s /etc versions/link && cp {newest} versions/link.json"
               " && ln -s /etc/shadow versions/9.json && mkdir versions/9"
               " && ln -s /etc versions/.removed-link && ln -s /etc .interrupted-7")  # fmt: skip
    end = ended(vm, since=runs(vm))
    assert end["CRYPTBACK_OUTCOME"] in ("done", "warnings"), end["MESSAGE"]
    vm.run(["cryptback", "verify", "home"], check=False, timeout=120)
    looks = ("status home", "versions home", "history", "find diary", "status --json")
    shown = [vm.run(f"cryptback {words}", check=False).stdout.decode() for words in looks]
    shown.append(end["MESSAGE"])
    shown += [str(entry["MESSAGE"]) for entry in vm.journal("cryptbackd.service")]
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", "".join(shown))
    assert not [line for text in shown for line in text.splitlines() if line.startswith("<3>")]
    assert not any("made a mistake" in text for text in shown)
    assert drive(vm)["safe"]

    # What could do harm outside stays inside: nobody but root gets it out, and on demand alone.
    version = "versions/$(ls versions | grep -x '[0-9TZ:-]*Z' | tail -n 1)"
    alter(vm, f"cd {version}/home/me && if btrfs property set -f ../.. ro false 2>/dev/null;"
              " then :; fi; cp /bin/true root-shell && chmod 6755 root-shell && mknod disk b 254 0"
              " && chmod 666 disk")  # fmt: skip
    vm.run("mkdir /srv/back && chown me /srv/back")
    restored = ["cryptback", "restore", "home", "/home/me", "--to", "/srv/back"]
    vm.run(restored, check=False, timeout=120)
    assert vm.run("find /srv/back -name root-shell -printf '%m\n'").out == "755\n"
    assert vm.run("find /srv/back '(' -perm /6000 -o -type b -o -type c ')'").out == ""
    assert vm.run(COMPUTER).out == computer
    with opened(vm) as container:
        assert first in [
            container.listing(name) for name in container.versions() if "\n" not in name
        ]


def test_a_filesystem_whose_beginning_is_garbage_is_told(enrolled: Machine) -> None:
    vm = enrolled
    vm.expect_journal(f"{FAILED}|^kernel: (BTRFS|Buffer)")
    vm.stick("main").plug()
    assert ended(vm)["CRYPTBACK_OUTCOME"] == "done"
    garbage = "dd if=/dev/urandom of=/dev/mapper/byhand bs=4096 {} conv=fsync status=none"
    unmounted = OPEN.replace("mount -o ro /dev/mapper/byhand /mnt/tree", "{}")
    close = "cryptsetup close byhand; losetup --detach-all; umount /mnt/drive; udevadm settle"
    for place, sentence in (
        ("seek=16 count=1 oflag=seek_bytes seek=65536", "The container holds no filesystem"),
        ("seek=4096 count=4096", "The btrfs filesystem in the container can't be mounted"),
    ):
        script = unmounted.format(f"dd if=/dev/mapper/byhand of=/root/kept bs=1M count=40"
                                  f" status=none; {garbage.format(place)}")  # fmt: skip
        words = ["/bin/sh", "-c", script, "sh", vm.stick("main").partition, "backup.luks"]
        vm.run(words, input=PASSPHRASE.encode())
        vm.run(close)
        since = now(vm)
        vm.run(["cryptback", "run", "home"], check=False, timeout=120)
        tells(vm, sentence, since=since)
        assert drive(vm)["safe"]
        put_back = unmounted.format(
            "dd if=/root/kept of=/dev/mapper/byhand bs=1M conv=fsync status=none"
        )
        words = ["/bin/sh", "-c", put_back, "sh", vm.stick("main").partition, "backup.luks"]
        vm.run(words, input=PASSPHRASE.encode())
        vm.run(close)
    assert ended(vm, since=runs(vm))["CRYPTBACK_OUTCOME"] == "done"
