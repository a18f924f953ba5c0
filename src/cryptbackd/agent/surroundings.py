"""Where a person of this session can be asked: on its display, or on a terminal.

The agent starts before a desktop does, and one of a user that lingers before anybody has
logged in.  So its own environment says nothing: the desktop tells its display to the service
manager of the user, and that is asked whenever it matters.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Mapping

from .. import run
from ..errors import ToolFailed
from . import child

_PATIENCE = 10.0
_MANAGER = "org.freedesktop.systemd1"
_OF_THE_SESSION = (
    "DISPLAY",
    "WAYLAND_DISPLAY",
    "XAUTHORITY",
    "XDG_CURRENT_DESKTOP",
    "XDG_SESSION_TYPE",
    "DBUS_SESSION_BUS_ADDRESS",
    "GNOME_KEYRING_CONTROL",
    "CRYPTBACK_PINENTRY",
    "CRYPTBACK_TTY",
)


async def environment() -> dict[str, str]:
    """What a child that talks to the person should have as its environment."""
    own = dict(os.environ)
    if os.isatty(0):
        own["CRYPTBACK_TTY"] = os.ttyname(0)
        return own
    told = parse(await _manager())
    return {**own, **{key: told[key] for key in _OF_THE_SESSION if key in told}}


def parse(answer: bytes) -> dict[str, str]:
    """The environment in the JSON of busctl; nothing where it is something else."""
    try:
        words = json.loads(answer)["data"]
        pairs = [word.partition("=") for word in words]
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}
    return {key: value for key, _equals, value in pairs}


def can_ask(surroundings: Mapping[str, str]) -> bool:
    """Whether there is a display, or a terminal that is meant for it.

    The terminal of a login shell is not: shell and question would share what is typed.
    """
    return any(surroundings.get(key) for key in ("DISPLAY", "WAYLAND_DISPLAY", "CRYPTBACK_TTY"))


async def _manager() -> bytes:
    """What busctl prints; nothing where there is no service manager of this user."""
    argv = ["/usr/bin/busctl", "--user", "--json=short", f"--timeout={_PATIENCE:.0f}"]
    argv += ["get-property", _MANAGER, f"/{_MANAGER.replace('.', '/')}"]
    argv += [f"{_MANAGER}.Manager", "Environment"]
    out = os.memfd_create("environment")
    try:
        process = run.spawn(argv, stdout=out, stderr=subprocess.DEVNULL, environment=os.environ)
        async with asyncio.timeout(_PATIENCE):
            status = await child.ended(process)
        return os.pread(out, os.fstat(out).st_size, 0) if status == 0 else b""
    except (ToolFailed, TimeoutError):
        return b""
    finally:
        os.close(out)
