"""The container opened as a person would open it, without cryptbackd, while a block runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.machine import Machine
from tests.machine.enroll import PASSPHRASE

TREE = "/mnt/tree"
"""Where the filesystem in the container is."""

OPEN = """
set -e
mkdir -p /mnt/drive /mnt/tree
volume=$1
if [ "$2" ]; then
    mount "$1" /mnt/drive
    volume=$(losetup --find --show "/mnt/drive/$2")
fi
shift 2
cryptsetup open "$@" "$volume" byhand
mount -o ro /dev/mapper/byhand /mnt/tree
"""
CLOSE = """
umount /mnt/tree
cryptsetup close byhand
losetup --detach-all
mountpoint -q /mnt/drive && umount /mnt/drive
udevadm settle
"""
LISTING = r"""
cd "$(cat)"
find . \( -type d -printf '%P %y %m %U:%G\n' \) -o -printf '%P %y %m %U:%G %s %T@ %l\n' | sort
find . -type f -print0 | sort -z | xargs -0 md5sum
"""


def listing(vm: Machine, directory: str) -> str:
    """Everything below a directory: kind, mode, owner, size, time, target, content."""
    return vm.run(LISTING, input=directory.encode()).out


@dataclass(frozen=True)
class Container:
    """An opened container, its filesystem at `TREE`."""

    vm: Machine

    def versions(self) -> list[str]:
        """The names of the versions, oldest first."""
        return self.vm.run(f"cd {TREE}/versions && ls -d *Z").out.split()

    def newest(self) -> str:
        """Where the last version is."""
        return f"{TREE}/versions/{self.versions()[-1]}"

    def listing(self, version: str, source: str = "/home/me") -> str:
        """What is in a version, as `listing` has it."""
        return listing(self.vm, f"{TREE}/versions/{version}{source}")


@contextmanager
def opened(
    vm: Machine, partition: str = "", container: str = "backup.luks", options: tuple[str, ...] = ()
) -> Iterator[Container]:
    """The container on a partition (of the stick "main"); an empty name: it is LUKS itself."""
    where = partition or vm.stick("main").partition
    words = ["/bin/sh", "-c", OPEN, "sh", where, container, *options]
    vm.run(words, input=PASSPHRASE.encode())
    try:
        yield Container(vm)
    finally:
        vm.run(CLOSE)
