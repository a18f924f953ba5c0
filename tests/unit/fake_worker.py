"""A worker that only speaks: the stub and its child, without namespaces or drives.

What it does is told by ``Start.options["script"]``, a list of steps.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time
from typing import Any

from cryptbackd import protocol
from cryptbackd.model import JobKind, Outcome, Phase, Progress, RunResult


def _wait(sock: socket.socket, cls: Any) -> tuple[Any, int | None]:
    while True:
        received = protocol.receive(sock)
        if received is None:
            os._exit(1)
        if isinstance(received[0], cls):
            return received


def _mount(sock: socket.socket) -> bool:
    """Whether there was a mount before somebody gave up."""
    protocol.send(sock, protocol.KeyWanted("browse"))
    _answer, fd = _wait(sock, protocol.Key | protocol.Stop)
    if fd is None:
        return False
    device = os.fstat(fd).st_rdev
    protocol.send(sock, protocol.Said(f"got {os.major(device)}:{os.minor(device)}"))
    os.close(fd)
    return True


def _do(sock: socket.socket, script: list[Any]) -> None:
    result = RunResult(Outcome.DONE, "", safe=True, version="v1", files=412, size=1 << 31)
    for step in script:
        match step:
            case ["phase", phase]:
                protocol.send(sock, protocol.PhaseChanged(Phase(phase)))
            case ["progress", done, total]:
                protocol.send(sock, protocol.Progressed(Progress(done, total, 63e6, 42.0)))
            case ["warn", text]:
                protocol.send(sock, protocol.Warned(text))
                result.outcome = Outcome.WARNINGS
                result.warnings.append(text)
            case ["key", purpose, refused]:
                protocol.send(sock, protocol.KeyWanted(purpose, refused))
                key, fd = _wait(sock, protocol.Key)
                if fd is not None:
                    with os.fdopen(fd, "rb") as pipe:
                        # In reality only cryptsetup ever reads it.
                        words = pipe.readline().decode().strip()
                    protocol.send(sock, protocol.Said(f"got {words} from {key.source}"))
                else:
                    protocol.send(sock, protocol.Said(f"no key: {key.source}"))
            case ["give", purpose, text]:
                protocol.send(sock, protocol.KeyWanted(purpose))
                _key, fd = _wait(sock, protocol.Key)
                assert fd is not None
                os.write(fd, text.encode())
                os.close(fd)
            case ["mount"]:
                if not _mount(sock):
                    break
            case ["say", text, message]:
                protocol.send(sock, protocol.Said(text, message))
            case ["stop", *unproven]:
                stop, _fd = _wait(sock, protocol.Stop)
                told = f"It was stopped ({stop.reason})."
                result = RunResult(Outcome.CANCELLED, told, safe=not unproven)
                break
            case ["ignore"]:
                select.select([sock], [], [])
            case ["fail", error]:
                result = RunResult(Outcome.FAILED, "It failed.", error=error)
            case ["die"]:
                os.kill(os.getpid(), signal.SIGKILL)
            case ["hang"]:
                while True:
                    time.sleep(60)
            case ["sleep", seconds]:
                time.sleep(seconds)
            case ["babble"]:
                sock.send(b"nonsense")
    protocol.send(sock, protocol.Finished(result))


def main() -> None:
    """The stub."""
    fd = int(sys.argv[-1])
    child = os.fork()
    if child == 0:
        with socket.socket(fileno=fd) as sock:
            start, _fd = _wait(sock, protocol.Start)
            if start.job is JobKind.SURVEY:
                facts = {**FACTS, "device": start.device.node}
                result = RunResult(Outcome.DONE, "", safe=True, data=facts)
                protocol.send(sock, protocol.Finished(result))
            elif start.job is JobKind.LOOK:
                result = RunResult(Outcome.DONE, "", data={"difference": ""})
                protocol.send(sock, protocol.Finished(result))
            else:
                script = INIT if start.job is JobKind.INIT else DEFAULT
                _do(sock, start.options.get("script", script))
        os._exit(0)
    os.close(fd)
    _pid, status = os.waitpid(child, 0)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


DEFAULT: list[Any] = [
    ["phase", "unlocking"],
    ["key", "open", ""],
    ["phase", "syncing"],
    *(["progress", share << 20, 100 << 20] for share in range(0, 100, 10)),
]
INIT: list[Any] = [
    ["phase", "formatting"],
    ["key", "format", ""],
    ["phase", "unlocking"],
    ["key", "first-open", ""],
    ["phase", "syncing"],
]
FACTS: dict[str, object] = {
    "device": "",
    "model": "SanDisk Ultra",
    "serial": "1234",
    "size": 16 << 30,
    "fstype": "vfat",
    "label": "STICK\x1b[31m",
    "uuid": "1A2B-3C4D",
    "free": 15 << 30,
    "used": 1 << 30,
    "mounted": [],
    "removable": True,
    "container_exists": False,
    "suggested_size": 14 << 30,
    "problems": [],
}

if __name__ == "__main__":
    main()
