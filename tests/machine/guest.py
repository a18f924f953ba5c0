"""Commands and files in the guest, by way of its agent."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.machine.wire import MachineLost, Wire, WireError

CHUNK = 4 << 20
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "HOME": "/root",
}

Command = str | Sequence[str]


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    out: str
    err: str
    code: int
    stdout: bytes
    """The output as it is, for what isn't text."""


class CommandFailed(Exception):
    """A command in the guest ended with another exit status than 0."""

    def __init__(self, command: Command, result: Result) -> None:
        self.result = result
        super().__init__(
            f"{_show(command)}\nexit status {result.code}\n{result.err}{result.out}".rstrip()
        )


class CommandTimeout(Exception):
    """A command in the guest took too long, and was killed."""


class Running:
    """A command under way in the guest."""

    def __init__(self, agent: Agent, command: Command, pid: int) -> None:
        self.pid = pid
        self.command = command
        self._agent = agent
        self._status: dict[str, Any] = {}

    def done(self) -> bool:
        """Whether it has ended."""
        if not self._status.get("exited"):
            self._status = self._agent.call("guest-exec-status", pid=self.pid)
        return bool(self._status["exited"])

    def wait(self, *, timeout: float = 60, check: bool = True) -> Result:
        """Wait for its end. A command that takes longer is killed."""
        deadline = time.monotonic() + timeout
        pause = 0.004
        while not self.done():
            if time.monotonic() > deadline:
                self._agent.kill(self.pid)
                raise CommandTimeout(f"{_show(self.command)}: not done after {timeout:g} s")
            time.sleep(pause)
            pause = min(pause * 1.5, 0.1)
        if self._status.get("out-truncated") or self._status.get("err-truncated"):
            raise ValueError(
                f"{_show(self.command)}: too much output for the guest agent, write it to a file"
            )
        out = base64.b64decode(self._status.get("out-data", ""))
        err = base64.b64decode(self._status.get("err-data", ""))
        code = self._status.get("exitcode", -self._status.get("signal", 0))
        result = Result(out.decode(errors="replace"), err.decode(errors="replace"), code, out)
        if check and code != 0:
            raise CommandFailed(self.command, result)
        return result


class Agent:
    """The connection to the agent of one guest."""

    def __init__(self, socket: Path) -> None:
        self._wire = Wire(socket, "guest agent")

    def close(self) -> None:
        self._wire.close()

    def wait(self, timeout: float) -> None:
        """Wait until the agent answers, and throw away what it had to say to somebody before us."""
        deadline = time.monotonic() + timeout
        token = time.monotonic_ns() & 0x7FFFFFFF
        message = json.dumps(
            {"execute": "guest-sync-delimited", "arguments": {"id": token}}
        ).encode()
        while True:
            # 0xFF makes the agent forget half a command. One that just comes up may miss it all.
            self._wire.send(b"\xff" + message + b"\n", deadline)
            try:
                attempt = min(deadline, time.monotonic() + 2)
                while self._wire.receive(attempt).get("return") != token:
                    pass
                return
            except MachineLost:
                if time.monotonic() > deadline or self._wire.closed:
                    raise

    def call(self, command: str, **arguments: Any) -> Any:
        """A command of the agent itself."""
        return self._wire.call(command, **arguments)

    def spawn(
        self,
        command: Command,
        *,
        input: bytes = b"",  # noqa: A002
        user: str | None = None,
    ) -> Running:
        """Start a command: a list is a program and its arguments, a string goes to the shell."""
        argv = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
        # The agent is in a mount namespace of its own, to keep it from the journal.
        outside = ["/usr/bin/nsenter", "--mount=/proc/1/ns/mnt", "--"]
        environment = dict(ENVIRONMENT)
        if user:
            outside += ["/usr/sbin/runuser", "-u", user, "--"]
            environment["HOME"] = f"/home/{user}"
        answer = self.call(
            "guest-exec",
            path=outside[0],
            arg=[*outside[1:], *argv],
            env=[f"{key}={value}" for key, value in environment.items()],
            input_data=base64.b64encode(input).decode(),
            capture_output=True,
        )
        return Running(self, command, answer["pid"])

    def run(
        self,
        command: Command,
        *,
        input: bytes = b"",  # noqa: A002
        check: bool = True,
        timeout: float = 60,
        user: str | None = None,
    ) -> Result:
        """Run a command to its end."""
        return self.spawn(command, input=input, user=user).wait(timeout=timeout, check=check)

    def kill(self, pid: int) -> None:
        """Kill a command and what it started."""
        script = f"for p in $(ps -o pid= --ppid {pid}); do kill -9 $p; done; kill -9 {pid}"
        answer = self.call("guest-exec", path="/bin/sh", arg=["-c", script])
        while not self.call("guest-exec-status", pid=answer["pid"])["exited"]:
            time.sleep(0.02)

    def push(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Write a file in the guest, its directories included."""
        script = 'mkdir -p "${1%/*}" && : > "$1" && chmod "$2" "$1"'
        self.run(["/bin/sh", "-c", script, "sh", path, f"{mode:o}"])
        handle = self.call("guest-file-open", path=path, mode="w")
        try:
            for start in range(0, len(data), CHUNK):
                piece = base64.b64encode(data[start : start + CHUNK]).decode()
                self.call("guest-file-write", handle=handle, buf_b64=piece)
        finally:
            self.call("guest-file-close", handle=handle)

    def pull(self, path: str) -> bytes:
        """Read a file in the guest."""
        try:
            handle = self.call("guest-file-open", path=path, mode="r")
        except WireError as error:
            raise FileNotFoundError(str(error)) from error
        data = bytearray()
        try:
            while True:
                piece = self.call("guest-file-read", handle=handle, count=CHUNK)
                data += base64.b64decode(piece["buf-b64"])
                if piece["eof"] or not piece["count"]:
                    return bytes(data)
        finally:
            self.call("guest-file-close", handle=handle)


def _show(command: Command) -> str:
    return command.strip() if isinstance(command, str) else " ".join(command)
