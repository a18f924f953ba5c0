"""FIDO2 tokens that are plugged in, told from the keyboards and mice of the same class.

Nothing is opened: what a device says that it is (its report descriptor) is in sysfs.
"""

from __future__ import annotations

from pathlib import Path

_USAGE_PAGE = b"\x06\xd0\xf1"
"""The item of a report descriptor by which a device says that it speaks FIDO's protocol."""


def fido2_tokens(root: Path = Path("/")) -> list[Path]:
    """The device nodes of the tokens; *root* is where ``/sys`` and ``/dev`` are."""
    return [
        root / "dev" / device.name
        for device in sorted((root / "sys/class/hidraw").glob("*"))
        if _USAGE_PAGE in _read(device / "device/report_descriptor")
    ]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it was pulled out meanwhile
        return b""
