"""What a change of passphrases can be told, and what is handed over for it.  Pure."""

from __future__ import annotations

from typing import Any

from ..errors import Refused
from ..text import printable

_PURPOSES = {
    "add": ("current", "new"),
    "change": ("current", "new"),
    "remove": ("current",),
    "recovery-key": ("current", "recovery-key"),
    "enroll-tpm2": ("current",),
    "enroll-fido2": ("current",),
}
_OPTIONS: dict[str, type] = {
    "action": str,
    "what": str,
    "pin": bool,
    "pbkdf_memory": int,
    "pbkdf_iterations": int,
}


def purposes(options: dict[str, Any]) -> tuple[str, ...]:
    """What is handed over for the change that *options* ask for; raises Refused."""
    for key, value in options.items():
        if key not in _OPTIONS or not isinstance(value, _OPTIONS[key]):
            raise Refused(f"A change of passphrases has no such option: {printable(key, 40)}.")
    action = options.get("action", "")
    if action not in _PURPOSES:
        raise Refused(f"There is no such change of passphrases: {printable(action, 40)}.")
    pin = ("pin",) if options.get("pin") and action.startswith("enroll-") else ()
    return _PURPOSES[action] + pin
