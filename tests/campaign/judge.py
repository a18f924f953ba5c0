"""The judge: a machine without cryptbackd, which opens a stick by hand and looks what is on it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from tests.by_hand import MANIFEST, split
from tests.machine import Machine, layers
from tests.machine.enroll import PASSPHRASE
from tests.machine.guest import CommandFailed
from tests.machine.stick import copy_sparse

# With "clean", nothing may be left to repair: the filesystems are checked before they are mounted.
LOOK = """
close() {
    mountpoint -q /mnt/tree && umount /mnt/tree
    [ ! -e /dev/mapper/judged ] || cryptsetup close judged
    losetup --detach-all
    mountpoint -q /mnt/drive && umount /mnt/drive
    udevadm settle
}
trap close EXIT
set -e
mkdir -p /mnt/drive /mnt/tree
[ -z "$2" ] || e2fsck -fn "$1" > /dev/null
mount "$1" /mnt/drive
loop=$(losetup --find --show /mnt/drive/backup.luks)
cryptsetup open "$loop" judged
kind=$(blkid -o value -s TYPE /dev/mapper/judged)
case "$2$kind" in
    cleanbtrfs) btrfs check --readonly /dev/mapper/judged > /dev/null 2>&1 ;;
    cleanext4) e2fsck -fn /dev/mapper/judged > /dev/null ;;
    cleanxfs) xfs_repair -n /dev/mapper/judged > /dev/null ;;
esac
mount -o ro /dev/mapper/judged /mnt/tree
python3 -I /run/manifest.py /mnt/tree/versions/*Z > /run/manifests
echo /mnt/tree/versions/*Z
"""


@dataclass(frozen=True)
class Content:
    """What is on a stick."""

    versions: dict[str, list[str]]
    """Of each version everything that is to be kept of its files, a line each; by name."""
    problem: str = ""
    """Why it could not be opened, checked or read."""

    def digest(self, name: str) -> str:
        """A checksum of all of a version."""
        return hashlib.sha256("\n".join(self.versions[name]).encode()).hexdigest()

    def lost_since(self, before: Content) -> list[str]:
        """Versions that were there before, and are not there or not the same now."""
        return [
            name
            for name in before.versions
            if name not in self.versions or self.digest(name) != before.digest(name)
        ]


class Judge:
    """Its machine is there until :meth:`close`."""

    def __init__(self) -> None:
        self._vm: Machine = layers.resume(layers.BOOTED)
        self._vm.push("/run/manifest.py", MANIFEST)

    def close(self) -> None:
        """End the machine."""
        self._vm.close()

    def look(self, image: Path, *, clean: bool = False) -> Content:
        """What is on the stick with this image, of which a copy is opened.

        `clean`: it was locked in order, so that its filesystems must have nothing to repair.
        """
        copy_sparse(image, self._vm.stick_path("judged"))
        stick = self._vm.stick("judged")
        stick.plug()
        try:
            words = ["/bin/sh", "-c", LOOK, "sh", stick.partition, "clean" if clean else ""]
            paths = self._vm.run(words, PASSPHRASE.encode(), timeout=120).out.split()
            parts = split(self._vm.pull("/run/manifests").decode())
            names = [path.rsplit("/", 1)[1] for path in paths]
            return Content(dict(zip(names, parts, strict=True)))
        except CommandFailed as error:
            return Content({}, str(error))
        finally:
            stick.pull()
            del self._vm.sticks["judged"]
            stick.path.unlink()
