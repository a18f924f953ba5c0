"""``org.cryptback1`` on the system bus: translates calls, and tells what is new.

Messages are handled raw, since dbus-fast's services never learn the sender, by whom it is
decided who may ask what.  No descriptor is ever taken from a client: those that come with a
message are closed, whatever the message is.  The connection lives as long as the daemon; a
daemon without a bus goes on without one.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import attrs
from dbus_fast import (
    BusType,
    DBusError,
    Message,
    MessageFlag,
    MessageType,
    NameFlag,
    RequestNameReply,
    Variant,
)
from dbus_fast.aio.message_bus import MessageBus
from dbus_fast.errors import AuthError, InvalidAddressError

from ..errors import ConfigError, CryptbackError, Refused, UnknownDrive
from ..model import RunResult
from ..text import printable
from . import interface, journal, sessions
from .agents import Values
from .history import Run
from .interface import AGENT_INTERFACE, AGENT_PATH, INTERFACE, NAME, PATH
from .jobs import Job
from .service import Service
from .status import DriveView
from .tasks import Tasks
from .watch import Seen

_INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"
_PARENTS = {
    "/": '<node><node name="org"/></node>',
    "/org": '<node><node name="cryptback1"/></node>',
}
MAX_RUNS = 1000
"""The longest history that is told in one answer."""
_EVERY = 0.25
"""Seconds between two signals about the same drive."""


class _Answer(NamedTuple):
    signature: str
    body: list[Any]
    gives: tuple[int, ...] = ()
    """Descriptors that go with it, closed here once it was sent."""


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
    _enrolling: dict[str, list[Job]] = attrs.field(factory=dict)
    """The init jobs by the unique bus name of who asked for them."""

    async def connect(self) -> None:
        """Connect and take the name; raises OSError and DBusError."""
        try:
            bus = MessageBus(bus_type=BusType.SYSTEM, negotiate_unix_fd=True)
            await bus.connect()
        except (AuthError, InvalidAddressError, EOFError) as exc:
            raise OSError(str(exc)) from exc
        self._bus = bus
        self._tasks.start(self._mind_connection(bus))
        bus.add_message_handler(self._received)
        self.service.agents.link = self  # before the name: agents wait for that
        if (
            await bus.request_name(NAME, NameFlag.DO_NOT_QUEUE)
            is not RequestNameReply.PRIMARY_OWNER
        ):
            raise OSError(f"somebody else owns the name {NAME}")

    def close(self) -> None:
        """Leave the bus."""
        for timer in self._timers.values():
            timer.cancel()
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
            self._bus = None
            journal.log(
                f"The connection to the system bus is lost{fault}; `cryptback` will not reach this"
                " service until it is restarted.",
                journal.Priority.WARNING,
            )

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
        self._signal("JobFinished", "sa{sv}", [job.id, result_values(job, result)])

    def _tell(self, name: str) -> None:
        loop = asyncio.get_running_loop()
        self._timers[name] = loop.call_later(_EVERY, self._may_tell_again, name)
        with contextlib.suppress(UnknownDrive):
            values = drive_values(self.service.view(name))
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
                    body=body,
                )
            )

    def _received(self, message: Message) -> Message | bool | None:
        for fd in message.unix_fds:
            os.close(fd)
        if message.message_type is MessageType.SIGNAL:
            self._maybe_client_left(message)
            return None
        if message.message_type is not MessageType.METHOD_CALL:
            if (taken := self._unread.pop(message.reply_serial or 0, None)) is not None:
                taken()
            return None
        if message.interface == _INTROSPECTABLE and message.member == "Introspect":
            xml = _PARENTS.get(message.path or "") or interface.XML
            return Message.new_method_return(message, "s", [xml])
        if message.path != PATH or message.interface not in (INTERFACE, None):
            return None
        call = _CALLS.get((message.member or "", message.signature))
        if call is None:
            return None
        self._tasks.start(self._answer(message, call))
        return True

    async def _answer(self, message: Message, call: _Call) -> None:
        bus = self._bus
        if bus is None:
            return
        gives: tuple[int, ...] = ()
        try:
            if call.for_root:
                await self._want_root(message.sender or "")
            answer = await call.do(self, message)
            gives = answer.gives
            reply = Message.new_method_return(
                message, answer.signature, answer.body, list(answer.gives)
            )
        except CryptbackError as exc:
            text = f"{exc.sentence}\n{exc.hint}"
            reply = Message.new_error(message, f"{NAME}.Error.{type(exc).__name__}", text)
        except DBusError as exc:
            reply = Message.new_error(message, f"{NAME}.Error.Refused", f"{exc.text}\n")
        try:
            if bus.connected and not message.flags & MessageFlag.NO_REPLY_EXPECTED:
                await bus.send(reply)
        finally:
            for fd in gives:
                os.close(fd)

    async def _want_root(self, sender: str) -> None:
        if await self.user_of(sender) != 0:
            raise Refused("Only root may ask for that.", "Try it with sudo.")

    async def _ask_bus(self, member: str, signature: str, body: list[Any]) -> list[Any]:
        bus = "org.freedesktop.DBus"
        return await self._ask(bus, "/org/freedesktop/DBus", bus, member, signature, body)

    async def _ask(
        self, name: str, path: str, interface: str, member: str, signature: str, body: list[Any]
    ) -> list[Any]:
        if self._bus is None:
            raise Refused("The connection to the system bus is lost.")
        message = Message(
            destination=name,
            path=path,
            interface=interface,
            member=member,
            signature=signature,
            body=body,
        )
        try:
            reply = await self._bus.call(message)
        except (OSError, EOFError) as exc:
            raise Refused("The connection to the system bus is lost.") from exc
        if reply is None or reply.message_type is MessageType.ERROR:
            who = "The bus" if name == "org.freedesktop.DBus" else name
            raise Refused(f"{who} did not answer.")
        return list(reply.body)

    # What agents need of it (``agents.Link``).

    async def user_of(self, name: str) -> int:
        """The user of a connection, as the bus knows it."""
        (user,) = await self._ask_bus("GetConnectionUnixUser", "s", [name])
        return int(user)

    async def mind(self, name: str) -> bool:
        """Hear of the end of the connection *name*; whether it is there."""
        await self._ask_bus("AddMatch", "s", [_leaving(name)])
        # It may have left before we listened.
        (here,) = await self._ask_bus("NameHasOwner", "s", [name])
        return bool(here)

    async def unmind(self, name: str) -> None:
        """Hear of it no longer."""
        await self._ask_bus("RemoveMatch", "s", [_leaving(name)])

    async def local_users(self) -> frozenset[int]:
        """The users with an active local session."""
        return await sessions.local_users(functools.partial(self._ask, sessions.NAME))

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
        sent.add_done_callback(functools.partial(_sent, own))
        self._unread[message.serial] = taken
        with contextlib.suppress(OSError, EOFError):
            await asyncio.shield(sent)

    def tell(self, name: str, member: str, request: str) -> None:
        """Tell an agent about one of its requests."""
        if self._bus is not None and self._bus.connected:
            self._bus.send(_to_agent(name, member, "s", [request]))

    async def list_drives(self, _message: Message) -> _Answer:
        """ListDrives."""
        return _Answer("aa{sv}", [[drive_values(view) for view in self.service.views()]])

    async def get_drive(self, message: Message) -> _Answer:
        """GetDrive."""
        return _Answer("a{sv}", [drive_values(self.service.view(message.body[0]))])

    async def get_history(self, message: Message) -> _Answer:
        """GetHistory."""
        name, limit = message.body
        runs = self.service.history.runs(name or None, min(limit, MAX_RUNS))
        if name and not runs:
            with contextlib.suppress(ConfigError):
                self.service.store.get(name)
        return _Answer("aa{sv}", [[run_values(run) for run in runs]])

    async def run(self, message: Message) -> _Answer:
        """Run."""
        name, options = message.body[0], _plain(message.body[1])
        for key, value in options.items():
            if key not in ("full", "accept") or not isinstance(value, bool):
                raise Refused(f"A run has no such option: {printable(key, 40)}.")
        return _Answer("s", [self.service.run(name, **options)])

    async def cancel(self, message: Message) -> _Answer:
        """Cancel."""
        return _Answer("as", [self.service.cancel(message.body[0])])

    async def eject(self, message: Message) -> _Answer:
        """Eject."""
        return _Answer("as", [self.service.eject(message.body[0])])

    async def survey(self, message: Message) -> _Answer:
        """Survey."""
        seen = self.resolve(message.body[0])
        return _Answer("s", [json.dumps(await self.service.survey(seen, _plain(message.body[1])))])

    async def init(self, message: Message) -> _Answer:
        """Init."""
        seen = self.resolve(message.body[0])
        job = self.service.init(seen, _plain(message.body[1]))
        try:
            await self._mind_client(message.sender or "", job)
        except BaseException:
            self.service.client_left(job)
            raise
        return _Answer("s", [job.id])

    async def hand_over(self, message: Message) -> _Answer:
        """HandOver."""
        return _Answer("h", [0], (self.service.hand_over(*message.body),))

    async def register_agent(self, message: Message) -> _Answer:
        """RegisterAgent."""
        await self.service.agents.register(message.sender or "")
        return _Answer("", [])

    async def unregister_agent(self, message: Message) -> _Answer:
        """UnregisterAgent."""
        self.service.agents.left(message.sender or "")
        return _Answer("", [])

    async def _mind_client(self, client: str, job: Job) -> None:
        """End *job* when *client* leaves the bus before the drive is enrolled."""
        self._enrolling.setdefault(client, []).append(job)
        if not await self.mind(client):
            self._client_left(client)

        async def forget() -> None:
            await job.over
            with contextlib.suppress(CryptbackError):
                await self.unmind(client)
            if client in self._enrolling:
                self._enrolling[client].remove(job)
                if not self._enrolling[client]:
                    del self._enrolling[client]

        self._tasks.start(forget())

    def _maybe_client_left(self, message: Message) -> None:
        if message.member == "NameOwnerChanged" and message.sender == "org.freedesktop.DBus":
            name, _before, now = message.body
            if name and not now:
                self._client_left(name)

    def _client_left(self, client: str) -> None:
        self.service.agents.left(client)
        for job in self._enrolling.get(client, []):
            self.service.client_left(job)


class _Call(NamedTuple):
    do: Callable[[Bus, Message], Awaitable[_Answer]]
    for_root: bool


_CALLS: dict[tuple[str, str], _Call] = {
    ("ListDrives", ""): _Call(Bus.list_drives, False),
    ("GetDrive", "s"): _Call(Bus.get_drive, False),
    ("GetHistory", "su"): _Call(Bus.get_history, False),
    ("RegisterAgent", ""): _Call(Bus.register_agent, False),
    ("UnregisterAgent", ""): _Call(Bus.unregister_agent, False),
    ("Run", "sa{sv}"): _Call(Bus.run, True),
    ("Cancel", "s"): _Call(Bus.cancel, True),
    ("Eject", "s"): _Call(Bus.eject, True),
    ("Survey", "sa{sv}"): _Call(Bus.survey, True),
    ("Init", "sa{sv}"): _Call(Bus.init, True),
    ("HandOver", "ss"): _Call(Bus.hand_over, True),
}


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


def _plain(options: dict[str, Variant]) -> dict[str, Any]:
    return {key: variant.value for key, variant in options.items()}


def drive_values(view: DriveView) -> dict[str, Variant]:
    """A drive, as it is told on the bus."""
    progress = view.progress
    return {
        "name": Variant("s", view.name),
        "state": Variant("s", view.state.value),
        "uuid": Variant("s", view.uuid),
        "container": Variant("s", view.container),
        "device": Variant("s", view.device),
        "phase": Variant("s", view.phase.value if view.phase is not None else ""),
        "done": Variant("t", progress.done if progress is not None else 0),
        "total": Variant("t", progress.total if progress is not None else 0),
        "rate": Variant("d", progress.rate if progress is not None else 0.0),
        "left": Variant("d", progress.left if progress is not None else -1.0),
        "run": Variant("s", view.run),
        "last_outcome": Variant("s", view.last_outcome.value if view.last_outcome else ""),
        "last_sentence": Variant("s", _text(view.last_sentence)),
        "last_hint": Variant("s", _text(view.last_hint)),
        "last_finished": Variant("t", int(view.last_finished)),
        "last_success": Variant("t", int(view.last_success)),
        "warnings": Variant("as", [_text(warning) for warning in view.warnings]),
        "safe": Variant("b", view.safe),
        "problem": Variant("s", _text(view.problem)),
        "owner": Variant("s", view.owner),
        "remind": Variant("t", view.remind),
    }


def run_values(run: Run) -> dict[str, Variant]:
    """A run of the history, as it is told on the bus."""
    return {
        "id": Variant("s", run.id),
        "name": Variant("s", run.entry),
        "job": Variant("s", run.job.value),
        "started": Variant("t", int(run.started)),
        "finished": Variant("t", int(run.finished)),
        "outcome": Variant("s", run.outcome.value if run.outcome is not None else ""),
        **_common_values(run, run.interrupted, run.warnings),
    }


def result_values(job: Job, result: RunResult) -> dict[str, Variant]:
    """How a job ended, as it is told on the bus."""
    return {
        "id": Variant("s", job.id),
        "name": Variant("s", job.name),
        "job": Variant("s", job.kind.value),
        "seconds": Variant("d", job.seconds),
        "outcome": Variant("s", result.outcome.value),
        **_common_values(result, job.interrupted, tuple(result.warnings)),
    }


def _common_values(
    end: Run | RunResult, interrupted: bool, warnings: tuple[str, ...]
) -> dict[str, Variant]:
    return {
        "interrupted": Variant("b", interrupted),
        "error": Variant("s", end.error),
        "sentence": Variant("s", _text(end.sentence)),
        "hint": Variant("s", _text(end.hint)),
        "warnings": Variant("as", [_text(warning) for warning in warnings]),
        "version": Variant("s", end.version),
        "files": Variant("t", end.files),
        "size": Variant("t", end.size),
        "changed_files": Variant("t", end.changed_files),
        "changed_bytes": Variant("t", end.changed_bytes),
        "safe": Variant("b", end.safe),
        "touched": Variant("b", end.touched),
        "powered_off": Variant("b", end.powered_off),
    }


def _text(text: str) -> str:
    """*text* as a D-Bus string can hold it: no NUL, no lone surrogate."""
    return printable(text, 4000)
