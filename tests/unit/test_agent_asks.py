"""The agent: pinentry's protocol, where to ask, and the children that have an answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import attrs
import pytest
from dbus_fast import Message, MessageType, Variant
from hypothesis import given
from hypothesis import strategies as st

from cryptbackd import lookup
from cryptbackd.agent import assuan, pinentry, surroundings
from cryptbackd.agent.assuan import Failure
from cryptbackd.agent.bus import Registration
from tests.unit.conftest import SRC

ROOT = Path(__file__).parents[2]
UUID = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"


def test_the_agent_answers_what_its_xml_says() -> None:
    xml = ElementTree.parse(ROOT / "docs" / "org.cryptback1.Agent.xml")
    (interface,) = xml.iter("interface")
    registration = Registration()
    registration._owner = ":1.1"
    for method in interface.iter("method"):
        signature = "".join(arg.attrib["type"] for arg in method.iter("arg"))
        body = [0, {"purpose": Variant("s", "?")}] if signature.startswith("h") else ["?"]
        fds = [os.open(os.devnull, os.O_WRONLY)] if signature.startswith("h") else []
        message = Message(
            path="/org/cryptback1/Agent",
            interface=interface.attrib["name"],
            member=method.attrib["name"],
            signature=signature,
            body=body,
            unix_fds=fds,
            sender=":1.1",
            serial=1,
        )
        reply = registration._received(message)
        assert isinstance(reply, Message), method.attrib
        assert reply.message_type is MessageType.METHOD_RETURN, method.attrib


class TestAssuan:
    """Lines to pinentry and back."""

    @given(st.text())
    def test_what_is_said_is_what_is_heard(self, text: str) -> None:
        line = assuan.command("SETDESC", text)
        assert line.endswith(b"\n")
        assert line.count(b"\n") == 1
        assert b"\r" not in line
        assert len(line) <= assuan.MAX_LINE + 1
        heard = assuan.decoded(line[len("SETDESC ") : -1])
        wanted = text.encode("utf-8", "replace")
        assert wanted.startswith(heard)
        assert heard == wanted or len(line) > assuan.MAX_LINE - 12

    @given(st.binary())
    def test_whatever_comes_is_decoded(self, data: bytes) -> None:
        assert len(assuan.decoded(data)) <= len(data)

    @pytest.mark.parametrize(
        ("words", "wanted"),
        [
            (b"83886179 Operation cancelled <Pinentry>", Failure.CANCELED),
            (b"83886142 Timeout <Pinentry>", Failure.TIMEOUT),
            (b"83886194 Not confirmed <Pinentry>", Failure.NOT_CONFIRMED),
            (b"83918950 Inappropriate ioctl for device", Failure.OTHER),
            (b"", Failure.OTHER),
            (b"what", Failure.OTHER),
        ],
    )
    def test_why_there_is_no_answer(self, words: bytes, wanted: Failure) -> None:
        assert assuan.failure(words) is wanted


@attrs.define
class Person:
    """A pinentry that answers by itself, and what it was told."""

    directory: Path

    def program(self, *answers: str) -> dict[str, str]:
        """The environment in which it is used; it says *answers* to GETPIN and CONFIRM."""
        script = self.directory / "pinentry"
        for number, answer in enumerate([*answers, "ERR 83886179 cancelled <Pinentry>"]):
            (self.directory / f"pinentry.{number}").write_text(answer + "\n")
        script.write_text(
            "#!/bin/sh\nn=$(cat $0.n 2> /dev/null || echo 0)\necho OK\n"
            'while read -r line; do\necho "$line" >> $0.told\ncase $line in\n'
            "GETPIN|CONFIRM) echo $((n + 1)) > $0.n; cat $0.$n; n=$((n + 1));;\n"
            "*) echo OK;;\nesac\ndone\n"
        )
        script.chmod(0o755)
        return {"CRYPTBACK_PINENTRY": str(script), "DISPLAY": ":9", "PATH": "/usr/bin:/bin"}

    def told(self) -> list[str]:
        """The lines that came."""
        return (self.directory / "pinentry.told").read_text().splitlines()


@pytest.fixture
def person(tmp_path: Path) -> Person:
    return Person(tmp_path)


OK = "OK"


class TestPinentry:
    """The dialog."""

    def test_an_answer(self, person: Person) -> None:
        around = person.program("S PASSWORD\nD pass%25word\nD  more\nOK")
        assert pinentry.ask(around, [("SETDESC", "100 %")], 7) == b"pass%word more"
        assert person.told() == ["SETDESC 100 %25", "SETTIMEOUT 7", "GETPIN"]

    def test_dismissed(self, person: Person) -> None:
        with pytest.raises(pinentry.Unanswered, match="dismissed") as caught:
            pinentry.ask(person.program(), [], 7)
        assert caught.value.why is Failure.CANCELED

    @pytest.mark.parametrize(
        ("answer", "wanted"), [(OK, True), ("ERR 83886194 Not confirmed", False)]
    )
    def test_agreed(self, person: Person, answer: str, wanted: bool) -> None:
        assert pinentry.confirm(person.program(answer), [], 7) is wanted

    def test_there_is_none(self, person: Person) -> None:
        around = {**person.program(), "CRYPTBACK_PINENTRY": "/nonexistent/pinentry"}
        with pytest.raises(pinentry.Unanswered) as caught:
            pinentry.ask(around, [], 7)
        assert caught.value.why is Failure.NO_PINENTRY

    def test_the_terminal_is_told_where_there_is_no_display(self, person: Person) -> None:
        around = {**person.program(OK), "CRYPTBACK_TTY": "/dev/tty9", "LANG": "de_DE.UTF-8"}
        del around["DISPLAY"]
        pinentry.ask(around, [], 7)
        assert person.told()[:3] == [
            "OPTION ttyname=/dev/tty9", "OPTION ttytype=linux", "OPTION lc-ctype=de_DE.UTF-8"
        ]  # fmt: skip


class TestSurroundings:
    """Where to ask."""

    def test_what_the_manager_of_the_user_says(self) -> None:
        answer = json.dumps({"type": "as", "data": ["DISPLAY=:0", "A=b=c", "EMPTY="]})
        wanted = {"DISPLAY": ":0", "A": "b=c", "EMPTY": ""}
        assert surroundings.parse(answer.encode()) == wanted

    @given(st.binary() | st.sampled_from([b"{}", b"[]", b'{"data": [1]}', b'{"data": 1}']))
    def test_whatever_it_says(self, answer: bytes) -> None:
        assert surroundings.parse(answer) == {}

    @pytest.mark.parametrize(
        ("around", "wanted"),
        [
            ({"DISPLAY": ":0"}, True),
            ({"WAYLAND_DISPLAY": "wayland-0"}, True),
            ({"CRYPTBACK_TTY": "/dev/tty9"}, True),
            ({"DISPLAY": ""}, False),
            ({"GPG_TTY": "/dev/tty1"}, False),
        ],
    )
    def test_where_a_person_can_be_asked(self, around: dict[str, str], wanted: bool) -> None:
        assert surroundings.can_ask(around) is wanted


BACKEND = """
import os
from keyring.backend import KeyringBackend
from keyring.errors import KeyringLocked

class Keyring(KeyringBackend):
    priority = 9

    def get_password(self, service, user):
        print("a backend that chatters")
        if os.environ.get("LOCKED"):
            raise KeyringLocked("locked")
        try:
            return open(f"{os.environ['KEPT']}.{service}.{user}").read()
        except FileNotFoundError:
            return None

    def set_password(self, service, user, passphrase):
        if os.environ.get("LOCKED"):
            raise KeyringLocked("locked")
        open(f"{os.environ['KEPT']}.{service}.{user}", "w").write(passphrase)
"""


@pytest.fixture
def around(tmp_path: Path) -> dict[str, str]:
    """An environment in which the library keyring has a backend."""
    (tmp_path / "onefile.py").write_text(BACKEND)
    return {
        "PYTHONPATH": f"{SRC}:{tmp_path}", "PYTHON_KEYRING_BACKEND": "onefile.Keyring",
        "KEPT": str(tmp_path / "kept"), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin",
    }  # fmt: skip


def kept(around: dict[str, str]) -> Path:
    return Path(f"{around['KEPT']}.cryptback.{UUID}")


class TestLookup:
    """``python3 -m cryptbackd.lookup``."""

    def look(self, around: dict[str, str]) -> tuple[int, bytes, str]:
        argv = [sys.executable, "-m", "cryptbackd.lookup", UUID]
        ended = subprocess.run(argv, env=around, check=False, capture_output=True)
        return ended.returncode, ended.stdout, ended.stderr.decode().splitlines()[-1]

    def test_found(self, around: dict[str, str]) -> None:
        kept(around).write_text("pass phrase ü")
        status, out, _err = self.look(around)
        assert (status, out.decode()) == (lookup.FOUND, "pass phrase ü")

    def test_nothing(self, around: dict[str, str]) -> None:
        assert self.look(around)[:2] == (lookup.NOTHING, b"")

    def test_locked(self, around: dict[str, str]) -> None:
        around["LOCKED"] = "1"
        assert self.look(around) == (lookup.UNUSABLE, b"", "The keyring is locked.")

    def test_no_keyring(self, around: dict[str, str]) -> None:
        around["PYTHON_KEYRING_BACKEND"] = "keyring.backends.fail.Keyring"
        assert self.look(around)[0] == lookup.UNUSABLE
        around["PYTHON_KEYRING_BACKEND"] = "no.such.Backend"
        status, _out, err = self.look(around)
        assert status == lookup.UNUSABLE
        assert err.startswith("The keyring can't be used:")


class TestAsk:
    """``python3 -m cryptbackd.agent.ask``."""

    def ask(self, around: dict[str, str], verdict: bytes, *options: str) -> tuple[bytes, str]:
        """What came out of its pipe before the *verdict*, and what it said."""
        argv = [sys.executable, "-m", "cryptbackd.agent.ask", *options, "home", UUID]
        process = subprocess.Popen(
            argv, env=around, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None
        answer = process.stdout.read()  # to its end: nobody else holds the pipe
        _out, said = process.communicate(verdict)
        assert process.returncode == 0
        return answer, said.decode()

    def test_remembered_once_it_opened(self, around: dict[str, str], person: Person) -> None:
        around |= person.program("D secret\nOK", OK)
        answer, said = self.ask(around, b"opened\n")
        assert answer == b"secret"
        assert kept(around).read_text() == "secret"
        assert "the keyring remembers" in said
        assert "Shall your keyring remember" in "".join(person.told())

    @pytest.mark.parametrize("verdict", [b"", b"refused\n"])
    def test_not_while_it_is_unknown_or_wrong(
        self, around: dict[str, str], person: Person, verdict: bytes
    ) -> None:
        around |= person.program("D secret\nOK", OK)
        assert self.ask(around, verdict)[0] == b"secret"
        assert not kept(around).exists()
        assert "CONFIRM" not in person.told()

    def test_not_unless_the_person_agrees(self, around: dict[str, str], person: Person) -> None:
        around |= person.program("D secret\nOK", "ERR 83886194 Not confirmed")
        self.ask(around, b"opened\n")
        assert not kept(around).exists()

    def test_a_locked_keyring_is_told(self, around: dict[str, str], person: Person) -> None:
        around |= {**person.program("D secret\nOK", OK), "LOCKED": "1"}
        assert "was not remembered: The keyring is locked." in self.ask(around, b"opened\n")[1]

    def test_dismissed(self, around: dict[str, str], person: Person) -> None:
        around |= person.program()
        answer, said = self.ask(around, b"")
        assert answer == b""
        assert "home: The question was dismissed." in said

    def test_it_says_what_was_wrong(self, around: dict[str, str], person: Person) -> None:
        around |= person.program("D secret\nOK")
        self.ask(around, b"", "--wrong=keyring")
        assert "SETERROR The passphrase in the keyring is wrong." in person.told()

    def test_a_pin(self, around: dict[str, str], person: Person) -> None:
        around |= person.program("D 4711\nOK")
        assert self.ask(around, b"", "--purpose=tpm2-pin", "--wrong=answer")[0] == b"4711"
        told = person.told()
        assert {"SETPROMPT PIN:", "SETERROR That PIN was wrong."} <= set(told)
        assert any("its PIN for this computer's TPM2 is needed" in line for line in told)


def test_pinentry_goes_with_who_asked(tmp_path: Path) -> None:
    script, mark = tmp_path / "pinentry", tmp_path / "mark"
    script.write_text(f"#!/bin/sh\necho $$ > {mark}.new; mv {mark}.new {mark}\nexec sleep 60\n")
    script.chmod(0o755)
    around = {"PYTHONPATH": str(SRC), "CRYPTBACK_PINENTRY": str(script), "PATH": "/usr/bin:/bin"}
    argv = [sys.executable, "-m", "cryptbackd.agent.ask", "home", UUID]
    with subprocess.Popen(argv, env=around, stdin=subprocess.DEVNULL) as process:
        while not mark.exists():
            os.sched_yield()
        process.kill()
    pid = int(mark.read_text())
    pidfd = None
    try:
        pidfd = os.pidfd_open(pid)
        import select

        assert select.select([pidfd], [], [], 10)[0]
    except ProcessLookupError:
        pass
    finally:
        if pidfd is not None:
            os.close(pidfd)
