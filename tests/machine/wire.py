"""A synchronous client for the two sockets of a machine: QEMU's monitor (QMP) and the guest agent.

`qemu.qmp` speaks only the first of them in full, needs an event loop, and limits the size of an
answer; the tests are plain synchronous code that also runs commands from threads.
"""

from __future__ import annotations

import itertools
import json
import socket
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any


class MachineLost(Exception):
    """QEMU or the guest agent is gone or silent: says nothing about the program under test."""


class WireError(Exception):
    """The other side answered that a command failed."""

    def __init__(self, command: str, error: dict[str, Any]) -> None:
        self.kind = str(error.get("class", ""))
        super().__init__(f"{command}: {error.get('desc', error)}")


class Wire:
    """A connection: one command at a time; events that arrive in between are kept."""

    def __init__(self, path: Path, name: str, timeout: float = 60) -> None:
        self.name = name
        self.timeout = timeout
        self.events: deque[dict[str, Any]] = deque(maxlen=1000)
        self.closed = False
        self._buffer = bytearray()
        self._lock = threading.RLock()
        self._ids = itertools.count(1)
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(str(path))
        except OSError:
            self._socket.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def call(self, command: str, *, timeout: float | None = None, **arguments: Any) -> Any:
        """Run a command and return its answer; underscores in arguments' names become dashes."""
        deadline = time.monotonic() + (timeout or self.timeout)
        with self._lock:
            number = next(self._ids)
            message = {
                "execute": command,
                "id": number,
                "arguments": {key.replace("_", "-"): value for key, value in arguments.items()},
            }
            self.send(json.dumps(message).encode() + b"\n", deadline)
            while True:
                answer = self.receive(deadline)
                if "event" in answer:
                    self.events.append(answer)
                elif answer.get("id") != number:
                    continue  # the greeting, or the late answer to a command given up
                elif "error" in answer:
                    raise WireError(command, answer["error"])
                else:
                    return answer["return"]

    def wait_event(self, kind: str, *, timeout: float = 30, **data: Any) -> dict[str, Any]:
        """Wait for an event of this kind with these values in its data; takes it off the queue."""
        deadline = time.monotonic() + timeout
        with self._lock:
            while True:
                for event in self.events:
                    if event["event"] == kind and data.items() <= event.get("data", {}).items():
                        self.events.remove(event)
                        return event
                message = self.receive(deadline)
                if "event" in message:
                    self.events.append(message)

    def send(self, data: bytes, deadline: float) -> None:
        self._socket.settimeout(max(0.01, deadline - time.monotonic()))
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise MachineLost(f"{self.name}: {error!r}") from error

    def receive(self, deadline: float) -> dict[str, Any]:
        """The next message, whatever it is."""
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            self._socket.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                data = self._socket.recv(1 << 20)
            except OSError as error:
                raise MachineLost(f"{self.name} does not answer: {error!r}") from error
            if not data:
                self.closed = True
                raise MachineLost(f"{self.name} closed the connection")
            self._buffer += data
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        message: dict[str, Any] = json.loads(line.lstrip(b"\xff"))
        return message
