"""The agents of login sessions: who they are, which are asked, and how an answer is had.

An agent is a connection on the system bus whose user the bus itself vouches for.  It is asked
only about the drives of its user (:meth:`Agents.for_entry`), and never about anything else
does it hear.

Each request has a pipe of its own, made here, whose write end goes to the agent.  An answer
is there when *nobody* holds the write end any more and 1 to 513 bytes lie in the pipe.
The kernel tells both without a byte being read (EPOLLHUP, FIONREAD), and an agent that dies,
declines or can't be reached is the same without bytes: no answer.  One that writes for
ever, or gives the end away, never hangs up and is no answer when the time is over; it blocks
itself on a full pipe.  Then the kernel moves the bytes into another pipe, of which no agent
ever had an end (splice(2)): what cryptsetup reads ends, whatever the agent does now.

A request that was not even taken from the bus (no reply came, of whatever kind) keeps one of
the few descriptors that the bus holds for us: an agent that leaves two so is asked no more.

The registry lives as long as the daemon; a request as long as somebody waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pwd
import secrets
import select
import struct
import termios
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import attrs

from ..config import Entry
from ..errors import CryptbackError, Refused
from ..text import printable
from . import children, journal
from .tasks import Tasks

PATIENCE = 120.0
"""Seconds that a request stands."""
LONGEST = 513
"""Bytes of an answer: a passphrase of cryptsetup's 512, and a newline."""
MAX_OF_A_USER = 4
"""Agents that one user can have registered."""
MAX_REQUESTS = 6
"""Requests to one agent within :data:`WITHIN` seconds; at most five in a run, two for a PIN."""
WITHIN = 60.0
MAX_UNREAD = 2
"""Requests that an agent may leave without a reply."""

Values = Mapping[str, str | int | bool]


class Link(Protocol):
    """The bus, as far as it is needed here."""

    async def user_of(self, name: str) -> int:
        """The user that the connection *name* belongs to; raises Refused."""
        ...

    async def mind(self, name: str) -> bool:
        """From now on tell when *name* leaves the bus; whether it is still there."""
        ...

    async def unmind(self, name: str) -> None:
        """Tell it no longer."""
        ...

    async def local_users(self) -> frozenset[int]:
        """The users who sit at this computer now."""
        ...

    async def ask(self, name: str, fd: int, values: Values, taken: Callable[[], None]) -> None:
        """Call GetPassphrase of the agent *name*, with a copy of *fd*.

        Where that fails the copy is closed, which tells it.  *taken* is called when it has
        replied, or can't any more.
        """
        ...

    def tell(self, name: str, member: str, request: str) -> None:
        """Call a method of the agent *name* about a *request*; nothing is waited for."""
        ...


@attrs.define
class Registered:
    """An agent."""

    uid: int
    unread: int = 0
    """Requests without a reply."""
    _asked: deque[float] = attrs.field(factory=deque)

    def taken(self) -> None:
        """It replied to a request."""
        self.unread -= 1

    def may_be_asked(self, now: float) -> bool:
        """Whether a request at *now* (monotonic seconds) is not one too many; counts it."""
        while self._asked and self._asked[0] <= now - WITHIN:
            self._asked.popleft()
        if len(self._asked) >= MAX_REQUESTS or self.unread >= MAX_UNREAD:
            return False
        self._asked.append(now)
        return True


@attrs.frozen
class Answer:
    """An answer: ``fd`` (the taker's to close) is the read end of a pipe that holds it."""

    fd: int
    agent: str
    request: str


@attrs.define
class Agents:
    """The registry.  Without a ``link`` there are no agents.  *came* is called for each new one."""

    link: Link | None = None
    came: Callable[[], None] = lambda: None
    _known: dict[str, Registered] = attrs.field(factory=dict)
    _registering: dict[str, int] = attrs.field(factory=dict)
    """The users of those whose presence is still being checked."""
    _nobody: set[str] = attrs.field(factory=set)
    """The drives about which nobody could be asked when that was last wanted."""
    _tasks: Tasks = attrs.field(factory=Tasks)

    async def register(self, name: str) -> None:
        """The connection *name* is an agent from now on; raises Refused."""
        if self.link is None or name in self._known or name in self._registering:
            return
        self._registering[name] = -1
        try:
            uid = await self.link.user_of(name)
            others = [agent.uid for agent in self._known.values()]
            others += self._registering.values()
            if others.count(uid) >= MAX_OF_A_USER:
                raise Refused(f"This user has {MAX_OF_A_USER} agents already.")
            self._registering[name] = uid
            if await self.link.mind(name) and name in self._registering:
                self._known[name] = Registered(uid)
                self.came()
            else:
                await self.link.unmind(name)
        finally:
            self._registering.pop(name, None)

    def left(self, name: str) -> None:
        """The connection *name* is no agent any more, or gone altogether."""
        self._registering.pop(name, None)
        if self._known.pop(name, None) is not None and self.link is not None:
            self._tasks.start(self._unmind(name))

    def all_left(self) -> None:
        """The bus is gone, and with it all connections."""
        for name in [*self._known, *self._registering]:
            self.left(name)

    async def for_entry(self, entry: Entry) -> list[str]:
        """The agents that may be asked about *entry*: its owner's.

        Where it has no owner: those of the users who sit at this computer.
        """
        if self.link is None or not self._known:
            return []
        if entry.owner is None:
            users = await self.link.local_users()
        else:
            users = _user(entry.owner)
        return [name for name, agent in self._known.items() if agent.uid in users]

    def any(self) -> bool:
        """Whether there is any agent."""
        return bool(self._known)

    def note(self, drive: str, who: Sequence[str]) -> None:
        """Remember whether there was anybody (*who*) to be asked about *drive*."""
        if who:
            self._nobody.discard(drive)
        else:
            self._nobody.add(drive)

    def was_nobody_there(self, drive: str) -> bool:
        """Whether nobody could be asked about *drive*, as was noted last; says so once."""
        if drive not in self._nobody:
            return False
        self._nobody.discard(drive)
        return True

    async def ask(self, who: Sequence[str], values: Values) -> Answer | None:
        """The first answer of the agents *who*; the others are told to give up.  None: none.

        *values* is what they are told.  Cancelled, all of them are told to give up.
        """
        asking = {
            asyncio.create_task(self._ask(name, values)) for name in who if self._may_ask(name)
        }
        pending = asking
        deadline = asyncio.get_running_loop().time() + PATIENCE
        try:
            while pending:
                left = deadline - asyncio.get_running_loop().time()
                done, pending = await asyncio.wait(
                    pending, timeout=max(0.0, left), return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    if (answer := task.result()) is not None:
                        asking.remove(task)
                        return answer
                if not done:
                    break
            return None
        finally:
            for task in asking:
                task.cancel()
                task.add_done_callback(self._too_late)

    def tell(self, answer: Answer, *, opened: bool) -> None:
        """Tell the agent whether its *answer* opened the volume."""
        self._tell(answer.agent, "Opened" if opened else "Refused", answer.request)

    def _may_ask(self, name: str) -> bool:
        agent = self._known.get(name)
        if agent is None:
            return False
        if agent.may_be_asked(time.monotonic()):
            return True
        journal.log(
            f"The agent of user {agent.uid} was asked {MAX_REQUESTS} times within"
            f" {WITHIN:.0f} seconds, or does not take what it is asked; it is left out.",
            journal.Priority.WARNING,
        )
        return False

    async def _ask(self, name: str, values: Values) -> Answer | None:
        assert self.link is not None
        agent = self._known[name]
        request = secrets.token_hex(8)
        fd = None
        reading, writing = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(reading, False)
        try:
            try:
                agent.unread += 1
                await self.link.ask(name, writing, {**values, "request": request}, agent.taken)
            finally:
                os.close(writing)
            await hung_up(reading)
            fd = taken(reading)
        finally:
            os.close(reading)
            if fd is None:
                self._tell(name, "Cancel", request)
        return Answer(fd, name, request) if fd is not None else None

    def _too_late(self, task: asyncio.Task[Answer | None]) -> None:
        """Close what was answered after another one."""
        if not task.cancelled() and (late := task.result()) is not None:
            os.close(late.fd)
            self._tell(late.agent, "Cancel", late.request)

    def _tell(self, name: str, member: str, request: str) -> None:
        if self.link is not None and name in self._known:
            self.link.tell(name, member, request)

    async def _unmind(self, name: str) -> None:
        assert self.link is not None
        with contextlib.suppress(CryptbackError):
            await self.link.unmind(name)


def _user(owner: str) -> frozenset[int]:
    try:
        return frozenset({pwd.getpwnam(owner).pw_uid})
    except KeyError:
        journal.log(
            f"The owner {printable(owner, 40)} is not known as a user of this computer.",
            journal.Priority.WARNING,
        )
        return frozenset()


async def hung_up(reading: int) -> None:
    """Wait until nobody holds the write end of the pipe *reading* any more."""
    with select.epoll() as poll:
        poll.register(reading, 0)  # EPOLLHUP is told unasked, and nothing else is wanted
        await children.readable(poll.fileno())


def taken(reading: int) -> int | None:
    """A new pipe with what lies in *reading*, unread; None where that is no answer."""
    (waiting,) = struct.unpack("=i", fcntl.ioctl(reading, termios.FIONREAD, bytes(4)))
    if not 0 < waiting <= LONGEST:
        return None
    ours, fill = os.pipe2(os.O_CLOEXEC)
    moved = 0
    try:
        moved = os.splice(reading, fill, waiting)
    except BlockingIOError:
        pass  # it was drained by whoever kept a way to read it
    finally:
        os.close(fill)
        if moved != waiting:
            os.close(ours)
    return ours if moved == waiting else None
