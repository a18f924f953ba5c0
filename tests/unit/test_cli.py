"""The command line: exit codes, what is shown, what is refused."""

import asyncio
import gc
import io
import json
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import click
import pytest
from dbus_fast import BusType, Message, MessageFlag, MessageType, Variant
from hypothesis import given
from hypothesis import strategies as st

from cryptbackd import errors, paths
from cryptbackd.cli import ask, bus, credential, follow, output, passphrase, status, verify
from cryptbackd.cli.main import main

DRIVE = {
    "name": "home", "state": "idle", "uuid": "AAAA-BBBB", "container": "backup.luks",
    "device": "/dev/sda1", "phase": "", "done": 0, "total": 0, "rate": 0.0, "left": -1.0,
    "run": "", "last_outcome": "done", "last_sentence": "", "last_hint": "",
    "last_finished": 1_000_000, "last_success": 1_000_000, "warnings": [], "safe": True,
    "problem": "", "shown_to": "",
}  # fmt: skip
RESULT = {
    "id": "r1", "name": "home", "job": "backup", "seconds": 42.0, "outcome": "done",
    "interrupted": False, "error": "", "sentence": "", "hint": "", "warnings": [],
    "version": "v1", "files": 412, "size": 2**31, "changed_files": 3, "changed_bytes": 2**20,
    "safe": True, "touched": True, "powered_off": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"outcome": "done"}, 0),
        ({"outcome": "skipped"}, 0),
        ({"outcome": "warnings"}, 3),
        ({"outcome": "cancelled"}, 130),
        ({"outcome": "failed"}, 1),
        ({"outcome": "failed", "error": "WrongPassphrase"}, 12),
        ({"outcome": "failed", "error": "DriveAbsent"}, 75),
        ({"outcome": "failed", "error": "Busy"}, 11),
        ({"outcome": "failed", "error": "DriveFull"}, 1),
        ({"outcome": "failed", "error": "Unheard"}, 1),
    ],
)
def test_exit_codes_of_runs(change: dict[str, Any], code: int) -> None:
    assert output.exit_code({**RESULT, **change}) == code


def failing(exc: errors.CryptbackError) -> Callable[[], int]:
    def verb() -> int:
        raise exc

    return verb


@pytest.mark.parametrize("cls", list(errors.BY_NAME.values()))
def test_exit_codes_of_errors(
    cls: type[errors.CryptbackError], capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    def command() -> None:
        output.finish(failing(cls("It is \x1b so.", "Do that.")), as_json=True)

    assert command.main([], standalone_mode=False) == cls.code
    printed = capsys.readouterr()
    assert printed.err == "cryptback: It is \\x1b so.\n  Do that.\n"
    assert json.loads(printed.out)["error"] == cls.__name__


def reply(name: str, text: str) -> Message:
    return Message(
        message_type=MessageType.ERROR,
        error_name=name,
        reply_serial=1,
        signature="s",
        body=[text],
        destination=":1.1",
    )


@pytest.mark.parametrize("cls", list(errors.BY_NAME.values()))
def test_errors_of_the_daemon_arrive_as_they_were(cls: type[errors.CryptbackError]) -> None:
    exc = bus._error(reply(f"org.cryptback1.Error.{cls.__name__}", "A sentence.\nA hint."))
    assert type(exc) is cls
    assert (exc.sentence, exc.hint) == ("A sentence.", "A hint.")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("org.freedesktop.DBus.Error.ServiceUnknown", "is not running"),
        ("org.freedesktop.systemd1.NoSuchUnit", "is not running"),
        ("org.freedesktop.DBus.Error.Spawn.ExecFailed", "is not running"),
        ("org.freedesktop.DBus.Error.AccessDenied", "Only root"),
        ("org.freedesktop.DBus.Error.UnknownMethod", "does not understand"),
    ],
)
def test_errors_of_the_bus_are_sentences(name: str, says: str) -> None:
    exc = bus._error(reply(name, "technicalities"))
    assert says in exc.sentence
    assert exc.hint
    assert exc.code == 1


def test_options_leave_out_what_was_not_said() -> None:
    assert bus.options(a=True, b=7, c="x", d=["y"], e=None) == {
        "a": Variant("b", True),
        "b": Variant("t", 7),
        "c": Variant("s", "x"),
        "d": Variant("as", ["y"]),
    }


def test_plain_takes_all_variants_away() -> None:
    nested = {"a": Variant("v", Variant("s", "x")), "b": [Variant("t", 1)]}
    assert bus.plain(nested) == {"a": "x", "b": [1]}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({}, "idle on /dev/sda1, last run 2 h ago: done, may be unplugged"),
        (
            {"state": "absent", "device": "", "safe": False},
            "not plugged in, last run 2 h ago: done",
        ),
        (
            {"safe": False},
            "idle on /dev/sda1, last run 2 h ago: done, not proven that it may be unplugged",
        ),
        ({"last_finished": 0}, "idle on /dev/sda1, never backed up, may be unplugged"),
        ({"state": "bad", "problem": "f: x: it is missing."}, "not usable: f: x: it is missing."),
        ({"state": "queued"}, "waiting for its turn"),
        ({"state": "not-answering"}, "the drive does not answer"),
        ({"state": "running", "phase": "powering-off"}, "powering off"),
        (
            {"state": "running", "phase": "browsing", "shown_to": "me"},
            "open for browsing by me",
        ),
        (
            {
                "state": "running",
                "phase": "syncing",
                "done": 41,
                "total": 100,
                "rate": 63e6,
                "left": 42.0,
            },
            "syncing, 41 % of 100 B, 63 MB/s, 0:42 left",
        ),
    ],
)
def test_a_drive_in_one_line(change: dict[str, Any], line: str) -> None:
    assert status.one_line({**DRIVE, **change}, 1_007_300) == line


def test_the_detail_of_a_drive() -> None:
    drive = {**DRIVE, "warnings": ["Evil \x1b[2J name."], "last_sentence": "It went."}
    lines = status.detail(drive, 1_000_001)
    assert "  drive: UUID AAAA-BBBB, file backup.luks" in lines
    assert r"  warning: Evil \x1b[2J name." in lines


class FakeClient:
    """A client whose daemon says what the test wants."""

    def __init__(self, *news: tuple[str, dict[str, Any]]) -> None:
        self.queue: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue()
        for item in news:
            self.queue.put_nowait(item)
        self.calls: list[str] = []

    async def news(self) -> tuple[str, dict[str, Any]]:
        return await self.queue.get()

    async def call(self, member: str, _signature: str = "", *_body: Any) -> list[Any]:
        self.calls.append(member)
        return [[]]


def followed(make: Callable[[], FakeClient]) -> dict[str, Any]:
    async def go() -> dict[str, Any]:
        return await follow.follow(make(), "home", ["r1"], follow.JsonLines())  # type: ignore[arg-type]

    return asyncio.run(go())


def test_following_shows_this_drive_and_waits_for_this_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    running = {**DRIVE, "state": "running", "phase": "syncing"}
    results = followed(
        lambda: FakeClient(
            ("DriveChanged", {**running, "name": "work"}),
            ("JobFinished", {**RESULT, "id": "r0"}),
            ("DriveChanged", running),
            ("JobFinished", RESULT),
        )
    )
    assert results == {"r1": RESULT}
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {"event": "progress", "drive": running}


def interrupt(client: FakeClient, *, times: int, then: dict[str, Any] | None) -> Any:
    async def go() -> Any:
        async def presses() -> None:
            for _ in range(times):
                await asyncio.sleep(0.05)
                os.kill(os.getpid(), 2)
            await asyncio.sleep(0.05)
            if then is not None:
                client.queue.put_nowait(("JobFinished", then))

        pressing = asyncio.create_task(presses())
        try:
            return await follow.follow(client, "home", ["r1"], follow.JsonLines())  # type: ignore[arg-type]
        finally:
            await pressing

    return asyncio.run(go())


def test_ctrl_c_cancels_in_order_and_waits() -> None:
    async def make() -> FakeClient:
        return FakeClient()

    client = asyncio.run(make())
    cancelled = {**RESULT, "outcome": "cancelled"}
    assert interrupt(client, times=1, then=cancelled) == {"r1": cancelled}
    assert client.calls == ["Cancel"]


def test_a_second_ctrl_c_leaves() -> None:
    client = FakeClient()
    with pytest.raises(errors.Cancelled, match="still being cancelled"):
        interrupt(client, times=2, then=None)
    assert client.calls == ["Cancel"]


def test_a_result_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    follow.tell({**RESULT, "outcome": "warnings", "warnings": ["a\x07b"]})
    assert capsys.readouterr().out.splitlines() == [
        "home: finished: 412 files, 2.0 GiB; 3 files changed (1.0 MiB) in 0:42.",
        r"  warning: a\x07b",
        "You may unplug home now.",
    ]


@pytest.mark.parametrize("outcome", ["done", "warnings", "cancelled", "failed", "skipped"])
def test_unplugging_is_offered_only_when_it_was_proven(
    outcome: str, capsys: pytest.CaptureFixture[str]
) -> None:
    follow.tell({**RESULT, "outcome": outcome, "sentence": "It ended.", "safe": False})
    printed = capsys.readouterr()
    assert "You may unplug" not in printed.out + printed.err


@pytest.mark.parametrize("key", ["", "cbdefghi-jklnrtuv"])
def test_a_recovery_key_is_shown_whatever_becomes_of_the_service(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    """It ended in the middle: the key may be in the header by then, and is nowhere else."""
    reading, writing = os.pipe()
    os.write(writing, key.encode())

    class Client:
        async def listen(self) -> None:
            pass

        async def call(self, *_call: Any) -> list[str]:
            return ["r1"]

        async def call_for_fd(self, *_call: Any) -> int:
            return reading

    @asynccontextmanager
    async def connected() -> AsyncIterator[Client]:
        yield Client()

    async def handed_over(*_what: Any) -> None:
        pass

    async def lost(*_what: Any) -> None:
        raise errors.CryptbackError("The service cryptbackd ended in the middle.")

    monkeypatch.setattr(bus, "connected", connected)
    monkeypatch.setattr(ask, "hand_over", handed_over)
    monkeypatch.setattr(ask, "current", lambda *_asked: b"x")
    monkeypatch.setattr(follow, "follow", lost)
    try:
        with pytest.raises(errors.CryptbackError, match="ended in the middle"):
            passphrase.recovery_key("home", None, as_json=False)
    finally:
        os.close(writing)
    shown = capsys.readouterr().out
    assert (key in shown, "may open the drive" in shown) == (True, bool(key))


def on_a_pipe(content: bytes, read: Callable[[int], bytes]) -> bytes:
    reading, writing = os.pipe()
    try:
        os.write(writing, content)
        os.close(writing)
        return read(reading)
    finally:
        os.close(reading)


@given(st.binary(min_size=1, max_size=512).filter(lambda b: b"\n" not in b and b"\0" not in b))
def test_a_passphrase_is_one_line(passphrase: bytes) -> None:
    assert on_a_pipe(passphrase + b"\nrest", ask.one_line) == passphrase
    assert on_a_pipe(passphrase, ask.one_line) == passphrase


def test_two_passphrases_may_come_from_one_descriptor() -> None:
    both = on_a_pipe(b"old\nnew\n", lambda fd: ask.one_line(fd) + b"|" + ask.one_line(fd))
    assert both == b"old|new"


@pytest.mark.parametrize("wrong", [b"", b"\n", b"x" * 513, b"x" * 513 + b"\n", b"a\0b\n"])
def test_what_is_no_passphrase_is_refused_without_being_shown(wrong: bytes) -> None:
    with pytest.raises(errors.Refused) as caught:
        on_a_pipe(wrong, ask.one_line)
    assert "xxx" not in str(caught.value)
    assert caught.value.__cause__ is None


def cli(monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    monkeypatch.setattr("sys.argv", ["cryptback", *args])
    return main()


def test_version_and_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(monkeypatch, "--version") == 0
    assert cli(monkeypatch, "--help") == 0
    for verb in ("init", "status", "run", "cancel", "eject", "history"):
        assert verb in capsys.readouterr().out or cli(monkeypatch, verb, "--help") == 0


def test_a_terminal_that_lacks_a_character_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(shown, encoding="latin-1"))
    assert cli(monkeypatch, "find", "--help") == 0
    output.say("\u540d \u2026 \u00fc")
    assert shown.getvalue().endswith(b"\\u540d \\u2026 \xfc\n")


@pytest.mark.parametrize(
    "args",
    [
        ["nonsense"],
        ["run"],
        ["init", "/dev/x"],
        ["resize", "home"],
        ["resize", "home", "much"],
        ["history", "--limit", "0"],
    ],
)
def test_a_wrong_command_line_is_any_other_failure(
    monkeypatch: pytest.MonkeyPatch, args: list[str]
) -> None:
    assert cli(monkeypatch, *args) == 1


@pytest.mark.parametrize(
    ("args", "takes"),
    [
        (["status", "home"], False),
        (["run", "home"], False),
        (["cancel", "home"], False),
        (["eject", "home"], False),
        (["close"], False),
        (["verify", "home"], False),
        (["history"], False),
        (["resize", "home", "max"], False),
        (["doctor", "--repair", "home"], False),
        (["doctor", "--repair", "home", "--device", "/dev/sdz1", "--yes"], False),
        (["restore", "home", "/etc"], True),
        (["find", "notes"], True),
    ],
)
def test_who_needs_no_descriptor_takes_none(
    monkeypatch: pytest.MonkeyPatch, args: list[str], takes: bool
) -> None:
    """Or any user could send one by which this program can't end."""
    asked: list[bool] = []

    class Absent:
        def __init__(self, *, bus_type: BusType, negotiate_unix_fd: bool) -> None:
            assert bus_type is BusType.SYSTEM
            asked.append(negotiate_unix_fd)

        async def connect(self) -> None:
            raise FileNotFoundError

    monkeypatch.setattr(bus, "MessageBus", Absent)
    assert cli(monkeypatch, *args) == 1
    assert asked == [takes]


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # of dbus-fast
@pytest.mark.parametrize(
    "args",
    [
        ["run", "home"],
        ["cancel", "home"],
        ["eject", "home"],
        ["passphrase", "home", "--adopt", "--passphrase-fd", "0"],
        ["doctor", "--repair", "home"],
        ["resize", "home", "+1G"],
    ],
)
def test_who_may_is_not_decided_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], args: list[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent/bus")
    assert cli(monkeypatch, *args) == 1
    gc.collect()
    assert "system bus can't be reached" in capsys.readouterr().err


def test_polkit_may_ask_a_person() -> None:
    class Recorder:
        def __init__(self) -> None:
            self.flags: list[MessageFlag] = []

        async def call(self, message: Message) -> Message:
            self.flags.append(message.flags)
            return Message(
                message_type=MessageType.METHOD_RETURN, reply_serial=1, signature="as", body=[[]]
            )

    async def call() -> list[MessageFlag]:
        recorder = Recorder()
        await bus.Client(recorder).call("Cancel", "s", "home")  # type: ignore[arg-type]
        return recorder.flags

    assert asyncio.run(call()) == [MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION]


def test_a_name_that_is_not_in_utf_8_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """D-Bus has no words for it, and what would send it dies of that."""
    monkeypatch.setattr(bus, "sendable", lambda body: body)

    class Sender:
        async def call(self, message: Message) -> Message:
            message.serial = 1
            message._marshall(False)
            return reply("org.cryptback1.Error.Refused", "")

    async def find() -> None:
        await bus.Client(Sender()).call("Find", "sa{sv}", os.fsdecode(b"caf\xe9"), {})  # type: ignore[arg-type]

    with pytest.raises(errors.Refused, match="not in UTF-8"):
        asyncio.run(find())


class Wire:
    """A connection to a bus on which the daemon is called :1.5, or is not there yet."""

    def __init__(self, owner: str = ":1.5") -> None:
        self.owner = owner
        self.hear: Callable[[Message], None] = lambda _message: None
        self.is_lost = asyncio.Event()

    def add_message_handler(self, handler: Callable[[Message], None]) -> None:
        self.hear = handler

    async def call(self, message: Message) -> Message:
        if message.member == "GetNameOwner" and not self.owner:
            return reply("org.freedesktop.DBus.Error.NameHasNoOwner", "There is none.")
        body = [self.owner] if message.member == "GetNameOwner" else []
        kind = MessageType.METHOD_RETURN
        return Message(message_type=kind, reply_serial=1, signature="s" * len(body), body=body)

    async def wait_for_disconnect(self) -> None:
        await self.is_lost.wait()
        raise EOFError

    def owned(self, before: str, now: str) -> None:
        body = ["org.cryptback1", before, now]
        self.hear(signal("org.freedesktop.DBus", "NameOwnerChanged", "sss", body))

    def finished(self, sender: str, run: str) -> None:
        self.hear(signal(sender, "JobFinished", "sa{sv}", ["home", {"id": Variant("s", run)}]))


def signal(sender: str, member: str, signature: str, body: list[Any]) -> Message:
    where = "org.freedesktop.DBus" if signature == "sss" else "org.cryptback1.Manager"
    return Message(
        message_type=MessageType.SIGNAL, sender=sender, path="/org/cryptback1", interface=where,
        member=member, signature=signature, body=body,
    )  # fmt: skip


@pytest.mark.parametrize("owner", [":1.5", ""])
def test_nobody_but_the_daemon_tells_how_a_run_ended(owner: str) -> None:
    """Any user of the computer can send a signal to a connection of the bus."""

    async def hear() -> list[Any]:
        wire = Wire(owner)
        client = bus.Client(wire)  # type: ignore[arg-type]
        await client.listen()
        wire.finished(":1.66", "forged")
        if not owner:
            wire.owned("", ":1.5")
        wire.finished(":1.66", "forged")
        wire.finished(":1.5", "r1")
        wire.owned(":1.5", ":1.6")
        wire.finished(":1.5", "late")
        wire.finished(":1.6", "r2")
        return [(await client.news())[1]["id"] for _ in range(2)]

    assert asyncio.run(hear()) == ["r1", "r2"]


def test_nobody_waits_for_news_from_a_bus_that_is_lost() -> None:
    async def hear() -> None:
        wire = Wire()
        client = bus.Client(wire)  # type: ignore[arg-type]
        await client.listen()
        wire.finished(":1.5", "r1")
        wire.is_lost.set()
        assert (await client.news())[1] == {"id": "r1"}
        await asyncio.wait_for(client.news(), 5)

    with pytest.raises(errors.CryptbackError, match="connection to the system bus was lost"):
        asyncio.run(hear())


def test_a_flood_is_told_as_such() -> None:
    exc = bus._error(reply("org.freedesktop.DBus.Error.LimitsExceeded", "Too many."))
    assert "too many requests" in exc.sentence


def test_a_credential_that_can_not_be_stored_or_removed_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where /etc is full, or can only be read."""
    for name in ("HEADERS", "ENCRYPTED_CREDENTIALS", "CREDENTIALS"):
        monkeypatch.setattr(paths, name, tmp_path)
    (tmp_path / "home").touch()
    (tmp_path / "cryptback.home").mkdir()
    with pytest.raises(errors.Refused, match="can't be removed"):
        credential.forget("home", as_json=False)
    monkeypatch.setattr(paths, "ENCRYPTED_CREDENTIALS", tmp_path / "home" / "credstore")
    monkeypatch.setattr(credential, "_want_right", lambda *_what: None)
    with (tmp_path / "given").open("wb+") as given:
        given.write(b"pass")
        given.flush()
        given.seek(0)
        with pytest.raises(errors.Refused, match="can't be written"):
            credential.remember("home", given.fileno(), as_json=False)


@pytest.mark.parametrize("action", ["remember", "forget"])
def test_what_only_root_may(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], action: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert cli(monkeypatch, "passphrase", "home", action) == 1
    assert (
        capsys.readouterr().err == "cryptback: Only root may ask for that.\n  Try it with sudo.\n"
    )


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # of dbus-fast
def test_no_bus(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent/bus")
    assert cli(monkeypatch, "status") == 1
    gc.collect()
    assert "system bus can't be reached" in capsys.readouterr().err


INIT = ["init", "/dev/x", "--name", "new", "--include", "/etc"]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([*INIT, "--passphrase-fd", "0"], "whether to go on"),
        ([*INIT, "--yes"], "asked for a passphrase"),
        ([*INIT, "--yes", "--passphrase-fd", "0", "--name", "A B"], "can't be the name"),
        ([*INIT, "--yes", "--passphrase-fd", "0", "--include", "/no/such"], "nothing at /no/such"),
        (
            [*INIT, "--yes", "--passphrase-fd", "0", "--include-from", "/no/such"],
            "no file /no/such",
        ),
        ([*INIT[:4], "--yes", "--passphrase-fd", "0"], "what is to be backed up"),
        ([*INIT, "--format", "luks", "--container", "x"], "no container file"),
        ([*INIT, "--adopt", "--size", "1G"], "nothing is made"),
        (["passphrase", "home"], "what is to be done"),
        (["passphrase", "home", "add", "--adopt"], "what is to be done"),
        (["passphrase", "home", "add", "--what", "tpm2"], "for `remove`"),
        (["passphrase", "home", "add", "--pin"], "enroll-tpm2"),
        (["passphrase", "home", "add", "--passphrase-fd", "0"], "asked for a passphrase"),
        (["passphrase", "home", "remove", "--new-passphrase-fd", "0"], "`add` and `change`"),
        (["passphrase", "home", "remove"], "asked for a passphrase"),
        (["passphrase", "home", "enroll-tpm2", "--pin"], "asked for a passphrase"),
    ],
)
def test_what_cannot_be_touches_nothing(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    args: list[str],
    says: str,
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)

    def never(_work: Coroutine[Any, Any, Any]) -> None:
        raise AssertionError("the daemon was asked")

    monkeypatch.setattr(asyncio, "run", never)
    assert cli(monkeypatch, *args) == 1
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    "args",
    [
        [*INIT, "--yes", "--passphrase-fd", "0", "--pbkdf-memory", "4097"],
        [*INIT, "--yes", "--passphrase-fd", "0", "--pbkdf-iterations", "10001"],
        ["passphrase", "home", "add", "--pbkdf-memory", "9" * 30],
    ],
)
def test_what_no_header_may_cost_is_refused_before_anything_is_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], args: list[str]
) -> None:
    assert cli(monkeypatch, *args) == 1
    assert "is not in the range 1<=x<=" in capsys.readouterr().err


@pytest.mark.parametrize(
    "args",
    [
        ["kit", "home"],
        ["init", "/dev/x", "--name", "new", "--include", "here"],
        ["find", "./here"],
        ["restore", "home", "here"],
    ],
)
def test_a_directory_that_is_gone_is_told(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    args: list[str],
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert cli(monkeypatch, *args) == 1
    assert "The directory that you are in is gone." in capsys.readouterr().err


def test_a_passphrase_is_stored_for_no_drive_that_there_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    args = ["passphrase", "no-such", "remember", "--passphrase-fd", "0"]
    assert cli(monkeypatch, *args) == errors.UnknownDrive.code == 10
    assert "No drive is enrolled" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "share"), [("5%", 0.05), ("100%", 1.0), ("0.5%", 0.005)])
def test_a_share_is_a_percentage(text: str, share: float) -> None:
    context = click.Context(verify.verify)
    assert verify._share(context, verify.verify.params[1], text) == pytest.approx(share)
    assert bus.options(sample=share)["sample"].signature == "d"


@pytest.mark.parametrize("text", ["5", "0%", "101%", "-1%", "nan%", "much", ""])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a share"):
        verify._share(click.Context(verify.verify), verify.verify.params[1], text)
