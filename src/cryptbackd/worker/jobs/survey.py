"""The survey: what is on a device, and why a drive could not be made of it.

Changes nothing: the filesystem is looked at read-only, without replaying its journal.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from ... import paths, protocol
from ...config import read_all
from ...errors import CryptbackError, ForgedDrive, Refused
from ...model import Device, Outcome, RunResult
from ...run import run
from ...sizes import MIB, ROOM_LEFT, sensible
from ...text import printable, size
from .. import allocate, workspace
from .. import header as headers
from ..control import Control
from ..device import opened, probe
from ..layers import files, ntfs
from ..layers.inner import SMALLEST
from ..layers.outer import OPTIONS, Outer, outer

LSBLK = "/usr/bin/lsblk"
HEADER_ROOM = 16 * MIB
"""Bytes of a container that the LUKS2 header takes (cryptsetup-luksFormat(8), --offset)."""
_OF_THE_SYSTEM = ("/", "/boot", "/boot/efi", "/usr", "/var", "/home", "[SWAP]")


@attrs.define
class Facts:
    """What was found; ``problems`` empty means that the drive can be enrolled."""

    device: str
    diskseq: int = 0
    """Of the insertion, for the init that is agreed to (``model.Device``)."""
    model: str = ""
    serial: str = ""
    size: int = 0
    fstype: str = ""
    label: str = ""
    uuid: str = ""
    free: int = 0
    used: int = 0
    mounted: list[str] = attrs.field(factory=list)
    removable: bool = False
    container_exists: bool = False
    suggested_size: int = 0
    files: int = 1
    """How many files the container will be."""
    problems: list[dict[str, str]] = attrs.field(factory=list)

    def problem(self, sentence: str, hint: str = "") -> None:
        """One more reason why not."""
        self.problems.append({"sentence": sentence, "hint": hint})


def survey(start: protocol.Start, control: Control) -> RunResult:
    """Look at the device of *start* with the options of the init that is planned."""
    facts = examine(start.device, start.options, workspace.make(f"survey-{os.getpid()}"))
    return RunResult(
        Outcome.DONE, "", safe=control.safe, data=json.loads(json.dumps(attrs.asdict(facts)))
    )


def examine(device: Device, options: dict[str, Any], place: Path) -> Facts:
    """The facts about *device*, held against what the init with *options* needs."""
    facts = Facts(device.node, device.diskseq)
    # First, and without opening it: the service may not even open a disk of the system.
    _of_the_disk(facts, device)
    if facts.problems:
        return facts
    with opened(device):
        _of_other_users(facts, device)
        _of_the_name(facts, options)
        # Part of a RAID, an LVM or swap is somebody's, too, which must be seen before it is erased.
        found = probe(device.node) or probe(device.node, usages="raid,other")
        facts.fstype = printable(found.get("TYPE", ""), 40)
        facts.label = printable(found.get("LABEL", ""), 60)
        facts.uuid = printable(found.get("UUID", ""), 60)
        if not facts.problems and not options.get("format"):
            if facts.fstype in OPTIONS:
                _of_the_filesystem(facts, device, options, place)
            else:
                _of_nothing_usable(facts, device)
        elif options.get("format"):
            facts.free = facts.size - facts.size // 20
            facts.suggested_size = sensible(facts.free)
        if not facts.problems:
            _of_the_size(facts, options)
    return facts


def _of_the_disk(facts: Facts, device: Device) -> None:
    columns = "NAME,PATH,MODEL,SERIAL,VENDOR,SIZE,RO,RM,HOTPLUG,TYPE,MOUNTPOINTS"
    ended = run([LSBLK, "--json", "--bytes", "--output", columns, device.disk])
    (disk,) = json.loads(ended.out)["blockdevices"]
    here = next(node for node in _tree(disk) if node["path"] == device.node)
    facts.model = printable(" ".join(str(disk[k] or "").strip() for k in ("vendor", "model")), 60)
    facts.model = facts.model.strip()
    facts.serial = printable(str(disk["serial"] or ""), 60)
    facts.size = int(here["size"])
    facts.removable = bool(disk["rm"] or disk["hotplug"])
    facts.mounted = [printable(p) for node in _tree(here) for p in node["mountpoints"] if p]
    everywhere = [p for node in _tree(disk) for p in node["mountpoints"] if p]
    if any(point in _OF_THE_SYSTEM for point in everywhere):
        facts.problem(f"{device.disk} is a disk of the running system.", "Name another device.")
    elif facts.mounted:
        facts.problem(
            f"{device.node} is mounted at {', '.join(facts.mounted)}.",
            f"Unmount it first: umount {device.node}",
        )
    elif here["ro"]:
        facts.problem(
            f"{device.node} can only be read.", "Is there a write-protect switch on the drive?"
        )
    elif here.get("children") and here["type"] == "disk":
        parts = ", ".join(node["path"] for node in here["children"])
        facts.problem(f"{device.node} has partitions.", f"Name one of them: {parts}")


def _tree(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for below in node.get("children", []):
        yield from _tree(below)


def _of_other_users(facts: Facts, device: Device) -> None:
    try:
        os.close(os.open(device.node, os.O_RDONLY | os.O_CLOEXEC | os.O_EXCL))
    except OSError as exc:
        if exc.errno != errno.EBUSY:
            facts.problem(f"{device.node} can't be opened: {exc.strerror}.")
            return
        facts.problem(
            f"{device.node} is in use by something else.",
            f"It may be mounted by another program, or part of a mapping: lsblk {device.disk}",
        )


def _of_the_name(facts: Facts, options: dict[str, Any]) -> None:
    name = options.get("name")
    if name and (paths.DRIVES_D / f"{name}.toml").exists():
        facts.problem(
            f'There is an entry "{name}" already.',
            f"Choose another name, or remove {paths.DRIVES_D}/{name}.toml first.",
        )


def _of_nothing_usable(facts: Facts, device: Device) -> None:
    what = facts.fstype or "no filesystem that is known"
    facts.problem(
        f"{device.node} holds {what}, which can't hold a container.",
        "These can: " + ", ".join(sorted(OPTIONS)) + ". `--format ext4` (or exfat) makes one, and"
        " erases everything that is on it.",
    )


def _of_the_filesystem(facts: Facts, device: Device, options: dict[str, Any], place: Path) -> None:
    path = str(options.get("container") or "backup.luks")
    for name, entry in read_all().good.items():
        if entry.uuid == facts.uuid and entry.container == path:
            facts.problem(
                f'This drive is enrolled already, as "{name}", with the same container.',
                "Name another file with --container to have a second one on it.",
            )
            return
    try:
        if facts.fstype == "ntfs":
            ntfs.want_clean(device.node)
        with outer(device, place / "look", look_only=True) as drive:
            status = os.fstatvfs(drive.filesystem.fd)
            facts.free = status.f_bavail * status.f_frsize
            facts.used = (status.f_blocks - status.f_bfree) * status.f_frsize
            name = str(options.get("name") or "")
            if name:
                facts.free += allocate.taken(drive, name, path)
            _of_a_container(facts, drive, path, name)
    except ForgedDrive as exc:
        facts.container_exists = True
        facts.problem(exc.sentence, "Remove it first, or choose another name with --container.")
    except Refused as exc:
        facts.problem(exc.sentence, exc.hint)
    except (CryptbackError, OSError) as exc:
        facts.problem(f"{device.node} can't be looked at: {printable(str(exc))}")
    facts.suggested_size = sensible(facts.free)


def _of_a_container(facts: Facts, drive: Outer, path: str, name: str) -> None:
    try:
        if name and allocate.interrupted(drive, name, path):
            return
        names = files.found(drive, path)
    except FileNotFoundError:
        return
    if not names:
        return
    facts.container_exists = True
    fd = drive.open(names[0], os.O_RDONLY)
    try:
        _of_an_existing(facts, names[0], fd)
    finally:
        os.close(fd)


def _of_an_existing(facts: Facts, path: str, fd: int) -> None:
    where = f'The file "{printable(path)}" exists on the drive already'
    hint = "Choose another name with --container, or remove the file if it is of no use."
    try:
        uuid = headers.read(fd).uuid
    except ForgedDrive:
        facts.problem(f"{where}.", hint)
        return
    for stored in paths.HEADERS.glob("*"):
        try:
            known = headers.load(stored.name).uuid
        except CryptbackError:
            continue
        if known == uuid:
            facts.problem(f'{where}: it is the container enrolled as "{stored.name}".', hint)
            return
    facts.problem(f"{where}: it is a LUKS2 container, with somebody's data perhaps.", hint)


def _of_the_size(facts: Facts, options: dict[str, Any]) -> None:
    if options.get("format") == "luks":
        return
    wanted = int(options.get("size") or facts.suggested_size)
    least = HEADER_ROOM + SMALLEST[str(options.get("filesystem") or "btrfs")]
    fstype = options.get("format") or facts.fstype
    lengths = files.several(str(fstype), wanted, options.get("part_size"))
    facts.files = len(lengths or [0])
    if wanted < least:
        facts.problem(
            f"A container of {size(wanted)} is too small:"
            f" {options.get('filesystem') or 'btrfs'} needs {size(least)} at least.",
            f"There are {size(facts.free)} free on the drive.",
        )
    elif wanted > facts.free - ROOM_LEFT:
        facts.problem(
            f"A container of {size(wanted)} does not fit: {size(facts.free)} are free there.",
            f"Say --size {max(0, facts.free - ROOM_LEFT) // MIB}M or less.",
        )
