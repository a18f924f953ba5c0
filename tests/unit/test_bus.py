"""The daemon on a bus of its own: who may call what, and what strangers can't do to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dbus_fast import Message, MessageType, Variant

from cryptbackd import closing
from cryptbackd.daemon import authority, connection, interface
from cryptbackd.daemon.authority import Action
from cryptbackd.daemon.bus import Bus
from cryptbackd.daemon.methods import CALLS
from cryptbackd.daemon.requests import Requests
from cryptbackd.model import JobKind, Outcome, Phase
from tests import hostile
from tests.unit.private_bus import (
    ROOT,
    Logind,
    Polkit,
    as_nobody,
    ask,
    client,
    gone,
    private_bus,
    served,
)
from tests.unit.test_service import WAIT, Play, World, play, stick  # noqa: F401

pytestmark = pytest.mark.usefixtures("fake_worker", "as_root")

HOSTILE = Path(hostile.__file__)
OWN = interface.INTERFACE
Scene = Callable[[World, Bus], Awaitable[None]]


@contextlib.asynccontextmanager
async def polkit() -> AsyncIterator[Polkit]:
    async with client() as bus:
        there = Polkit(bus)
        await there.come()
        yield there


@contextlib.asynccontextmanager
async def logind() -> AsyncIterator[Logind]:
    async with client() as bus:
        there = Logind(bus)
        await there.come()
        yield there
        for lock in there.locks:
            os.close(lock)


@pytest.fixture
def act(play: Play, monkeypatch: pytest.MonkeyPatch) -> Callable[[Scene], None]:  # noqa: F811
    """Play a scene with the service on a bus."""

    def run(scene: Scene) -> None:
        async def on_a_bus(world: World) -> None:
            async with private_bus(monkeypatch), served(world.service) as bus:
                await scene(world, bus)
                # Who asked may have left before there was an answer.
                while bus._methods.queries.open():
                    await asyncio.sleep(0.01)

        play(on_a_bus)

    return run


Act = Callable[[Scene], None]


async def nobody_asks(member: str, *, interactive: bool = False) -> str:
    """The words in which an ordinary user is refused; empty: they are not."""
    told = json.loads(await as_nobody(HOSTILE, "ask", member, "4" if interactive else "0"))
    return str(told["words"]) if told["refused"] else ""


# Who may call what: the code, the introspection, the documentation and the files agree.


def described() -> dict[str, str]:
    """The table in the documentation: methods, and who may call them."""
    text = (ROOT / "docs" / "dbus.md").read_text()
    return dict(re.findall(r"^\| `(\w+)` \| `\([^`]*` \| ([^|]+?) \|", text, re.MULTILINE))


def introspected() -> dict[str, str]:
    """The methods of the interface and their signatures, as introspection tells them."""
    (own,) = [each for each in ET.fromstring(interface.XML) if each.get("name") == OWN]
    assert [each.tag for each in own if each.tag == "property"] == []
    return {
        str(method.get("name")): "".join(
            str(arg.get("type")) for arg in method if arg.get("direction") == "in"
        )
        for method in own
        if method.tag == "method"
    }


def test_each_method_is_in_the_table() -> None:
    table = described()
    assert dict(CALLS) != {}
    assert {(name, kinds) for name, kinds in introspected().items()} == set(CALLS)
    assert set(table) == {name for name, _kinds in CALLS}
    for (name, _kinds), call in CALLS.items():
        if name == "HandOver":
            assert table[name] == "who asked for that job"
        else:
            wanted = f"`{call.action}`" if call.action is not None else "everybody"
            assert table[name] == wanted, name


def test_each_signal_is_described() -> None:
    text = (ROOT / "docs" / "dbus.md").read_text()
    (own,) = [each for each in ET.fromstring(interface.XML) if each.get("name") == OWN]
    signals = [str(each.get("name")) for each in own if each.tag == "signal"]
    assert re.findall(r"^### Signal `(\w+)`", text, re.MULTILINE) == signals


@pytest.mark.parametrize(("key", "kinds"), [("phase", Phase), ("job", JobKind)])
def test_each_phase_and_job_is_described(key: str, kinds: type[Phase] | type[JobKind]) -> None:
    text = (ROOT / "docs" / "dbus.md").read_text()
    (told,) = re.findall(rf"^\| `{key}` \| `s` \| (.*) \|$", text, re.MULTILINE)
    assert set(re.findall(r"`([a-z-]+)`", told)) >= {str(kind) for kind in kinds}


def test_the_introspection_in_the_documentation_is_the_real_one() -> None:
    assert interface.XML in (ROOT / "docs" / "org.cryptback1.xml").read_text()


def test_the_bus_lets_calls_of_these_methods_through_and_nothing_else() -> None:
    rules = ET.parse(ROOT / "systemd" / "dbus" / "org.cryptback1.conf").getroot()
    (everybody,) = [policy for policy in rules if policy.get("context") == "default"]
    allowed = [rule.attrib for rule in everybody if rule.tag == "allow"]
    assert {rule["send_type"] for rule in allowed} == {"method_call"}
    own = {rule.get("send_member") for rule in allowed if rule["send_interface"] == OWN}
    assert own == {name for name, _kinds in CALLS}


def test_polkit_knows_each_action() -> None:
    root = ET.parse(ROOT / "systemd" / "dbus" / "org.cryptback1.policy").getroot()
    actions = {str(each.get("id")): each for each in root if each.tag == "action"}
    assert set(actions) == {f"org.cryptback1.{action}" for action in Action}
    for name, action in actions.items():
        defaults = {each.tag: each.text for each in action.iterfind("defaults/*")}
        assert defaults["allow_any"] == defaults["allow_inactive"] == "auth_admin", name
    assert set(authority._MESSAGES) == set(Action)


# Who may do what.


def test_without_polkit_root_alone_may(act: Act) -> None:
    async def scene(world: World, _bus: Bus) -> None:
        world.service.resync([stick()])
        await world.result()
        for (name, _kinds), call in CALLS.items():
            refused = await nobody_asks(name)
            if name == "HandOver":
                assert "Nothing is wanted from you" in refused
            elif call.action is None:
                assert refused == "", name
            else:
                assert "Only root may ask for that." in refused, name
        async with client() as root:
            assert (await ask(root, "Run", "sa{sv}", "home", {})).signature == "s"
            await world.result(1)

    act(scene)


def test_polkit_is_asked_about_the_caller_by_name(act: Act) -> None:
    async def scene(world: World, _bus: Bus) -> None:
        world.service.resync([stick()])
        await world.result()
        async with polkit() as there:
            assert "without an administrator" in await nobody_asks("Run")
            there.allowed = True
            assert await nobody_asks("Run", interactive=True) == ""
            await world.result(1)
            assert "Nothing is going on" in await nobody_asks("Cancel")
            assert await nobody_asks("Eject") == ""
            await world.result(2)
        asked = [
            (action.removeprefix("org.cryptback1."), flags)
            for _s, action, _d, flags, _c in there.asked
        ]
        assert asked == [("run", 0), ("run", 1), ("cancel", 0), ("eject", 0)]
        for (kind, subject), _action, details, _flags, _cancel in there.asked:
            assert kind == "system-bus-name"
            assert subject["name"].value.startswith(":1.")
            assert details["drive"] == "home"

    act(scene)


@pytest.mark.parametrize(
    ("owner", "action"), [("nobody", "run"), ("root", "manage"), ("no-such-user", "manage")]
)
def test_a_drive_of_somebody_else_takes_an_administrator(
    act: Act, tmp_path: Path, owner: str, action: str
) -> None:
    async def scene(world: World, _bus: Bus) -> None:
        file = tmp_path / "home.toml"
        file.write_text(f'owner = "{owner}"\n' + file.read_text())
        async with polkit() as there:
            there.allowed = True
            assert "not plugged in" in await nobody_asks("Run")
        assert [body[1] for body in there.asked] == [f"org.cryptback1.{action}"]

    act(scene)


def test_a_person_who_does_not_answer_polkit_is_not_waited_for(
    act: Act, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authority, "_INTERACTIVE", 0.3)

    async def scene(_world: World, _bus: Bus) -> None:
        async with polkit() as there:
            there.silent = True
            assert "Nobody showed in time" in await nobody_asks("Run", interactive=True)
            assert there.taken_back == [there.asked[0][4]]

    act(scene)


def test_a_pipe_is_given_to_who_asked_for_the_init(act: Act) -> None:
    async def scene(world: World, _bus: Bus) -> None:
        world.script = WAIT
        async with client() as one, client() as other:
            options = {"name": Variant("s", "new"), "include": Variant("as", ["/etc"])}
            (run,) = (await ask(one, "Init", "sa{sv}", "/dev/sdz1", options)).body
            stolen = await ask(other, "HandOver", "ss", run, "format")
            assert stolen.message_type is MessageType.ERROR
            assert "from you" in stolen.body[0]
            given = await ask(one, "HandOver", "ss", run, "format")
            assert given.signature == "h"
            os.close(given.unix_fds[0])
            again = await ask(one, "HandOver", "ss", run, "format")
            assert again.message_type is MessageType.ERROR
        assert (await world.result()).outcome is Outcome.CANCELLED  # who asked has left

    act(scene)


@pytest.mark.parametrize(
    ("key", "value"),
    [("include", Variant("s", "/etc")), ("include", Variant("ay", b"x")),
     ("include", Variant("av", [Variant("s", "/etc")])), ("size", Variant("s", "8G")),
     ("size", Variant("b", True)), ("owner", Variant("a{sv}", {})), ("run", Variant("u", 1)),
     ("filesystem", Variant("h", 7))],
)  # fmt: skip
def test_options_of_a_wrong_type_are_refused(act: Act, key: str, value: Variant) -> None:
    async def scene(_world: World, _bus: Bus) -> None:
        async with client() as root:
            for member in ("Init", "Survey"):
                told = await ask(
                    root, member, "sa{sv}", "/dev/sdz1", {"name": Variant("s", "n"), key: value}
                )
                assert told.message_type is MessageType.ERROR
                assert f"The option {key}" in told.body[0]

    act(scene)


# What strangers can't do.


@pytest.mark.parametrize("attack", sorted(hostile.ATTACKS.keys() - {"unclosable"}))
def test_others_are_served_whatever_a_stranger_sends(
    act: Act, attack: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    async def scene(_world: World, bus: Bus) -> None:
        stop = f"/tmp/cryptback-stop-{os.getpid()}"
        before = len(os.listdir("/proc/self/fd"))
        watching = asyncio.create_task(as_nobody(HOSTILE, "look", stop, str(os.getpid())))
        sent = json.loads(await as_nobody(HOSTILE, attack))
        Path(stop).touch()
        seen = json.loads(await watching)
        os.unlink(stop)
        told = f"{seen['slowest']:.3f} s, the daemon at work for {seen['busiest']:.2f} s of it"
        record_property(f"{attack}: {sent} messages, slowest answer", told)
        assert seen["busiest"] < 0.25, told
        assert seen["slowest"] < 1.0, told
        assert seen["count"] > 1
        while bus._methods.queries.open():
            await asyncio.sleep(0.05)
        assert len(os.listdir("/proc/self/fd")) == before
        assert bus._turns._counts == {}

    act(scene)


def test_nobody_but_root_sends_it_a_descriptor(act: Act) -> None:
    """Whatever the message is, and from the first moment on."""

    async def scene(_world: World, bus: Bus) -> None:
        came: list[int] = []

        class Counting(closing.Closer):
            def close(self, fds: list[int]) -> None:
                came.append(len(fds))
                super().close(fds)

        bus._closer = Counting()
        await as_nobody(HOSTILE, "descriptors")
        assert not any(came)
        async with client() as root:
            reading, writing = os.pipe()
            message = Message(
                message_type=MessageType.SIGNAL,
                destination="org.cryptback1",
                path="/org/cryptback1",
                interface="org.cryptback1.Manager",
                member="Anything",
                unix_fds=[writing],
            )
            await root.send(message)
            os.close(writing)
            assert await asyncio.to_thread(os.read, reading, 1) == b""  # it was closed over there
            os.close(reading)
        assert 1 in came

    act(scene)


def test_no_descriptor_comes_before_the_name_is_ours(act: Act) -> None:
    async def scene(_world: World, bus: Bus) -> None:
        inside = bus._bus
        assert inside is not None
        bus.close()
        await gone(inside)
        came: list[int] = []
        stop = f"/tmp/cryptback-stop-{os.getpid()}"
        sending = asyncio.create_task(as_nobody(HOSTILE, "early", stop))
        await asyncio.sleep(0.5)
        for _turn in range(100):
            joined = connection.make()
            joined.add_message_handler(lambda message: came.append(len(message.unix_fds)))
            await connection.join(joined, interface.NAME)
            joined.disconnect()
            await gone(joined)
        Path(stop).touch()
        assert int(await sending) > 1000
        os.unlink(stop)
        assert came
        assert not any(came)

    act(scene)


def test_an_agent_answers_without_a_descriptor(act: Act) -> None:
    """Not even a reply that was asked for may bring one."""

    async def scene(_world: World, bus: Bus) -> None:
        taken: list[bool] = []
        reading, writing = os.pipe()
        for carried in ("0", "1"):
            answering = asyncio.create_task(as_nobody(HOSTILE, "answer", carried))
            while not (known := list(bus.service.agents._known)):
                await asyncio.sleep(0.02)
            await bus.ask(known[0], writing, {}, lambda: taken.append(True))
            assert json.loads(await answering) == {"asked": True}
            await asyncio.sleep(0.2)
            assert len(taken) == 1, carried
            await until(lambda: not bus.service.agents._known)
        os.close(reading)
        os.close(writing)

    act(scene)


def test_what_cannot_be_closed_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    going_on = threading.Event()
    left: list[int] = []

    def stuck(fd: int) -> None:
        assert going_on.wait(20)
        left.append(fd)

    monkeypatch.setattr(closing, "os", SimpleNamespace(close=stuck))
    closer = closing.Closer()
    fds = list(range(1000, 1200))
    closer.close(fds)
    assert fds == []
    assert threading.active_count() < 10
    going_on.set()
    deadline = time.monotonic() + 10
    while len(left) < closing._MOST and time.monotonic() < deadline:
        time.sleep(0.01)
    # One more was being closed, perhaps; the others stay open.
    assert closing._MOST <= len(left) <= closing._MOST + 1


def test_a_mistake_in_an_answer_is_told_and_ends_nothing(
    act: Act, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(world: World, _bus: Bus) -> None:
        async with client() as root:
            with monkeypatch.context() as wrong:
                wrong.setattr(Requests, "cancel", lambda _self, name: [][len(name)])
                told = await ask(root, "Cancel", "s", "home")
            assert told.error_name == "org.cryptback1.Error.CryptbackError"
            sentence, hint = told.body[0].split("\n")
            assert sentence == "cryptbackd made a mistake."
            assert "journal" in hint
            assert "IndexError: list index out of range" in world.said.texts()
            assert (await ask(root, "ListDrives")).signature == "aa{sv}"

    act(scene)


@pytest.mark.parametrize(
    ("member", "kinds", "body"),
    [
        ("Verify", "sa{sv}", ["home", {"at": Variant("s", "x" * 200_000)}]),
        ("Restore", "sa{sv}", ["home", {"at": Variant("s", "x" * 200_000)}]),
        ("Compare", "sss", ["home", "oldest", "x" * 200_000]),
        ("Find", "sa{sv}", ["x" * 200_000, {}]),
        ("Resize", "ss", ["home", "max" + " " * 200_000]),
        ("Passphrase", "sa{sv}", ["home", {"action": Variant("s", "x" * 200_000)}]),
        ("Run", "sa{sv}", ["home", {"x" * 200_000: Variant("b", True)}]),
    ],
)
def test_what_is_too_long_is_refused_in_few_words(
    act: Act, member: str, kinds: str, body: list[Any]
) -> None:
    async def scene(world: World, _bus: Bus) -> None:
        world.service.arrived(stick())
        await world.result()
        async with client() as root:
            told = await ask(root, member, kinds, *body)
            assert told.error_name == "org.cryptback1.Error.Refused"
            assert len(told.body[0]) < 1000

    act(scene)


def test_too_many_calls_at_once_are_refused(act: Act) -> None:
    async def scene(_world: World, bus: Bus) -> None:
        async with polkit() as there, client() as root:
            there.silent = True
            calls = [asyncio.create_task(ask(root, "ListDrives")) for _ in range(100)]
            replies = await asyncio.gather(*calls)
        refused = [r.error_name for r in replies if r.message_type is MessageType.ERROR]
        assert 0 < len(refused) < 100
        assert set(refused) == {"org.freedesktop.DBus.Error.LimitsExceeded"}
        assert bus._turns._counts == {}

    act(scene)


# What names files.


@pytest.mark.parametrize(
    ("owner", "told", "withheld"),
    [(None, True, False), ("nobody", True, True), ("root", False, True)],
)
def test_warnings_are_for_whom_the_drive_is_for(
    act: Act, tmp_path: Path, owner: str | None, told: bool, withheld: bool
) -> None:
    async def scene(world: World, bus: Bus) -> None:
        if owner:
            file = tmp_path / "home.toml"
            file.write_text(f'owner = "{owner}"\n' + file.read_text())
        world.script = [["phase", "syncing"], ["warn", "A file."], ["done"]]
        async with client() as listener:
            heard: list[Message] = []
            listener.add_message_handler(heard.append)
            rule = "type='signal',interface='org.cryptback1.Manager'"
            await listener.call(
                Message(
                    destination="org.freedesktop.DBus", path="/org/freedesktop/DBus",
                    interface="org.freedesktop.DBus", member="AddMatch", signature="s", body=[rule],
                )
            )  # fmt: skip
            world.service.arrived(stick())
            await world.result()
            bus.job_finished(*world.ends[0])
            await until(lambda: any(each.member == "JobFinished" for each in heard))
            for method, kinds, body in (
                ("GetDrive", "s", ["home"]),
                ("GetResult", "s", [world.ends[0][0].id]),
                ("GetHistory", "su", ["home", 7]),
            ):
                assert "A file." in str((await ask(listener, method, kinds, *body)).body), method
        (values,) = [each.body[1] for each in heard if each.member == "JobFinished"]
        assert values["withheld"].value is withheld
        assert values["warned"].value == 1
        assert values["warnings"].value == ([] if withheld else ["A file."])
        for method in ("GetDrive", "ListDrives", "GetHistory"):
            answer = json.loads(await as_nobody(HOSTILE, "ask", method))
            assert not answer["refused"], method
            assert ("A file." in answer["words"]) is told, method
        assert authority.is_told(owner, 0)
        assert authority.is_told(owner, 65534) is told

    act(scene)


# Sleep.


def test_the_computer_waits_as_long_as_there_is_a_job(act: Act) -> None:
    async def scene(world: World, bus: Bus) -> None:
        async with logind() as there:
            world.script = WAIT
            world.service.arrived(stick())
            await world.phase(Phase.SYNCING)
            await until(lambda: bus._inhibitor.held)
            await asyncio.sleep(0.3)  # the fake one has closed its own copy
            assert there.held() == 1
            there.prepare("PrepareForSleep", True)
            assert (await world.result()).outcome is Outcome.CANCELLED
            await until(lambda: there.held() == 0)
            assert "computer goes to sleep" in world.said.texts()[-1]
            world.service.arrived(stick())
            assert list(world.service.supervisor.jobs()) == []
            there.prepare("PrepareForSleep", False)
            await world.phase(Phase.SYNCING)
            await until(lambda: there.held() == 1)
            world.service.requests.cancel("home")
            await world.result(1)
            await until(lambda: there.held() == 0)
            await asyncio.sleep(0.3)

    act(scene)


def test_nobody_but_logind_sends_the_computer_to_sleep(act: Act) -> None:
    async def scene(world: World, bus: Bus) -> None:
        world.script = WAIT
        world.service.arrived(stick())
        await world.phase(Phase.SYNCING)
        assert bus._bus is not None
        async with client() as root:
            for destination in ("org.cryptback1", None):
                await root.send(
                    Message(
                        message_type=MessageType.SIGNAL,
                        destination=destination,
                        path="/org/freedesktop/login1",
                        interface="org.freedesktop.login1.Manager",
                        member="PrepareForSleep",
                        signature="b",
                        body=[True],
                    )
                )
            await ask(root, "ListDrives")
        assert world.service.views.of("home").phase is Phase.SYNCING

    act(scene)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)
