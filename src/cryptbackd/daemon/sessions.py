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


async def of_process(ask: Ask, process: int) -> str:
    """The login that a process belongs to; empty where it belongs to none."""
    try:
        (path,) = await ask(_PATH, _MANAGER, "GetSessionByPID", "u", [process])
    except Refused:
        return ""
    return str(path) if await is_open(ask, path) else ""


async def is_open(ask: Ask, session: str) -> bool:
    """Whether a session is a login that has not ended."""
    try:
        (values,) = await ask(session, "org.freedesktop.DBus.Properties", "GetAll", "s", [_SESSION])
    except Refused:
        return False
    return is_login({key: value.value for key, value in values.items()})


async def is_logged_in(ask: Ask, user: int) -> bool:
    """Whether a user has a login that has not ended; raises Refused when logind can't tell."""
    (sessions,) = await ask(_PATH, _MANAGER, "ListSessions", "", [])
    return any([await is_open(ask, path) for _id, uid, *_rest, path in sessions if uid == user])


def is_login(session: Mapping[str, Any]) -> bool:
    """Whether the *session* with these properties is a login that has not ended.

    What somebody leaves running keeps a session there long after that: as "closing".  And the
    user's own service manager, which may run without any login, counts as one there, too.
    """
    manager = str(session.get("Class", "")).startswith("manager")
    return session.get("State") != "closing" and not manager


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
