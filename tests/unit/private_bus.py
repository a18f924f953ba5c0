"""A bus of one's own with the real policy file, a daemon's side of it, and other people."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from dbus_fast import BusType, Message, MessageFlag, MessageType, Variant
from dbus_fast.aio.message_bus import MessageBus

from cryptbackd.daemon.bus import Bus
from cryptbackd.daemon.service import Service
from cryptbackd.daemon.watch import Seen
from cryptbackd.model import Device

ROOT = Path(__file__).parents[2]
NOBODY = 65534
CONFIG = """
<busconfig>
  <type>system</type>
  <listen>unix:path={directory}/socket</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <deny own="*"/>
    <deny send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus"/>
  </policy>
  <policy user="root">
    <allow own="*"/>
    <allow send_destination="*"/>
  </policy>
  <include>{policy}</include>
</busconfig>
"""


@attrs.define
class PrivateBus:
    """A bus that can be stopped, and started anew at the same place."""

    config: Path
    address: str = ""
    _daemon: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Returns when it can be reached."""
        command = ["dbus-daemon", f"--config-file={self.config}", "--nofork", "--print-address=1"]
        pipe = asyncio.subprocess.PIPE
        self._daemon = await asyncio.create_subprocess_exec(
            *command, stdout=pipe, stderr=asyncio.subprocess.DEVNULL
        )
        assert self._daemon.stdout is not None
        self.address = (await self._daemon.stdout.readline()).decode().strip()

    async def stop(self) -> None:
        """Returns when it is gone."""
        if self._daemon is not None:
            daemon, self._daemon = self._daemon, None
            with contextlib.suppress(ProcessLookupError):  # it is gone already
                daemon.terminate()
            await daemon.wait()


@contextlib.asynccontextmanager
async def private_bus(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[PrivateBus]:
    """It is there for as long as the block lasts."""
    directory = tempfile.mkdtemp(prefix="cryptback-bus-")
    os.chmod(directory, 0o755)  # others are to reach it
    policy = ROOT / "systemd" / "dbus" / "org.cryptback1.conf"
    config = Path(directory) / "config"
    config.write_text(CONFIG.format(directory=directory, policy=policy))
    bus = PrivateBus(config)
    try:
        await bus.start()
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", bus.address)
        yield bus
    finally:
        await bus.stop()
        shutil.rmtree(directory)


@contextlib.asynccontextmanager
async def served(service: Service) -> AsyncIterator[Bus]:
    """The daemon's side, with a device /dev/sdz1 that anybody may name."""
    bus = Bus(service, lambda _path: Seen(Device("/dev/sdz1", 8, 1, "/dev/sdz", 9), "A stick"))
    await bus.connect()
    service.work_changed = bus.work_changed
    service.remind = bus.remind
    try:
        yield bus
    finally:
        inside = bus._bus
        bus.close()
        if inside is not None:
            await gone(inside)


async def gone(bus: MessageBus) -> None:
    """Wait for the end of a connection; dbus-fast leaves the socket to the garbage collector."""
    with contextlib.suppress(OSError, EOFError):  # the bus went first
        await bus.wait_for_disconnect()  # type: ignore[no-untyped-call]
    for part in (getattr(bus, "_stream", None), bus._sock):
        if part is not None:
            part.close()


@contextlib.asynccontextmanager
async def client() -> AsyncIterator[MessageBus]:
    """Another connection of root's."""
    bus = await MessageBus(bus_type=BusType.SYSTEM, negotiate_unix_fd=True).connect()
    try:
        yield bus
    finally:
        bus.disconnect()
        await gone(bus)


async def ask(
    bus: MessageBus, member: str, signature: str = "", *body: Any, interactive: bool = False
) -> Message:
    """The reply to a call of the daemon."""
    flags = MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION if interactive else MessageFlag.NONE
    reply = await bus.call(
        Message(
            destination="org.cryptback1",
            path="/org/cryptback1",
            interface="org.cryptback1.Manager",
            member=member,
            signature=signature,
            body=list(body),
            flags=flags,
        )
    )
    assert reply is not None
    return reply


async def as_nobody(script: Path, *args: str) -> str:
    """What a script says that an ordinary user runs, who has no session."""
    process = await asyncio.create_subprocess_exec(
        "/usr/bin/python3", "-I", "-", *args, user=NOBODY, group=NOBODY, extra_groups=[],
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _err = await process.communicate(script.read_bytes())
    assert process.returncode == 0
    return out.decode()


@attrs.define
class Polkit:
    """In polkit's place: remembers the questions, and answers as it is told to."""

    bus: MessageBus
    allowed: bool = False
    silent: bool = False
    asked: list[list[Any]] = attrs.field(factory=list)
    taken_back: list[str] = attrs.field(factory=list)

    async def come(self) -> None:
        """Take the name."""
        self.bus.add_message_handler(self._received)
        await self.bus.request_name("org.freedesktop.PolicyKit1")

    def _received(self, message: Message) -> Message | bool | None:
        if message.message_type is not MessageType.METHOD_CALL:
            return None
        if message.member == "CancelCheckAuthorization":
            self.taken_back += message.body
            return Message.new_method_return(message)
        self.asked.append(message.body)
        if self.silent:
            return True
        answer = [self.allowed, not self.allowed, {}]
        return Message.new_method_return(message, "(bba{ss})", [answer])


@attrs.define
class Logind:
    """In logind's place: gives locks, and tells of sleep."""

    bus: MessageBus
    locks: list[int] = attrs.field(factory=list)
    """The ends of pipes that show whether a lock is still held."""

    async def come(self) -> None:
        """Take the name."""
        self.bus.add_message_handler(self._received)
        await self.bus.request_name("org.freedesktop.login1")

    def prepare(self, member: str, goes: bool) -> None:
        """Tell that the computer goes to sleep, or is back."""
        self.bus.send(
            Message(
                message_type=MessageType.SIGNAL,
                path="/org/freedesktop/login1",
                interface="org.freedesktop.login1.Manager",
                member=member,
                signature="b",
                body=[goes],
            )
        )

    def _received(self, message: Message) -> Message | None:
        if message.message_type is not MessageType.METHOD_CALL:
            return None
        if message.member == "Get":
            return Message.new_method_return(message, "v", [Variant("t", 2_000_000)])
        reading, writing = os.pipe()
        self.locks.append(reading)
        os.set_blocking(reading, False)
        reply = Message.new_method_return(message, "h", [0], [writing])
        asyncio.get_running_loop().call_later(0.2, os.close, writing)
        return reply

    def held(self) -> int:
        """How many locks are held."""
        count = 0
        for lock in self.locks:
            try:
                count += os.read(lock, 1) != b""
            except BlockingIOError:
                count += 1
        return count
