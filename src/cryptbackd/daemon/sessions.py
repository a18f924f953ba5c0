"""Who sits at this computer, as logind says: the users with an active local session.

Local is what has a seat and doesn't come over the network, as polkit sees it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from ..errors import Refused

NAME = "org.freedesktop.login1"
_MANAGER = "org.freedesktop.login1.Manager"
_SESSION = "org.freedesktop.login1.Session"
_PATH = "/org/freedesktop/login1"

Ask = Callable[[str, str, str, str, list[Any]], Awaitable[list[Any]]]
"""Calls logind: path, interface, member, signature and body; raises Refused."""


async def local_users(ask: Ask) -> frozenset[int]:
    """The users with an active local session now; raises Refused when logind can't tell."""
    (sessions,) = await ask(_PATH, _MANAGER, "ListSessions", "", [])
    found = set()
    for _id, uid, _user, seat, path in sessions:
        if not seat or uid in found:
            continue
        with contextlib.suppress(Refused):  # it may have ended meanwhile
            (values,) = await ask(
                path, "org.freedesktop.DBus.Properties", "GetAll", "s", [_SESSION]
            )
            if is_active_local({key: value.value for key, value in values.items()}):
                found.add(uid)
    return frozenset(found)


def is_active_local(session: Mapping[str, Any]) -> bool:
    """Whether somebody sits in front of the *session* with these properties.

    The class keeps login screens and the user's own service manager out.
    """
    seat = session.get("Seat") or ("", "")
    return bool(
        session.get("Active")
        and not session.get("Remote")
        and seat[0]
        and str(session.get("Class", "")).startswith("user")
    )
