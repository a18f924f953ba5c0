"""Who may do what: root may all, and polkit decides about everybody else.

A caller is known by its unique name on the bus, which is never given to another, and not by a
process id, which can be.  polkit's rules and an administrator's apply to the actions of
``org.cryptback1.policy``.  Where polkit does not run, root alone may.
"""

from __future__ import annotations

import asyncio
import pwd
from collections.abc import Awaitable, Callable
from enum import StrEnum

import attrs
from dbus_fast import Message, MessageType, Variant

from ..errors import Refused
from ..text import printable

_INTERACTIVE = 120.0
"""Seconds that a person has to show who they are."""
_AT_ONCE = 30.0
_MOST = 4
"""Questions to polkit about one user that may be open at a time."""
_POLKIT = "org.freedesktop.PolicyKit1"
_NO_POLKIT = ("ServiceUnknown", "NameHasNoOwner", "UnknownObject", "NoSuchUnit", "UnitMasked")


class Action(StrEnum):
    """What polkit knows: an action ``org.cryptback1.…`` each."""

    RUN = "run"
    VERIFY = "verify"
    CANCEL = "cancel"
    EJECT = "eject"
    BROWSE = "browse"
    RESTORE = "restore"
    MANAGE = "manage"


_MESSAGES = {
    Action.RUN: "Authentication is required to back up to $(drive).",
    Action.VERIFY: "Authentication is required to read back what is on $(drive).",
    Action.CANCEL: "Authentication is required to stop what is being done with $(drive).",
    Action.EJECT: "Authentication is required to eject $(drive).",
    Action.BROWSE: "Authentication is required to look into the backup on $(drive).",
    Action.RESTORE: "Authentication is required to restore files from $(drive).",
    Action.MANAGE: "Authentication is required to change or use the backup drive $(drive).",
}


def action_for(action: Action, owner: str | None, user: int) -> Action:
    """What *user* needs to do *action* with a drive of *owner* (None: of nobody in particular).

    Somebody else's drive takes an administrator.
    """
    if owner is None or _is(owner, user):
        return action
    return Action.MANAGE


def is_told(owner: str | None, user: int | None) -> bool:
    """Whether *user* (None: everybody) is told what names files on a drive of *owner*."""
    return owner is None or user == 0 or (user is not None and _is(owner, user))


def _is(owner: str, user: int) -> bool:
    try:
        return pwd.getpwnam(owner).pw_uid == user
    except KeyError:
        return False


@attrs.define
class Authority:
    """*ask* sends a call on the system bus, and gives the reply or None."""

    ask: Callable[[Message], Awaitable[Message | None]]
    _open: dict[int, int] = attrs.field(factory=dict)
    _asked: int = 0

    async def want(
        self, sender: str, user: int, action: Action, drive: str, *, interactive: bool
    ) -> None:
        """Return when *sender*, who is *user*, may do *action*; raises Refused.

        *interactive*: a person may be asked to show who they are.
        """
        if user == 0:
            return
        if self._open.get(user, 0) >= _MOST:
            raise Refused("Too many of your requests wait for an answer already.")
        self._open[user] = self._open.get(user, 0) + 1
        try:
            await self._ask_polkit(sender, action, drive, interactive)
        finally:
            self._open[user] -= 1
            if not self._open[user]:
                del self._open[user]

    async def _ask_polkit(self, sender: str, action: Action, drive: str, interactive: bool) -> None:
        self._asked += 1
        name = f"cryptback-{self._asked}"
        told = printable(drive, 40) or "a drive"  # whoever calls can say anything
        details = {"drive": told, "polkit.message": _MESSAGES[action]}
        question = _call(
            "CheckAuthorization",
            "(sa{sv})sa{ss}us",
            [
                ["system-bus-name", {"name": Variant("s", sender)}],
                f"org.cryptback1.{action}",
                details,
                int(interactive),
                name,
            ],
        )
        try:
            async with asyncio.timeout(_INTERACTIVE if interactive else _AT_ONCE):
                reply = await self.ask(question)
        except TimeoutError:
            # It takes the question back from the person, too.
            await self.ask(_call("CancelCheckAuthorization", "s", [name]))
            raise Refused("Nobody showed in time that they may do that.") from None
        _judge(reply)


def _call(member: str, signature: str, body: list[object]) -> Message:
    return Message(
        destination=_POLKIT,
        path="/org/freedesktop/PolicyKit1/Authority",
        interface=f"{_POLKIT}.Authority",
        member=member,
        signature=signature,
        body=body,
    )


def _judge(reply: Message | None) -> None:
    """Raise Refused unless polkit's answer is yes."""
    if reply is not None and reply.message_type is not MessageType.ERROR:
        (allowed, _challenge, _details) = reply.body[0]
        if allowed is True:
            return
        raise Refused("You may not do that without an administrator.", "Try it with sudo.")
    name = str(reply.error_name) if reply is not None else ""
    if name.endswith(_NO_POLKIT) or ".Spawn." in name:
        raise Refused("Only root may ask for that.", "Try it with sudo.")
    raise Refused("polkit did not answer whether you may do that.", "Try it with sudo.")
