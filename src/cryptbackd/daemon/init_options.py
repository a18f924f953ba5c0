"""What an init can be told, and what is handed over for it."""

from __future__ import annotations

from typing import Any

from ..errors import Refused
from ..text import printable

INIT_OPTIONS: dict[str, object] = {
    "name": "",
    "container": "backup.luks",
    "size": None,
    "filesystem": "btrfs",
    "format": None,
    "include": [],
    "include_from": [],
    "exclude": [],
    "owner": None,
    "run": True,
    "pbkdf_memory": None,
    "pbkdf_iterations": None,
    "part_size": None,
    "diskseq": None,
    "adopt": False,
    "detached": False,
    "header": False,
    "fingerprint": "",
    "settings": "",
}
"""What an init can be told, with the defaults (see ``protocol.Start``)."""
_NUMBERS = ("size", "pbkdf_memory", "pbkdf_iterations", "part_size", "diskseq")


def check(options: dict[str, Any]) -> None:
    """Raise Refused for an option of an init that there is not, or that has a wrong type."""
    for key, value in options.items():
        if key not in INIT_OPTIONS:
            raise Refused(f"An init has no option {printable(key, 40)}.")
        wanted = type(INIT_OPTIONS[key])
        if INIT_OPTIONS[key] is None:
            wanted = int if key in _NUMBERS else str
        items = value if isinstance(value, list) else []
        if type(value) is not wanted or not all(isinstance(item, str) for item in items):
            raise Refused(f"The option {key} of an init has the wrong type.")


def purposes(options: dict[str, Any]) -> tuple[str, ...]:
    """What is handed over, or out, for an init with these *options*."""
    if options["adopt"]:
        return ("current", "stored-header") if options["header"] else ("current",)
    kit = ("header", "kit") if options["detached"] else ()
    return ("format", "first-open", *kit)
