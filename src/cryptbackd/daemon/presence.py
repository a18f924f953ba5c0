"""Which devices are here: those that show a UUID, as udev tells of them."""

from __future__ import annotations

import os

import attrs

from ..config import Entry
from ..errors import DriveAbsent, Refused
from ..model import Device
from . import policy
from .watch import Seen


@attrs.define
class Presence:
    """What is here now, ``seen`` by node."""

    seen: dict[str, Seen] = attrs.field(factory=dict)

    def devices(self) -> list[Device]:
        """All of them."""
        return [seen.device for seen in self.seen.values()]

    def showing(self, uuid: str) -> list[Seen]:
        """Those that an entry with this UUID could be about."""
        return [self.seen[device.node] for device in policy.candidates(self.devices(), uuid)]

    def has(self, device: Device) -> bool:
        """Whether it is still here, and was not plugged in anew."""
        seen = self.seen.get(device.node)
        if seen is not None:
            return seen.device.diskseq == device.diskseq
        # A device that is about to be enrolled shows no UUID yet.
        return os.path.exists(device.node)

    def the_one(self, name: str, entry: Entry) -> Seen:
        """The device of the drive *name*; raises DriveAbsent, and Refused where there are two."""
        here = self.showing(entry.uuid)
        if not here:
            raise absent(name)
        if len(here) > 1:
            nodes = ", ".join(seen.device.node for seen in here)
            raise Refused(
                f"Several devices show the UUID of {name}: {nodes}.",
                "Unplug all but the one that was enrolled.",
            )
        return here[0]


def absent(name: str) -> DriveAbsent:
    """The error of a drive that is not here."""
    return DriveAbsent(f"The drive {name} is not plugged in.", "Plug it in, and try again.")
