"""Files come back without cryptbackd, by the commands that the README shows.

The backup is made in one machine; the stick is then plugged into another one that has never seen
the package. What is compared is content, kinds, modes, owners, times, ACLs and other extended
attributes, hard links and holes.
"""

from __future__ import annotations

import pytest

from tests import by_hand
from tests.machine import Machine
from tests.machine.enroll import PASSPHRASE, credential, init, make_files
from tests.machine.stick import copy_sparse

MORE_FILES = r"""
set -e
cd /home/me
mkdir -p shared/inherited trash "$(printf 'a\tdir')/deep/deeper"
chmod 2775 shared
chmod 1777 trash
setfacl -m d:u:daemon:rwx,u:daemon:rx shared/inherited
ln photos/one.jpg "$(printf 'a\tdir')/deep/deeper/one again.jpg"
ln photos/one.jpg shared/third.jpg
cp /bin/true capable
setfattr -n security.capability -v 0x0100000200200000000000000000000000000000 capable
cp /bin/true setuid-program && chmod 4755 setuid-program
setfattr -n user.empty documents/letters/first.txt
mknod null c 1 3
mknod disk b 8 0
chown 12345:54321 trash
ln -s /nowhere/at/all dangling
chown -h me:me dangling
touch -h -d "1999-12-31 23:59:59.123456789" dangling
printf 'begin' > holes
truncate -s 3M holes
printf 'middle' >> holes
truncate -s 12M holes
touch -d "1985-10-26 01:21:00.000000001" trash documents photos/two.jpg
: > "$(printf '%0255d' 7)"
"""
CHANGE = r"""
set -e
cd /home/me
rm -r photos/two.jpg .cache
mv documents/letters letters
chmod 0600 tagged
setfattr -x user.comment tagged
echo "another page" >> letters/first.txt
echo new > documents/new
"""


def prepare(vm: Machine) -> None:
    vm.run(MORE_FILES)


def compare(
    vm: Machine,
    clean: Machine,
    *,
    opening: list[str],
    closing: list[str],
    before: list[str],
    after: list[str],
) -> None:
    """Plug a copy of the stick into the clean machine, open it by hand, compare both versions."""
    stick = vm.stick("main")
    stick.pull()
    copy_sparse(stick.path, clean.stick_path("main"))
    assert clean.run("command -v cryptback; dpkg -s cryptbackd", check=False).out == ""
    other = clean.stick("main")
    other.plug()
    by_hand.run(clean, opening, other.partition, PASSPHRASE)
    first, second = by_hand.versions(clean)[-2:]
    for version, source in ((first, before), (second, after)):
        copy = by_hand.manifest(clean, f"/mnt/versions/{version}/home/me")
        assert by_hand.difference(source, copy) == ""
    by_hand.run(clean, closing, other.partition)


def in_a_file() -> tuple[list[str], list[str]]:
    mount = by_hand.commands(by_hand.MOUNT)
    return [*mount, *by_hand.commands(by_hand.OPEN)], by_hand.commands(by_hand.CLOSE)


def test_files_come_back_by_hand_from_btrfs(enrolled: Machine, bare_vm: Machine) -> None:
    vm = enrolled
    prepare(vm)
    vm.stick("main").plug()
    vm.wait_journal("^home: finished", CRYPTBACK_DRIVE="home")
    before = by_hand.manifest(vm, "/home/me")
    assert len(before) > 30
    vm.run(CHANGE)
    vm.run(["cryptback", "run", "home"], timeout=120)
    after = by_hand.manifest(vm, "/home/me")
    assert before != after
    opening, closing = in_a_file()
    compare(vm, bare_vm, opening=opening, closing=closing, before=before, after=after)


def enrol_and_change(vm: Machine, *options: str) -> tuple[list[str], list[str]]:
    """Enrol the plugged stick with a first backup, and make a second one."""
    make_files(vm)
    prepare(vm)
    credential(vm, "home")
    init(vm, vm.stick("main").partition, "home", *options)
    before = by_hand.manifest(vm, "/home/me")
    vm.run(CHANGE)
    vm.run(["cryptback", "run", "home"], timeout=120)
    return before, by_hand.manifest(vm, "/home/me")


@pytest.mark.parametrize("filesystem", ["ext4", pytest.param("xfs", marks=pytest.mark.slow)])
def test_files_come_back_by_hand_from(filesystem: str, vm: Machine, bare_vm: Machine) -> None:
    vm.stick("main", size=448 << 20, fs="ext4", partitioned=True).plug()
    before, after = enrol_and_change(vm, "--size", "360M", "--filesystem", filesystem)
    opening, closing = in_a_file()
    compare(vm, bare_vm, opening=opening, closing=closing, before=before, after=after)


@pytest.mark.slow
@pytest.mark.parametrize("filesystem", ["btrfs", "ext4", "xfs"])
def test_files_come_back_by_hand_from_an_encrypted_partition_with(
    filesystem: str, vm: Machine, bare_vm: Machine
) -> None:
    vm.stick("main", size=448 << 20, partitioned=True).plug()
    before, after = enrol_and_change(vm, "--format", "luks", "--filesystem", filesystem)
    compare(
        vm,
        bare_vm,
        opening=by_hand.commands(by_hand.OPEN_PARTITION),
        closing=by_hand.commands(by_hand.CLOSE_PARTITION),
        before=before,
        after=after,
    )
