"""``org.cryptback1`` on the system bus: translates calls, and tells what is new.

Messages are handled raw, since dbus-fast's services never learn the sender, by whom it is
decided who may ask what.  No descriptor is taken from anybody: those that come are closed,
whatever the message is, but for the replies that are awaited.  A daemon without a bus goes on
without one, and tries again and again: when the bus is back, all is told anew that only a
connection has.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import attrs
from dbus_fast import DBusError, Message, MessageFlag, MessageType, Variant
from dbus_fast.aio.message_bus import MessageBus

from ..closing import Closer
from ..dbus_text import sendable
from ..errors import CryptbackError, Refused, UnknownDrive
from ..model import RunResult
from . import connection, journal, sessions
from .agents import Values
from .authority import Action, Authority, action_for, is_told
from .clients import Clients
from .inhibit import RULES, Inhibitor
from .interface import AGENT_INTERFACE, AGENT_PATH, INTERFACE, NAME, PATH
from .jobs import Job
from .methods import CALLS, INTROSPECT, Call, Methods
from .service import Service
from .tasks import Tasks
from .turns import Turns
from .values import drive_values, result_values
from .watch import Seen

_INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"
_REPLIES = (MessageType.METHOD_RETURN, MessageType.ERROR)
_TOO_MANY = "org.freedesktop.DBus.Error.LimitsExceeded"
_EVERY = 0.25
"""Seconds between two signals about the same drive."""
_PAUSES = (1.0, 60.0)
"""Seconds before the first try to connect again, and at most; each pause is twice the last."""


@attrs.define
class Bus:
    """Connect it by :meth:`connect`; *resolve* turns a path into a device."""

    service: Service
    resolve: Callable[[str], Seen]
    _bus: MessageBus | None = None
    _tasks: Tasks = attrs.field(factory=Tasks)
    _timers: dict[str, asyncio.TimerHandle] = attrs.field(factory=dict)
    _again: set[str] = attrs.field(factory=set)
    _unread: dict[int, Callable[[], None]] = attrs.field(factory=dict)
    """Whom to tell of the reply to a message, by the message's number."""
    _turns: Turns = attrs.field(factory=Turns)
    _clients: Clients = attrs.field(init=False)
    _methods: Methods = attrs.field(init=False)
    _authority: Authority = attrs.field(init=False)
    _inhibitor: Inhibitor = attrs.field(init=False)
    _closer: Closer = attrs.field(factory=Closer)
    _awaited: set[int] = attrs.field(factory=set)
    """The serials of our own calls whose replies may bring descriptors."""
    _coming_back: asyncio.Task[None] | None = None

    def __attrs_post_init__(self) -> None:
        self._clients = Clients(self, self.service.requests.client_left)
        self._methods = Methods(self.service, self.resolve, self, self._clients)
        self._authority = Authority(self._ask)
        sleep = self.service.sleep
        self._inhibitor = Inhibitor(self._ask, sleep.begins, sleep.ends)

    async def connect(self) -> None:
        """Connect and take the name; raises OSError and Refused."""
        bus = connection.make()
        bus.add_message_handler(self._received)
        self.service.agents.link = self  # before the name: agents wait for that
        self._bus = bus
        try:
            await connection.join(bus, NAME)
            for rule in RULES:
                await self.ask_bus("AddMatch", "s", [rule])
        except BaseException:
            self._let_go(bus)
            raise
        self._tasks.start(self._mind_connection(bus))

    def close(self) -> None:
        """Leave the bus."""
        for timer in self._timers.values():
            timer.cancel()
        self._inhibitor.want(False)
        if self._coming_back is not None:
            self._coming_back.cancel()
        if self._bus is not None:
            bus, self._bus = self._bus, None
            bus.disconnect()

    async def _mind_connection(self, bus: MessageBus) -> None:
        fault = ""
        try:
            await bus.wait_for_disconnect()  # type: ignore[no-untyped-call]
        except (OSError, EOFError) as exc:
            fault = f" ({exc})"
        if self._bus is bus:
            self._let_go(bus)
            journal.log(
                f"The connection to the system bus is lost{fault}; `cryptback` will not reach this"
                " service until it is there again.",
                journal.Priority.WARNING,
            )
            self.come_back()

    def _let_go(self, bus: MessageBus) -> None:
        """Forget all that was known by the names of *bus*, which the next one gives to others."""
        self._bus = None
        connection.leave(bus)
        unread, self._unread = self._unread, {}
        for taken in unread.values():
            taken()
        self.service.agents.all_left()
        self._clients.all_left()

    def come_back(self) -> None:
        """Connect as soon as there is a bus."""
        self._coming_back = self._tasks.start(self._connect_again())

    async def _connect_again(self) -> None:
        pause, longest = _PAUSES
        while self._bus is None:
            await asyncio.sleep(pause)
            pause = min(2 * pause, longest)
            with contextlib.suppress(OSError, CryptbackError):
                await self.connect()
        journal.log("The system bus is there again, and `cryptback` reaches this service.")
        await self._inhibitor.renew()

    def drive_changed(self, name: str) -> None:
        """Tell of the drive, at once or (shortly after the last time) in a moment."""
        if self._bus is None:
            return
        if name in self._timers:
            self._again.add(name)
            return
        self._tell(name)

    def job_finished(self, job: Job, result: RunResult) -> None:
        """Tell of the end of a job."""
        self._methods.results.add(job, result)
        values = result_values(job, result, texts=is_told(job.owner, None))
        self._signal("JobFinished", "sa{sv}", [job.id, values])

    def work_changed(self) -> None:
        """Have the computer wait with its sleep as long as there is a job."""
        working = next(self.service.supervisor.jobs(), None) is not None
        self._inhibitor.want(working)

    def remind(self, name: str, days: int) -> None:
        """Tell that a drive was not backed up for so many days."""
        self._signal("Reminder", "su", [name, days])

    def _tell(self, name: str) -> None:
        loop = asyncio.get_running_loop()
        self._timers[name] = loop.call_later(_EVERY, self._may_tell_again, name)
        with contextlib.suppress(UnknownDrive):
            view = self.service.views.of(name)
            values = drive_values(view, texts=self._methods.tells(name, None))
            self._signal("DriveChanged", "sa{sv}", [name, values])

    def _may_tell_again(self, name: str) -> None:
        del self._timers[name]
        if name in self._again:
            self._again.discard(name)
            self._tell(name)

    def _signal(self, member: str, signature: str, body: list[Any]) -> None:
        if self._bus is not None and self._bus.connected:
            self._bus.send(
                Message(
                    message_type=MessageType.SIGNAL,
                    path=PATH,
                    interface=INTERFACE,
                    member=member,
                    signature=signature,
                    body=sendable(body),
                )
            )

    def _received(self, message: Message) -> Message | bool | None:
        # dbus-fast goes on filling the empty list of a message with the next one's descriptors.
        message.unix_fds = list(message.unix_fds)
        if message.message_type in _REPLIES and message.reply_serial in self._awaited:
            return None
        self._closer.close(message.unix_fds)
        if message.message_type is MessageType.SIGNAL:
            self._maybe_client_left(message)
            # Later: a mistake in what it leads to would be lost in dbus-fast.
            asyncio.get_running_loop().call_soon(self._inhibitor.heard, message)
            return None
        if message.message_type is not MessageType.METHOD_CALL:
            if (taken := self._unread.pop(message.reply_serial or 0, None)) is not None:
                taken()
            return None
        call = self._find(message)
        waits = not message.flags.value & MessageFlag.NO_REPLY_EXPECTED.value
        if call is None or not (waits or call.action is not None or call.tells):
            return not waits or None  # to tell something to nobody would cost and be of no use
        if self._turns.take(message.sender or "", partial(self._reply, message, call)):
            return True
        if waits:
            text = "Too many of your calls wait for an answer already."
            return Message.new_error(message, _TOO_MANY, text)
        return True

    def _find(self, message: Message) -> Call | None:
        """What is called; None is left to dbus-fast, which knows the bus's own interfaces."""
        if message.interface == _INTROSPECTABLE and message.member == "Introspect":
            return INTROSPECT
        if message.path != PATH or message.interface not in (INTERFACE, None):
            return None
        return CALLS.get((message.member or "", message.signature))

    async def _reply(self, message: Message, call: Call) -> None:
        bus = self._bus
        if bus is None:
            return
        gives: tuple[int, ...] = ()
        try:
            await self._want_leave(message, call.action)
            answer = await call.do(self._methods, message)
            gives = answer.gives
            reply = Message.new_method_return(
                message, answer.signature, sendable(answer.body), list(answer.gives)
            )
        except CryptbackError as exc:
            text = sendable(f"{exc.sentence}\n{exc.hint}")
            reply = Message.new_error(message, f"{NAME}.Error.{type(exc).__name__}", text)
        except DBusError as exc:
            reply = Message.new_error(message, f"{NAME}.Error.Refused", sendable(f"{exc.text}\n"))
        except Exception as exc:
            # Whoever asks must not be able to end what goes on with others' drives.
            journal.mistake(f"{message.member} is not answered.", exc)
            text = "cryptbackd made a mistake.\nThe journal has the details; please report it."
            reply = Message.new_error(message, f"{NAME}.Error.CryptbackError", text)
        try:
            if bus.connected and not message.flags & MessageFlag.NO_REPLY_EXPECTED:
                await bus.send(reply)
        finally:
            for fd in gives:
                os.close(fd)

    async def _want_leave(self, message: Message, action: Action | None) -> None:
        """Raise Refused unless the sender may do *action*; None: everybody may."""
        if action is None:
            return
        sender = message.sender or ""
        user = await self.user_of(sender)
        drive = ""
        if action is not Action.MANAGE and user != 0:
            drive = message.body[0]
            action = action_for(action, self.service.owner(drive), user)
        allowed = message.flags & MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION
        await self._authority.want(sender, user, action, drive, interactive=bool(allowed))

    async def _ask(self, message: Message) -> Message | None:
        """The reply to a call of ours, with its descriptors; None when the bus is gone."""
        bus = self._bus
        if bus is None or not bus.connected:
            return None
        message.serial = bus.next_serial()
        self._awaited.add(message.serial)
        try:
            return await bus.call(message)
        except (OSError, EOFError):
            return None
        finally:
            self._awaited.discard(message.serial)

    async def ask_bus(self, member: str, signature: str, body: list[Any]) -> list[Any]:
        """What the bus itself answers; raises Refused."""
        bus = "org.freedesktop.DBus"
        return await self.ask_of(bus, "/org/freedesktop/DBus", bus, member, signature, body)

    async def ask_of(
        self, name: str, path: str, interface: str, member: str, signature: str, body: list[Any]
    ) -> list[Any]:
        """What *name* answers to a call; raises Refused where it does not."""
        reply = await self._ask(
            Message(
                destination=name,
                path=path,
                interface=interface,
                member=member,
                signature=signature,
                body=body,
            )
        )
        if reply is not None:
            self._closer.close(reply.unix_fds)
        if reply is None or reply.message_type is MessageType.ERROR:
            who = "The bus" if name == "org.freedesktop.DBus" else name
            raise Refused(f"{who} did not answer.")
        return list(reply.body)

    # What agents need of it (``agents.Link``).

    async def user_of(self, name: str) -> int:
        """The user of a connection, as the bus knows it."""
        (user,) = await self.ask_bus("GetConnectionUnixUser", "s", [name])
        return int(user)

    async def mind(self, name: str) -> bool:
        """Hear of the end of the connection *name*; whether it is there."""
        await self.ask_bus("AddMatch", "s", [_leaving(name)])
        # It may have left before we listened.
        (here,) = await self.ask_bus("NameHasOwner", "s", [name])
        return bool(here)

    async def unmind(self, name: str) -> None:
        """Hear of it no longer."""
        await self.ask_bus("RemoveMatch", "s", [_leaving(name)])

    async def local_users(self) -> frozenset[int]:
        """The users with an active local session."""
        return await sessions.local_users(partial(self.ask_of, sessions.NAME))

    async def ask(self, name: str, fd: int, values: Values, taken: Callable[[], None]) -> None:
        """Call GetPassphrase of the agent *name*; the answer is what becomes of the pipe.

        The message has a descriptor of its own: what waits to be sent must not name one
        that is somebody else's by then.
        """
        told = {key: _variant(value) for key, value in values.items()}
        bus = self._bus
        if bus is None or not bus.connected:
            taken()
            return
        own = os.dup(fd)
        message = _to_agent(name, "GetPassphrase", "ha{sv}", [0, told], own)
        sent = bus.send(message)
        sent.add_done_callback(partial(_sent, own))
        self._unread[message.serial] = taken
        with contextlib.suppress(OSError, EOFError):
            await asyncio.shield(sent)

    def tell(self, name: str, member: str, request: str) -> None:
        """Tell an agent about one of its requests."""
        if self._bus is not None and self._bus.connected:
            self._bus.send(_to_agent(name, member, "s", [request]))

    def _maybe_client_left(self, message: Message) -> None:
        if message.member == "NameOwnerChanged" and message.sender == "org.freedesktop.DBus":
            name, _before, now = message.body
            if name and not now:
                self.service.agents.left(name)
                self._clients.left(name)


def _leaving(name: str) -> str:
    """The rule by which the bus tells when the connection *name* ends."""
    return (
        "type='signal',sender='org.freedesktop.DBus',interface='org.freedesktop.DBus',"
        f"member='NameOwnerChanged',arg0='{name}'"
    )


def _to_agent(
    name: str, member: str, signature: str, body: list[Any], fd: int | None = None
) -> Message:
    """A call of which nobody awaits the reply: an agent must not make anybody wait."""
    return Message(
        destination=name,
        path=AGENT_PATH,
        interface=AGENT_INTERFACE,
        member=member,
        signature=signature,
        body=body,
        unix_fds=[] if fd is None else [fd],
        # Never two flags: Debian 12's dbus-fast, at the other end, dies of that.
        flags=MessageFlag.NO_REPLY_EXPECTED if fd is None else MessageFlag.NONE,
    )


def _sent(fd: int, sending: asyncio.Future[Any]) -> None:
    """Close the descriptor of a message that is sent, or never will be."""
    os.close(fd)
    if not sending.cancelled():
        sending.exception()  # is told by the end of the connection


def _variant(value: str | int | bool) -> Variant:
    return Variant({bool: "b", int: "u", str: "s"}[type(value)], value)
