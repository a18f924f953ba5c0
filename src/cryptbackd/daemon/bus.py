"""``org.cryptback1`` on the system bus: translates calls, and tells what is new.

Messages are handled raw, since dbus-fast's services never learn the sender, by whom it is
decided who may ask what.  A descriptor is taken from a client where one is said to come with
the message (``ShowOn``); all others are closed, whatever the message is.  The connection lives
as long as the daemon; a daemon without a bus goes on without one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, NamedTuple

import attrs
from dbus_fast import (
    DBusError,
    Message,
    MessageFlag,
    MessageType,
    NameFlag,
    RequestNameReply,
    Variant,
)
from dbus_fast.aio.message_bus import MessageBus

from ..dbus_text import sendable
from ..errors import ConfigError, CryptbackError, Refused, UnknownDrive
from ..model import JobKind, RunResult
from ..text import printable
from . import browsing, connection, interface, journal, sessions
from .agents import Values
from .authority import Action, Authority, action_for
from .history import Run
from .inhibit import RULES, Inhibitor
from .interface import AGENT_INTERFACE, AGENT_PATH, INTERFACE, NAME, PATH
from .jobs import Job
from .queries import Queries
from .service import Service
from .status import DriveView
from .tasks import Tasks
from .turns import Turns
from .watch import Seen

_INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"
_PARENTS = {
    "/": '<node><node name="org"/></node>',
    "/org": '<node><node name="cryptback1"/></node>',
}
MAX_RUNS = 1000
"""The longest history that is told in one answer."""
MAX_FOUND = 10_000
"""The most files that a search tells of, on each drive."""
MAX_PATTERN = 4096
_REPLIES = (MessageType.METHOD_RETURN, MessageType.ERROR)
_TOO_MANY = "org.freedesktop.DBus.Error.LimitsExceeded"
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
    """The jobs that end with who asked for them, by the unique bus names of these."""
    _queries: Queries = attrs.field(factory=Queries)
    _turns: Turns = attrs.field(factory=Turns)
    _authority: Authority = attrs.field(init=False)
    _inhibitor: Inhibitor = attrs.field(init=False)
    _awaited: set[int] = attrs.field(factory=set)
    """The serials of our own calls whose replies may bring descriptors."""

    def __attrs_post_init__(self) -> None:
        self._authority = Authority(self._ask)
        sleep = self.service.sleep
        self._inhibitor = Inhibitor(self._ask, sleep.begins, sleep.ends)

    async def connect(self) -> None:
        """Connect and take the name; raises OSError and DBusError."""
        self._bus = bus = await connection.connect()
        self._tasks.start(self._mind_connection(bus))
        bus.add_message_handler(self._received)
        for rule in RULES:
            await self._ask_bus("AddMatch", "s", [rule])
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
        self._inhibitor.want(False)
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

    def work_changed(self) -> None:
        """Have the computer wait with its sleep as long as there is a job."""
        working = next(self.service.supervisor.jobs(), None) is not None
        self._inhibitor.want(working and self._bus is not None)

    def remind(self, name: str, days: int) -> None:
        """Tell that a drive was not backed up for so many days."""
        self._signal("Reminder", "su", [name, days])

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
                    body=sendable(body),
                )
            )

    def _received(self, message: Message) -> Message | bool | None:
        # dbus-fast goes on filling the empty list of a message with the next one's descriptors.
        message.unix_fds = list(message.unix_fds)
        if message.message_type in _REPLIES and message.reply_serial in self._awaited:
            return None
        call = None
        if message.message_type is MessageType.METHOD_CALL:
            call = self._find(message)
        if call is None or not call.takes or message.sender not in self._enrolling:
            _close(message)  # at once: what waits for its turn keeps nothing of a stranger's
        if message.message_type is MessageType.SIGNAL:
            self._maybe_client_left(message)
            # Later: a mistake in what it leads to would be lost in dbus-fast.
            asyncio.get_running_loop().call_soon(self._inhibitor.heard, message)
            return None
        if message.message_type is not MessageType.METHOD_CALL:
            if (taken := self._unread.pop(message.reply_serial or 0, None)) is not None:
                taken()
            return None
        waits = not message.flags.value & MessageFlag.NO_REPLY_EXPECTED.value
        if call is None or not (waits or call.takes or call.action is not None or call.tells):
            return not waits or None  # to tell something to nobody would cost and be of no use
        if self._turns.take(message.sender or "", partial(self._answer, message, call)):
            return True
        _close(message)
        if waits:
            text = "Too many of your calls wait for an answer already."
            return Message.new_error(message, _TOO_MANY, text)
        return True

    def _find(self, message: Message) -> _Call | None:
        """What is called; None is left to dbus-fast, which knows the bus's own interfaces."""
        if message.interface == _INTROSPECTABLE and message.member == "Introspect":
            return _INTROSPECT
        if message.path != PATH or message.interface not in (INTERFACE, None):
            return None
        return CALLS.get((message.member or "", message.signature))

    async def _answer(self, message: Message, call: _Call) -> None:
        try:
            await self._reply(message, call)
        finally:
            _close(message)

    async def _reply(self, message: Message, call: _Call) -> None:
        bus = self._bus
        if bus is None:
            return
        gives: tuple[int, ...] = ()
        try:
            await self._want_leave(message, call.action)
            answer = await call.do(self, message)
            gives = answer.gives
            reply = Message.new_method_return(
                message, answer.signature, sendable(answer.body), list(answer.gives)
            )
        except CryptbackError as exc:
            text = sendable(f"{exc.sentence}\n{exc.hint}")
            reply = Message.new_error(message, f"{NAME}.Error.{type(exc).__name__}", text)
        except DBusError as exc:
            reply = Message.new_error(message, f"{NAME}.Error.Refused", sendable(f"{exc.text}\n"))
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
        if bus is None:
            return None
        message.serial = bus.next_serial()
        self._awaited.add(message.serial)
        try:
            return await bus.call(message)
        except (OSError, EOFError):
            return None
        finally:
            self._awaited.discard(message.serial)

    async def _ask_bus(self, member: str, signature: str, body: list[Any]) -> list[Any]:
        bus = "org.freedesktop.DBus"
        return await self._ask_of(bus, "/org/freedesktop/DBus", bus, member, signature, body)

    async def _ask_of(
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
        for fd in reply.unix_fds if reply is not None else []:
            os.close(fd)
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
        return await sessions.local_users(partial(self._ask_of, sessions.NAME))

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

    async def find(self, message: Message) -> _Answer:
        """Find."""
        pattern, options = message.body[0], _plain(message.body[1])
        limit, drive = options.pop("limit", 100), options.pop("drive", "")
        if options or type(limit) is not int or not isinstance(drive, str):
            raise Refused("A search has no such option.")
        if not pattern or len(pattern) > MAX_PATTERN:
            raise Refused("That is nothing that could be searched for.")
        question = {
            "what": "find",
            "pattern": pattern,
            "limit": max(1, min(limit, MAX_FOUND)),
            "drives": self.service.remembered(drive or None),
        }
        return await self._asked(message, question)

    async def versions(self, message: Message) -> _Answer:
        """Versions; what the warnings say is for whom the drive is."""
        name = message.body[0]
        user = await self.user_of(message.sender or "")
        texts = action_for(Action.RUN, self.service.owner(name), user) is Action.RUN or user == 0
        question = {"what": "versions", "drives": self.service.remembered(name), "texts": texts}
        return await self._asked(message, question)

    async def compare(self, message: Message) -> _Answer:
        """Compare."""
        name, *between = message.body
        drives = self.service.remembered(name)
        return await self._asked(message, {"what": "compare", "drives": drives, "between": between})

    async def _asked(self, message: Message, question: dict[str, Any]) -> _Answer:
        """The pipe from which the answer comes: of what the sender could read."""
        user = await self.user_of(message.sender or "")
        pipe = self._queries.ask(user, question)
        return _Answer("h", [0], (pipe,))

    async def run(self, message: Message) -> _Answer:
        """Run."""
        name, options = message.body[0], _plain(message.body[1])
        for key, value in options.items():
            if key not in ("full", "accept") or not isinstance(value, bool):
                raise Refused(f"A run has no such option: {printable(key, 40)}.")
        return _Answer("s", [self.service.run(name, **options)])

    async def verify(self, message: Message) -> _Answer:
        """Verify."""
        return _Answer("s", [self.service.verify(message.body[0], _plain(message.body[1]))])

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
        return await self._minded(message, job)

    async def recover(self, message: Message) -> _Answer:
        """Recover."""
        seen = self.resolve(message.body[0])
        options = _plain(message.body[1])
        kinds = {"container": str, "fingerprint": str, "header": bool}
        for key, value in options.items():
            if not isinstance(value, kinds.get(key, ())):
                raise Refused(f"To recover settings has no such option: {printable(key, 40)}.")
        return await self._minded(message, self.service.recover(seen, options))

    async def header(self, message: Message) -> _Answer:
        """Header."""
        return _Answer("s", [json.dumps(await self.service.look(message.body[0]))])

    async def passphrase(self, message: Message) -> _Answer:
        """Passphrase."""
        job = self.service.passphrase(message.body[0], _plain(message.body[1]))
        return await self._minded(message, job)

    async def adopt(self, message: Message) -> _Answer:
        """Adopt."""
        return await self._minded(message, self.service.adopt(message.body[0]))

    async def repair(self, message: Message) -> _Answer:
        """Repair."""
        options = _plain(message.body[1])
        device = options.pop("device", "")
        if options or not isinstance(device, str):
            raise Refused("A repair has no such option.")
        seen = self.resolve(device) if device else None
        return _Answer("s", [self.service.repair(message.body[0], seen)])

    async def browse(self, message: Message) -> _Answer:
        """Browse."""
        name, options = message.body
        if options:
            raise Refused("Browsing has no such option.")
        values = await self._ask_bus("GetConnectionCredentials", "s", [message.sender])
        user, process, told = browsing.credentials(_plain(values[0]))
        groups = browsing.groups_of(user, told)
        job = self.service.browse(name, user, groups)
        answer = await self._minded(message, job)
        self._tasks.start(self._end_with_login(job, user, process))
        return answer

    async def show_on(self, message: Message) -> _Answer:
        """ShowOn; only who asked for a job says where it is shown."""
        run, index = message.body
        self._want_asker(message, run)
        if index != 0 or len(message.unix_fds) != 1:
            raise Refused("One descriptor is to come with that.")
        self.service.show_on(run, message.unix_fds[0])
        return _Answer("", [])

    async def close_browsing(self, message: Message) -> _Answer:
        """Close."""
        return _Answer("as", [self.service.close(message.body[0])])

    async def _end_with_login(self, job: Job, user: int, process: int) -> None:
        """End *job* when whoever asked for it has logged out."""
        ask = partial(self._ask_of, sessions.NAME)
        try:
            login = await browsing.Login.of(ask, user, process)
        except Refused:
            return  # without logind there is no logout
        while not job.over.done():
            await asyncio.wait([job.over], timeout=browsing.LOOKING)
            with contextlib.suppress(Refused):  # it may be there again the next time
                if not job.over.done() and await login.is_over(ask):
                    self.service.client_left(job)
                    return

    async def kit(self, message: Message) -> _Answer:
        """Kit."""
        facts, header = await self.service.kit(message.body[0])
        return _Answer("sh", [json.dumps(facts), 0], (header,))

    async def kit_written(self, message: Message) -> _Answer:
        """KitWritten."""
        self.service.kit_written(message.body[0], message.body[1])
        return _Answer("", [])

    async def forget(self, message: Message) -> _Answer:
        """Forget."""
        return _Answer("s", [json.dumps(attrs.asdict(self.service.forget(message.body[0])))])

    async def resize(self, message: Message) -> _Answer:
        """Resize."""
        return _Answer("s", [self.service.resize(*message.body)])

    async def restore(self, message: Message) -> _Answer:
        """Restore."""
        name, options = message.body[0], _plain(message.body[1])
        at = options.pop("at", "")
        if options or not isinstance(at, str):
            raise Refused("A restore has no such option.")
        values = await self._ask_bus("GetConnectionCredentials", "s", [message.sender])
        user, _process, told = browsing.credentials(_plain(values[0]))
        groups = browsing.groups_of(user, told)
        return await self._minded(message, self.service.restore(name, at, user, groups))

    async def _minded(self, message: Message, job: Job) -> _Answer:
        """The id of *job*, which ends with whoever asked for it."""
        try:
            await self._mind_client(message.sender or "", job)
        except BaseException:
            self.service.client_left(job)
            raise
        return _Answer("s", [job.id])

    async def hand_over(self, message: Message) -> _Answer:
        """HandOver; only who asked for a job gets its pipes."""
        run, purpose = message.body
        self._want_asker(message, run)
        return _Answer("h", [0], (self.service.hand_over(run, purpose),))

    def _want_asker(self, message: Message, run: str) -> None:
        """Raise Refused unless the sender asked for the job *run*."""
        if all(job.id != run for job in self._enrolling.get(message.sender or "", [])):
            raise Refused("Nothing is wanted from you for that.")

    async def introspect(self, message: Message) -> _Answer:
        """Introspect, of the standard interface."""
        return _Answer("s", [_PARENTS.get(message.path or "") or interface.XML])

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
    action: Action | None = None
    """What polkit is asked for; None: everybody may."""
    tells: bool = False
    """It is of use without an answer, too."""
    takes: bool = False
    """A descriptor comes with it, to be closed here once it was answered."""


_INTROSPECT = _Call(Bus.introspect)
CALLS: dict[tuple[str, str], _Call] = {
    ("ListDrives", ""): _Call(Bus.list_drives),
    ("GetDrive", "s"): _Call(Bus.get_drive),
    ("GetHistory", "su"): _Call(Bus.get_history),
    ("Find", "sa{sv}"): _Call(Bus.find),  # of what the caller could read
    ("Versions", "s"): _Call(Bus.versions),
    ("Compare", "sss"): _Call(Bus.compare),
    ("RegisterAgent", ""): _Call(Bus.register_agent, tells=True),
    ("UnregisterAgent", ""): _Call(Bus.unregister_agent, tells=True),
    ("Run", "sa{sv}"): _Call(Bus.run, Action.RUN),
    ("Verify", "sa{sv}"): _Call(Bus.verify, Action.VERIFY),
    ("Cancel", "s"): _Call(Bus.cancel, Action.CANCEL),
    ("Eject", "s"): _Call(Bus.eject, Action.EJECT),
    ("Survey", "sa{sv}"): _Call(Bus.survey, Action.MANAGE),
    ("Init", "sa{sv}"): _Call(Bus.init, Action.MANAGE),
    ("Recover", "sa{sv}"): _Call(Bus.recover, Action.MANAGE),
    ("Header", "s"): _Call(Bus.header, Action.MANAGE),
    ("Passphrase", "sa{sv}"): _Call(Bus.passphrase, Action.MANAGE),
    ("Adopt", "s"): _Call(Bus.adopt, Action.MANAGE),
    ("Repair", "sa{sv}"): _Call(Bus.repair, Action.MANAGE),
    ("Browse", "sa{sv}"): _Call(Bus.browse, Action.BROWSE),
    ("ShowOn", "sh"): _Call(Bus.show_on, takes=True),  # and so is who says where it is shown
    ("Close", "s"): _Call(Bus.close_browsing, Action.BROWSE),
    ("Kit", "s"): _Call(Bus.kit, Action.MANAGE),
    ("KitWritten", "ss"): _Call(Bus.kit_written, Action.MANAGE),
    ("Forget", "s"): _Call(Bus.forget, Action.MANAGE),
    ("Resize", "ss"): _Call(Bus.resize, Action.MANAGE),
    ("Restore", "sa{sv}"): _Call(Bus.restore, Action.RESTORE),
    ("HandOver", "ss"): _Call(Bus.hand_over),  # a pipe is given to who asked for the job alone
}
"""Each method and its signature, and who may call it: the table in docs/dbus.md."""


def _close(message: Message) -> None:
    """Close the descriptors that came with it."""
    while message.unix_fds:
        os.close(message.unix_fds.pop())


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
        "job": Variant("s", view.job.value if view.job is not None else ""),
        "last_outcome": Variant("s", view.last_outcome.value if view.last_outcome else ""),
        "last_sentence": Variant("s", _text(view.last_sentence)),
        "last_hint": Variant("s", _text(view.last_hint)),
        "last_finished": Variant("t", int(view.last_finished)),
        "last_success": Variant("t", int(view.last_success)),
        "last_verified": Variant("t", int(view.last_verified)),
        "last_verified_outcome": Variant("s", view.last_verified_outcome),
        "last_verified_sentence": Variant("s", _text(view.last_verified_sentence)),
        "warnings": Variant("as", [_text(warning) for warning in view.warnings]),
        "safe": Variant("b", view.safe),
        "problem": Variant("s", _text(view.problem)),
        "owner": Variant("s", view.owner),
        "shown_to": Variant("s", view.shown_to),
        "reminded": Variant("t", int(view.reminded)),
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
        "data": Variant("s", json.dumps(result.data) if job.kind is JobKind.VERIFY else ""),
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
