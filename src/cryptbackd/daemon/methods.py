"""The methods of ``org.cryptback1``: what each does with its arguments, and who may call it.

A method is called when it was decided that its caller may; the answer goes back from there
(``bus``).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import attrs
from dbus_fast import Message, Variant

from .. import moment
from ..errors import ConfigError, CryptbackError, Refused
from ..text import printable
from . import browsing, interface, sessions
from .authority import Action, is_told
from .clients import Clients
from .jobs import Job
from .queries import Queries
from .results import Results
from .service import Service
from .tasks import Tasks
from .values import drive_values, result_values, run_values, short_enough
from .watch import Seen

_PARENTS = {
    "/": '<node><node name="org"/></node>',
    "/org": '<node><node name="cryptback1"/></node>',
}
MAX_RUNS = 1000
"""The longest history that is told in one answer."""
MAX_FOUND = 10_000
"""The most files that a search tells of, on each drive."""
MAX_PATTERN = 4096
"""Characters of what is searched for."""


class Line(Protocol):
    """The bus, as far as the methods ask something of others on it."""

    async def user_of(self, name: str) -> int:
        """The user that the connection *name* belongs to; raises Refused."""
        ...

    async def ask_of(
        self, name: str, path: str, interface: str, member: str, signature: str, body: list[Any]
    ) -> list[Any]:
        """What *name* answers to a call; raises Refused where it does not."""
        ...

    async def ask_bus(self, member: str, signature: str, body: list[Any]) -> list[Any]:
        """What the bus itself answers; raises Refused."""
        ...


class Answer(NamedTuple):
    """What a method answers."""

    signature: str
    body: list[Any]
    gives: tuple[int, ...] = ()
    """Descriptors that go with it, closed once it was sent."""


@attrs.define
class Methods:
    """Each takes the message by which it was called; *resolve* turns a path into a device."""

    service: Service
    resolve: Callable[[str], Seen]
    line: Line
    clients: Clients
    results: Results = attrs.field(factory=Results)
    queries: Queries = attrs.field(factory=Queries)
    _tasks: Tasks = attrs.field(factory=Tasks)

    async def list_drives(self, message: Message) -> Answer:
        """ListDrives."""
        views = self.service.views.all()
        told = await self._told(message, {view.name for view in views})
        return Answer("aa{sv}", [[drive_values(view, texts=told[view.name]) for view in views]])

    async def get_drive(self, message: Message) -> Answer:
        """GetDrive."""
        name = message.body[0]
        view = self.service.views.of(name)
        told = await self._told(message, {name})
        return Answer("a{sv}", [drive_values(view, texts=told[name])])

    def tells(self, name: str, user: int | None) -> bool:
        """Whether what names files on the drive *name* is for *user*; None: for everybody."""
        try:
            owner = self.service.owner(name)
        except CryptbackError:
            owner = "root"
        return is_told(owner, user)

    async def _told(self, message: Message, names: set[str]) -> dict[str, bool]:
        """For each of these drives: whether what names files on it is for the sender."""
        user = None
        if not all(self.tells(name, None) for name in names):
            user = await self.line.user_of(message.sender or "")
        return {name: self.tells(name, user) for name in names}

    async def get_result(self, message: Message) -> Answer:
        """GetResult."""
        found = self.results.of(message.body[0])
        if found is None:
            return Answer("a{sv}", [{}])
        user = await self.line.user_of(message.sender or "")
        job, result = found
        return Answer("a{sv}", [result_values(job, result, texts=is_told(job.owner, user))])

    async def get_history(self, message: Message) -> Answer:
        """GetHistory."""
        name, limit = message.body
        runs = short_enough(self.service.history.runs(name or None, min(limit, MAX_RUNS)))
        if name and not runs:
            with contextlib.suppress(ConfigError):
                self.service.store.get(name)
        told = await self._told(message, {run.entry for run in runs})
        return Answer("aa{sv}", [[run_values(run, texts=told[run.entry]) for run in runs]])

    async def find(self, message: Message) -> Answer:
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
            "drives": self.service.requests.remembered(drive or None),
        }
        return await self._asked(message, question)

    async def versions(self, message: Message) -> Answer:
        """Versions; what the warnings say is for whom the drive is."""
        name = message.body[0]
        user = await self.line.user_of(message.sender or "")
        texts = is_told(self.service.owner(name), user)
        question = {
            "what": "versions",
            "drives": self.service.requests.remembered(name),
            "texts": texts,
        }
        return await self._asked(message, question)

    async def compare(self, message: Message) -> Answer:
        """Compare."""
        name, *between = message.body
        for when in between:
            moment.want_short(when)
        drives = self.service.requests.remembered(name)
        return await self._asked(message, {"what": "compare", "drives": drives, "between": between})

    async def _asked(self, message: Message, question: dict[str, Any]) -> Answer:
        """The pipe from which the answer comes: of what the sender could read."""
        user = await self.line.user_of(message.sender or "")
        pipe = self.queries.ask(user, question)
        return Answer("h", [0], (pipe,))

    async def run(self, message: Message) -> Answer:
        """Run."""
        name, options = message.body[0], _plain(message.body[1])
        for key, value in options.items():
            if key not in ("full", "accept") or not isinstance(value, bool):
                raise Refused(f"A run has no such option: {printable(key, 40)}.")
        return Answer("s", [self.service.requests.run(name, **options)])

    async def verify(self, message: Message) -> Answer:
        """Verify."""
        return Answer("s", [self.service.requests.verify(message.body[0], _plain(message.body[1]))])

    async def cancel(self, message: Message) -> Answer:
        """Cancel."""
        return Answer("as", [self.service.requests.cancel(message.body[0])])

    async def eject(self, message: Message) -> Answer:
        """Eject."""
        return Answer("as", [self.service.requests.eject(message.body[0])])

    async def survey(self, message: Message) -> Answer:
        """Survey."""
        seen = self.resolve(message.body[0])
        return Answer(
            "s", [json.dumps(await self.service.requests.survey(seen, _plain(message.body[1])))]
        )

    async def init(self, message: Message) -> Answer:
        """Init."""
        seen = self.resolve(message.body[0])
        job = self.service.requests.init(seen, _plain(message.body[1]))
        return await self._minded(message, job)

    async def recover(self, message: Message) -> Answer:
        """Recover."""
        seen = self.resolve(message.body[0])
        options = _plain(message.body[1])
        kinds = {"container": str, "fingerprint": str, "header": bool}
        for key, value in options.items():
            if not isinstance(value, kinds.get(key, ())):
                raise Refused(f"To recover settings has no such option: {printable(key, 40)}.")
        return await self._minded(message, self.service.requests.recover(seen, options))

    async def header(self, message: Message) -> Answer:
        """Header."""
        return Answer("s", [json.dumps(await self.service.requests.look(message.body[0]))])

    async def passphrase(self, message: Message) -> Answer:
        """Passphrase."""
        job = self.service.requests.passphrase(message.body[0], _plain(message.body[1]))
        return await self._minded(message, job)

    async def adopt(self, message: Message) -> Answer:
        """Adopt."""
        return await self._minded(message, self.service.requests.adopt(message.body[0]))

    async def repair(self, message: Message) -> Answer:
        """Repair."""
        options = _plain(message.body[1])
        device = options.pop("device", "")
        if options or not isinstance(device, str):
            raise Refused("A repair has no such option.")
        seen = self.resolve(device) if device else None
        return Answer("s", [self.service.requests.repair(message.body[0], seen)])

    async def browse(self, message: Message) -> Answer:
        """Browse."""
        name, options = message.body
        if options:
            raise Refused("Browsing has no such option.")
        values = await self.line.ask_bus("GetConnectionCredentials", "s", [message.sender])
        user, process, told = browsing.credentials(_plain(values[0]))
        groups = browsing.groups_of(user, told)
        job = self.service.requests.browse(name, user, groups)
        answer = await self._minded(message, job)
        self._tasks.start(self._end_with_login(job, user, process))
        return answer

    async def close_browsing(self, message: Message) -> Answer:
        """Close."""
        return Answer("as", [self.service.requests.close(message.body[0])])

    async def _end_with_login(self, job: Job, user: int, process: int) -> None:
        """End *job* when whoever asked for it has logged out."""
        ask = partial(self.line.ask_of, sessions.NAME)
        try:
            login = await browsing.Login.of(ask, user, process)
        except Refused:
            return  # without logind there is no logout
        while not job.over.done():
            await asyncio.wait([job.over], timeout=browsing.LOOKING)
            with contextlib.suppress(Refused):  # it may be there again the next time
                if not job.over.done() and await login.is_over(ask):
                    self.service.requests.client_left(job)
                    return

    async def kit(self, message: Message) -> Answer:
        """Kit."""
        facts, header = await self.service.requests.kit(message.body[0])
        return Answer("sh", [json.dumps(facts), 0], (header,))

    async def kit_written(self, message: Message) -> Answer:
        """KitWritten."""
        self.service.requests.kit_written(message.body[0], message.body[1])
        return Answer("", [])

    async def forget(self, message: Message) -> Answer:
        """Forget."""
        return Answer(
            "s", [json.dumps(attrs.asdict(self.service.requests.forget(message.body[0])))]
        )

    async def resize(self, message: Message) -> Answer:
        """Resize."""
        return Answer("s", [self.service.requests.resize(*message.body)])

    async def restore(self, message: Message) -> Answer:
        """Restore."""
        name, options = message.body[0], _plain(message.body[1])
        at = options.pop("at", "")
        if options or not isinstance(at, str):
            raise Refused("A restore has no such option.")
        moment.want_short(at)
        values = await self.line.ask_bus("GetConnectionCredentials", "s", [message.sender])
        user, _process, told = browsing.credentials(_plain(values[0]))
        groups = browsing.groups_of(user, told)
        return await self._minded(message, self.service.requests.restore(name, at, user, groups))

    async def _minded(self, message: Message, job: Job) -> Answer:
        """The id of *job*, which ends with whoever asked for it."""
        await self.clients.mind(message.sender or "", job)
        return Answer("s", [job.id])

    async def hand_over(self, message: Message) -> Answer:
        """HandOver; only who asked for a job gets its pipes."""
        run, purpose = message.body
        self.clients.want_asker(message.sender or "", run)
        return Answer("h", [0], (self.service.requests.hand_over(run, purpose),))

    async def introspect(self, message: Message) -> Answer:
        """Introspect, of the standard interface."""
        return Answer("s", [_PARENTS.get(message.path or "") or interface.XML])

    async def register_agent(self, message: Message) -> Answer:
        """RegisterAgent."""
        await self.service.agents.register(message.sender or "")
        return Answer("", [])

    async def unregister_agent(self, message: Message) -> Answer:
        """UnregisterAgent."""
        self.service.agents.left(message.sender or "")
        return Answer("", [])


class Call(NamedTuple):
    """A method, and who may call it."""

    do: Callable[[Methods, Message], Awaitable[Answer]]
    action: Action | None = None
    """What polkit is asked for; None: everybody may."""
    tells: bool = False
    """It is of use without an answer, too."""


INTROSPECT = Call(Methods.introspect)
CALLS: dict[tuple[str, str], Call] = {
    ("ListDrives", ""): Call(Methods.list_drives),
    ("GetDrive", "s"): Call(Methods.get_drive),
    ("GetHistory", "su"): Call(Methods.get_history),
    ("GetResult", "s"): Call(Methods.get_result),  # with what names files for its owner alone
    ("Find", "sa{sv}"): Call(Methods.find),  # of what the caller could read
    ("Versions", "s"): Call(Methods.versions),
    ("Compare", "sss"): Call(Methods.compare),
    ("RegisterAgent", ""): Call(Methods.register_agent, tells=True),
    ("UnregisterAgent", ""): Call(Methods.unregister_agent, tells=True),
    ("Run", "sa{sv}"): Call(Methods.run, Action.RUN),
    ("Verify", "sa{sv}"): Call(Methods.verify, Action.VERIFY),
    ("Cancel", "s"): Call(Methods.cancel, Action.CANCEL),
    ("Eject", "s"): Call(Methods.eject, Action.EJECT),
    ("Survey", "sa{sv}"): Call(Methods.survey, Action.MANAGE),
    ("Init", "sa{sv}"): Call(Methods.init, Action.MANAGE),
    ("Recover", "sa{sv}"): Call(Methods.recover, Action.MANAGE),
    ("Header", "s"): Call(Methods.header, Action.MANAGE),
    ("Passphrase", "sa{sv}"): Call(Methods.passphrase, Action.MANAGE),
    ("Adopt", "s"): Call(Methods.adopt, Action.MANAGE),
    ("Repair", "sa{sv}"): Call(Methods.repair, Action.MANAGE),
    ("Browse", "sa{sv}"): Call(Methods.browse, Action.BROWSE),
    ("Close", "s"): Call(Methods.close_browsing, Action.BROWSE),
    ("Kit", "s"): Call(Methods.kit, Action.MANAGE),
    ("KitWritten", "ss"): Call(Methods.kit_written, Action.MANAGE),
    ("Forget", "s"): Call(Methods.forget, Action.MANAGE),
    ("Resize", "ss"): Call(Methods.resize, Action.MANAGE),
    ("Restore", "sa{sv}"): Call(Methods.restore, Action.RESTORE),
    ("HandOver", "ss"): Call(Methods.hand_over),  # a pipe is given to who asked for the job alone
}
"""Each method and its signature, and who may call it: the table in docs/dbus.md."""


def _plain(options: dict[str, Variant]) -> dict[str, Any]:
    return {key: variant.value for key, variant in options.items()}
