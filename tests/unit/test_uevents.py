"""Udev's messages: what is one, and what it says."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptbackd.daemon.uevents import parse, parse_kernel

MAGIC = b"\xfe\xed\xca\xfe"
PROPERTIES = b"ACTION=add\0SUBSYSTEM=block\0DEVNAME=/dev/sda1\0ID_FS_LABEL=a=b\0"


def message(
    properties: bytes = PROPERTIES, *, prefix: bytes = b"libudev\0", magic: bytes = MAGIC
) -> bytes:
    """As systemd's device-monitor.c makes it: a header of 40 bytes, then the properties."""
    head = prefix + magic + struct.pack("=III", 40, 40, len(properties)) + bytes(16)
    return head + properties


def test_the_properties_of_a_device() -> None:
    assert parse(message()) == {
        "ACTION": "add",
        "SUBSYSTEM": "block",
        "DEVNAME": "/dev/sda1",
        "ID_FS_LABEL": "a=b",
    }


@pytest.mark.parametrize(
    "foreign",
    [
        b"",
        b"add@/devices/x\0ACTION=add\0SUBSYSTEM=block\0",
        message(magic=MAGIC[::-1]),
        message(prefix=b"libudev2"),
        message()[:-1],
        message()[:23],
    ],
)
def test_what_is_none_of_udevs_says_nothing(foreign: bytes) -> None:
    assert parse(foreign) == {}


def test_the_properties_that_the_kernel_tells() -> None:
    line = b"remove@/devices/pci0000:00/block/sda\0"
    assert parse_kernel(line + PROPERTIES) == parse(message())
    assert parse_kernel(PROPERTIES) == {}
    assert parse_kernel(message()) == {}


@given(st.binary(max_size=80))
def test_anything_may_come(noise: bytes) -> None:
    parse(noise)
    parse_kernel(noise)
    parse_kernel(b"add@/devices/x\0" + noise)
    parse(message(noise))
    parse(b"libudev\0" + MAGIC + noise)
