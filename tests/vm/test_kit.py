"""The recovery kit: its page is followed on a machine that has never seen cryptbackd."""

from __future__ import annotations

import hashlib
import json
import re

import pytest

from tests import by_hand
from tests.machine import Machine, Stick
from tests.machine.enroll import PASSPHRASE, credential, init, make_files
from tests.machine.guest import CommandFailed
from tests.machine.stick import copy_sparse
from tests.vm.failing import NO_HOLES_ON_FAT
from tests.vm.runs import ended, now
from tests.vm.test_keys import told
from tests.vm.test_parts import enrolled_in_parts

KIT = "/root/kit"
PAGE, HEADER = f"{KIT}/cryptback-home.html", f"{KIT}/cryptback-home.header"
STORED = "/var/lib/cryptbackd/headers/home"
ENTRY = "/etc/cryptback/drives.d/home.toml"
KEY = r"\b(?:[cbdefghijklnrtuv]{8}-){7}[cbdefghijklnrtuv]{8}\b"


def kit(vm: Machine, *options: str, passphrase: str = "") -> str:
    """Write the kit of the drive `home`; its page."""
    vm.run(["mkdir", "-p", KIT])
    words = ["cryptback", "kit", "home", "--to", KIT, *options]
    vm.run(words, f"{passphrase}\n".encode(), timeout=180)
    assert vm.run(["stat", "-c", "%a %U", PAGE, HEADER]).out == "600 root\n600 root\n"
    return vm.pull(PAGE).decode()


def taken_to(clean: Machine, vm: Machine) -> Stick:
    """The stick, and the header of the kit, on a machine without cryptbackd."""
    stick = vm.stick("main")
    if stick.plugged:
        stick.pull()
    copy_sparse(stick.path, clean.stick_path("main"))
    assert clean.run("command -v cryptback; dpkg -s cryptbackd", check=False).out == ""
    clean.run(["mkdir", "-p", KIT])
    clean.push(HEADER, vm.pull(HEADER), 0o600)
    other = clean.stick("main")
    other.plug()
    return other


def follow(clean: Machine, page: str, stick: Stick, secret: str, *blocks: str) -> None:
    """Type these blocks of commands of the page, in the directory of the kit."""
    lines = [line for block in blocks for line in by_hand.from_page(page, block)]
    by_hand.run(clean, [f"cd {KIT}", *lines], stick.partition, secret)


def same(clean: Machine, files: list[str]) -> bool:
    """Whether the opened container's last version has these files."""
    version = by_hand.versions(clean)[-1]
    copy = by_hand.manifest(clean, f"/mnt/versions/{version}/home/me")
    return by_hand.difference(files, copy) == ""


def test_the_page_brings_the_files_back_by_its_recovery_key(
    enrolled: Machine, bare_vm: Machine
) -> None:
    vm = enrolled
    since = now(vm)
    vm.stick("main").plug()
    assert ended(vm, since=since)["CRYPTBACK_OUTCOME"] == "done"
    files = by_hand.manifest(vm, "/home/me")
    page = kit(vm, "--recovery-key", "--passphrase-fd", "0", passphrase=PASSPHRASE)
    (key,) = re.findall(KEY, page)
    assert "<svg" in page
    assert not re.search(r"<script|https?:|src=|href=|url\(|@import", page)
    header = vm.pull(HEADER)
    assert header == vm.pull(STORED)
    assert hashlib.sha256(header).hexdigest() in page
    assert key not in told(vm)
    where = "/var/lib/cryptbackd /run/cryptbackd /var/log"
    assert vm.run(f"grep -rs {key[:17]} {where}", check=False).out == ""

    other = taken_to(bare_vm, vm)
    follow(bare_vm, page, other, key, "mount", "loop", "open")
    assert same(bare_vm, files)
    follow(bare_vm, page, other, key, "look", "close")


def test_the_page_opens_a_drive_whose_header_is_lost(enrolled: Machine, bare_vm: Machine) -> None:
    vm = enrolled
    page = kit(vm)
    wipe = "dd if=/dev/zero of=/mnt/backup.luks bs=1M count=16 conv=notrunc,fsync status=none"
    other = taken_to(bare_vm, vm)
    bare_vm.run(f"mount {other.partition} /mnt && {wipe} && umount /mnt")
    follow(bare_vm, page, other, PASSPHRASE, "mount", "loop")
    with pytest.raises(CommandFailed, match="not a valid LUKS device"):
        follow(bare_vm, page, other, PASSPHRASE, "open")
    follow(bare_vm, page, other, PASSPHRASE, "open-with-the-header")
    assert len(by_hand.versions(bare_vm)) == 1
    assert same(bare_vm, by_hand.manifest(vm, "/home/me"))
    follow(bare_vm, page, other, PASSPHRASE, "close")
    # cryptsetup itself takes the file.
    restore = "cryptsetup luksHeaderRestore --batch-mode /mnt/backup.luks"
    bare_vm.run(
        f"mount {other.partition} /mnt && {restore} --header-backup-file {HEADER}"
        f" && cmp --bytes=16777216 /mnt/backup.luks {HEADER} && umount /mnt"
    )


def test_the_page_of_a_container_of_several_files_is_followed(
    vm: Machine, bare_vm: Machine
) -> None:
    enrolled_in_parts(vm)
    files = by_hand.manifest(vm, "/home/me")
    page = kit(vm)
    assert "80.0 MiB" in page
    bare_vm.expect_journal(NO_HOLES_ON_FAT)
    other = taken_to(bare_vm, vm)
    follow(bare_vm, page, other, PASSPHRASE, "mount", "join", "open")
    assert same(bare_vm, files)
    bare_vm.run("truncate -s 1M /srv/else && losetup --find /srv/else")
    follow(bare_vm, page, other, PASSPHRASE, "close-joined")
    others = bare_vm.run("losetup --noheadings --output BACK-FILE").out.split()
    assert others == ["/srv/else"]
    bare_vm.run("losetup --detach-all")


def test_the_page_of_an_encrypted_partition_is_followed(vm: Machine, bare_vm: Machine) -> None:
    vm.stick("main", size=448 << 20, partitioned=True).plug()
    make_files(vm)
    credential(vm, "home")
    init(vm, vm.stick("main").partition, "home", "--format", "luks")
    files = by_hand.manifest(vm, "/home/me")
    page = kit(vm)
    assert "Recovery key" not in page
    other = taken_to(bare_vm, vm)
    follow(bare_vm, page, other, PASSPHRASE, "open")
    assert same(bare_vm, files)
    follow(bare_vm, page, other, PASSPHRASE, "close")
    bare_vm.run(["dd", "if=/dev/zero", f"of={other.partition}", "bs=1M", "count=16"])
    follow(bare_vm, page, other, PASSPHRASE, "open-with-the-header")
    assert same(bare_vm, files)
    follow(bare_vm, page, other, PASSPHRASE, "close")


def test_a_forgotten_drive_leaves_its_header_unless_a_kit_has_it(enrolled: Machine) -> None:
    vm = enrolled
    entry = vm.pull(ENTRY)
    forget = ["cryptback", "forget", "home"]
    assert vm.run(forget, check=False).code == 1  # nobody said yes
    assert vm.run([*forget, "--yes"], user="me", check=False).code == 1
    done = json.loads(vm.run([*forget, "--yes", "--json"]).out)
    assert done["kept"] == [STORED]
    assert "no recovery kit has it" in done["why"]
    assert vm.run("ls /etc/cryptback/drives.d /etc/credstore /var/lib/cryptbackd/uuids").out == (
        "/etc/credstore:\n\n/etc/cryptback/drives.d:\n\n/var/lib/cryptbackd/uuids:\n"
    )
    assert json.loads(vm.run(["cryptback", "history", "--json"]).out) == {"runs": []}
    assert vm.run(forget, check=False).code == 10
    vm.push(ENTRY, entry, 0o600)
    kit(vm)
    done = json.loads(vm.run([*forget, "--yes", "--json"]).out)
    assert (done["kept"], STORED in done["removed"]) == ([], True)
    assert vm.run("ls -A /var/lib/cryptbackd/headers /var/lib/cryptbackd/kits").out == (
        "/var/lib/cryptbackd/headers:\n\n/var/lib/cryptbackd/kits:\n"
    )
    stick = vm.stick("main")
    stick.plug()
    words = ["cryptback", "init", stick.partition, "--name", "home", "--adopt", "--yes"]
    words += ["--no-run", "--include", "/home/me", "--passphrase-fd", "0"]
    again = vm.run(words, PASSPHRASE.encode(), timeout=300)
    assert "You may unplug home now." in again.out


def test_a_kit_replaces_nothing_and_is_not_for_everybody(enrolled: Machine) -> None:
    vm = enrolled
    page = kit(vm)  # the drive is in a drawer
    assert "not known: the drive was not plugged in" in page
    words = ["cryptback", "kit", "home", "--to", KIT]
    refused = vm.run(words, check=False)
    assert refused.code == 1
    assert "There is a file /root/kit/cryptback-home.h" in refused.err
    vm.run(f"rm {PAGE} && ln -s /root/elsewhere {PAGE}")
    assert vm.run(words, check=False).code == 1
    vm.run([*words, "--yes"])
    assert vm.run(["stat", "-c", "%F", PAGE]).out == "regular file\n"
    assert vm.run(["ls", "/root/elsewhere"], check=False).code != 0
    vm.run("cd /home/me && cryptback kit home", user="me", check=False)
    assert vm.run("ls /home/me/cryptback*", check=False).out == ""


@pytest.mark.slow
def test_a_kit_is_written_with_the_rights_of_who_asks(enrolled: Machine) -> None:
    """An administrator's rule lets a user manage drives; the files are that user's."""
    vm = enrolled
    rule = 'polkit.addRule(function(a, s) { if (a.id == "org.cryptback1.manage") return "yes"; });'
    vm.run(f"mkdir -p /etc/polkit-1/rules.d && echo '{rule}' > /etc/polkit-1/rules.d/10-t.rules")
    refused = vm.run(["cryptback", "kit", "home", "--to", "/root"], user="me", check=False)
    assert refused.code == 1
    vm.run(["cryptback", "kit", "home", "--to", "/home/me"], user="me")
    shown = vm.run("stat -c '%a %U' /home/me/cryptback-home.*").out
    assert shown == "600 me\n600 me\n"
