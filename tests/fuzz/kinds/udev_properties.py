"""What udev tells of a block device: properties that the drive has a say in."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import Any, cast

import attrs
import pyudev
from hypothesis import strategies as st

from cryptbackd.daemon import watch
from tests.fuzz import mutate, properties
from tests.fuzz.fuzzer import Fuzzer

SAMPLES = (
    {
        "DISKSEQ": b"12", "ID_FS_UUID": b"1A2B-3C4D", "ID_FS_TYPE": b"vfat",
        "ID_VENDOR": b"General_", "ID_MODEL": b"USB_Flash_Disk", "DEVNAME": b"/dev/sda1",
    },
    {"DISKSEQ": b"3", "ID_FS_UUID": b"0c5cdd60-5e5c-4d9e-8f8e-2f6b6f1d1d11", "ID_FS_TYPE": b"ext4"},
    {"ID_MODEL": b"x" * 300},
)  # fmt: skip
_KEYS = ("DISKSEQ", "ID_FS_UUID", "ID_FS_TYPE", "ID_VENDOR", "ID_MODEL", "ID_FS_LABEL")
_TEXTS = st.one_of(
    st.sampled_from(mutate.NASTY_BYTES),
    st.binary(max_size=12),
    st.sampled_from((b"12", b"-1", b"18446744073709551616", b"1 2", b"0x1f", b"")),
)


@attrs.frozen
class Properties(Mapping[str, str]):
    """As ``pyudev.Properties``: decoded when they are looked at."""

    raw: dict[str, bytes]

    def __getitem__(self, key: str) -> str:
        return self.raw[key].decode()

    def __iter__(self) -> Iterator[str]:
        return iter(self.raw)

    def __len__(self) -> int:
        return len(self.raw)


@attrs.frozen
class Shown:
    """A device, as far as it is looked at."""

    device_node: str | None
    sys_name: str
    device_type: str
    properties: Properties
    parent: Shown | None = None
    device_number: int = 0x801

    def find_parent(self, _subsystem: str, _kind: str) -> Shown | None:
        """The disk of a partition."""
        return self.parent


@st.composite
def inputs(draw: st.DrawFn) -> bytes:
    """A literal: the properties of a partition and of its disk, and names."""

    def told() -> dict[str, bytes]:
        found = {**draw(st.sampled_from(SAMPLES))}
        for _ in range(draw(st.integers(0, 3))):
            found[draw(st.sampled_from(_KEYS))] = draw(_TEXTS)
        return found

    name = draw(st.sampled_from(("sda1", "sda", "dm-0", "loop0", "mmcblk0p1", "md127", "", "é\n")))
    return repr(
        {
            "name": name,
            "node": draw(st.sampled_from((f"/dev/{name}", f"/dev/{name}", None))),
            "type": draw(st.sampled_from(("partition", "disk", ""))),
            "here": told(),
            "disk": draw(st.sampled_from((None, told(), told()))),
        }
    ).encode()


def check(raw: bytes) -> str:
    """It is a device or none: nothing is raised into the loop, where the event would be lost."""
    case: dict[str, Any] = ast.literal_eval(raw.decode())
    disk = case["disk"]
    above = None if disk is None else Shown("/dev/sda", "sda", "disk", Properties(disk))
    here = Shown(case["node"], case["name"], case["type"], Properties(case["here"]), above)
    seen = watch._seen(cast(pyudev.Device, here), here.properties)
    if seen is None:
        return "none"
    properties.harmless(seen.label)
    assert len(seen.label) <= 60
    device = seen.device
    assert type(device.diskseq) is int
    assert 0 <= device.diskseq < 2**63, "no number that the history can keep"
    for text in (device.uuid, device.fstype, device.node, device.disk):
        assert isinstance(text, str)
        text.encode()
    return "device" if device.uuid else "device without UUID"


FUZZER = Fuzzer(
    "udev-properties",
    "properties of block devices that come and go: `daemon.watch`",
    inputs(),
    check,
)
