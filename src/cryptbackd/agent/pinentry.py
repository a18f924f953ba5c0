"""A dialog with the person, by way of pinentry: graphical, or on a terminal.

Which pinentry that is: the program named by CRYPTBACK_PINENTRY, else the one that the
distribution or the administrator chose.  It ends with us, whatever ends us.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence

from .. import run
from ..errors import ToolFailed
from .assuan import Failure, command, decoded, failure

_DEFAULT = "/usr/bin/pinentry"


class Unanswered(Exception):
    """There is no answer; *why* tells dismissed from failed, and the text is a sentence."""

    def __init__(self, why: Failure, sentence: str) -> None:
        super().__init__(sentence)
        self.why = why


def ask(around: Mapping[str, str], texts: Sequence[tuple[str, str]], seconds: int) -> bytes:
    """The passphrase that was typed; raises Unanswered.

    *texts* are what is shown: pairs of the protocol's verb and a text.
    """
    return _dialog(around, [*texts, ("SETTIMEOUT", str(seconds))], "GETPIN")


def confirm(around: Mapping[str, str], texts: Sequence[tuple[str, str]], seconds: int) -> bool:
    """Whether the person agrees; raises Unanswered when nobody could be asked."""
    try:
        _dialog(around, [*texts, ("SETTIMEOUT", str(seconds))], "CONFIRM")
    except Unanswered as exc:
        if exc.why in (Failure.OTHER, Failure.NO_PINENTRY):
            raise
        return False
    return True


def _dialog(around: Mapping[str, str], texts: Sequence[tuple[str, str]], verb: str) -> bytes:
    program = around.get("CRYPTBACK_PINENTRY") or _DEFAULT
    try:
        process = run.spawn(
            ["/usr/bin/setpriv", "--pdeathsig", "TERM", "--", program],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            environment=_environment(around),
        )
    except ToolFailed as exc:
        raise Unanswered(Failure.NO_PINENTRY, f"{program} can't be started: {exc}") from exc
    try:
        conversation = _Conversation(process, program)
        conversation.answer()  # its greeting
        for option in _options(around):
            conversation.say("OPTION", option, must=False)
        for setting, text in texts:
            conversation.say(setting, text, must=False)
        return conversation.say(verb)
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()


def _environment(around: Mapping[str, str]) -> Mapping[str, str]:
    """Where only a terminal is left, that of the GNOME desktop would ask nobody by session bus."""
    if _has_display(around):
        return around
    return {key: value for key, value in around.items() if key != "DBUS_SESSION_BUS_ADDRESS"}


def _has_display(around: Mapping[str, str]) -> bool:
    return bool(around.get("DISPLAY") or around.get("WAYLAND_DISPLAY"))


def _options(around: Mapping[str, str]) -> list[str]:
    terminal = around.get("CRYPTBACK_TTY", "")
    if _has_display(around) or not terminal:
        return []
    locale = around.get("LC_ALL") or around.get("LC_CTYPE") or around.get("LANG") or "C.UTF-8"
    return [
        f"ttyname={terminal}", f"ttytype={around.get('TERM') or 'linux'}", f"lc-ctype={locale}"
    ]  # fmt: skip


class _Conversation:
    def __init__(self, process: subprocess.Popen[bytes], program: str) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._to = process.stdin.fileno()
        self._from = process.stdout
        self._program = os.path.basename(program)

    def say(self, verb: str, text: str = "", *, must: bool = True) -> bytes:
        """The data of the answer; one that *must* not succeed may also be refused."""
        try:
            os.write(self._to, command(verb, text))
        except BrokenPipeError as exc:
            raise Unanswered(Failure.OTHER, f"{self._program} ended by itself.") from exc
        try:
            return self.answer()
        except Unanswered as exc:
            if must or exc.why is not Failure.OTHER:
                raise
            return b""

    def answer(self) -> bytes:
        """Read to the end of one answer."""
        data = b""
        while True:
            line = self._from.readline(2000)
            if not line.endswith(b"\n"):
                raise Unanswered(Failure.NO_PINENTRY, f"{self._program} ended by itself.")
            kind, _, rest = line.rstrip(b"\r\n").partition(b" ")
            match kind:
                case b"OK":
                    return data
                case b"D":
                    data += decoded(rest)
                case b"ERR":
                    raise Unanswered(failure(rest), _sentence(self._program, rest))
                case b"INQUIRE":
                    os.write(self._to, b"CAN\n")
                case _:
                    pass  # a status or a comment


def _sentence(program: str, rest: bytes) -> str:
    match failure(rest):
        case Failure.TIMEOUT:
            return "Nobody answered."
        case Failure.CANCELED | Failure.FULLY_CANCELED | Failure.NOT_CONFIRMED:
            return "The question was dismissed."
        case _:
            return f"{program} failed: {rest.decode('utf-8', 'replace')}."
