"""Who browses: what is checked of them, and when they have logged out.

A :class:`Login` is what the caller's connection was when it asked; nothing of it is held.
"""

from __future__ import annotations

import os
import pwd
from typing import Any

import attrs

from ..errors import Refused
from ..text import printable
from . import sessions

LOOKING = 5.0
"""Seconds between two looks at whether somebody has logged out."""


def name_of(user: int) -> str:
    """What a user is called."""
    try:
        return printable(pwd.getpwuid(user).pw_name, 40)
    except KeyError:
        return str(user)


def groups_of(user: int, told: list[int] | None) -> list[int]:
    """The groups that a caller is in, the main one first.

    *told* are those that the bus knows of; None where it doesn't know any.
    """
    try:
        entry = pwd.getpwuid(user)
    except KeyError:
        entry = None
    if told is None:
        if entry is None:
            raise Refused(f"There is no user with the number {user} on this computer.")
        told = os.getgrouplist(entry.pw_name, entry.pw_gid)
    if not told:
        raise Refused("It can't be told which groups you are in.")
    main = entry.pw_gid if entry is not None and entry.pw_gid in told else told[0]
    return [main, *sorted(set(told) - {main})]


@attrs.define
class Login:
    """The login session in which somebody asked, as logind knows it.

    Without one (``session`` empty) their last session counts, if they have any.
    """

    user: int
    session: str = ""
    others: bool = False

    @staticmethod
    async def of(ask: sessions.Ask, user: int, process: int) -> Login:
        """That of a caller; raises Refused when logind can't tell."""
        session = await sessions.of_process(ask, process)
        return Login(user, session, not session and await sessions.is_logged_in(ask, user))

    async def is_over(self, ask: sessions.Ask) -> bool:
        """Whether they have logged out since; raises Refused when logind can't tell."""
        if self.session:
            return not await sessions.is_open(ask, self.session)
        return self.others and not await sessions.is_logged_in(ask, self.user)


def credentials(values: dict[str, Any]) -> tuple[int, int, list[int] | None]:
    """User, process and groups (None: not told) of a caller, from what the bus says."""
    groups = values.get("UnixGroupIDs")
    return (
        int(values["UnixUserID"]),
        int(values.get("ProcessID", 0)),
        None if groups is None else [int(group) for group in groups],
    )
