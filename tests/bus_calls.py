"""Calls of an ordinary user on the system bus, as the host has made them up.

Runs in the machine, beside ``tests/hostile.py``; it needs nothing but Python.  The argument is a
file: a literal, with messages and the secrets that nobody may tell.  What came of the calls is
printed as JSON: how many of each answer, one of each error, and who told a secret.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import select
import struct
import sys
import time
from collections import Counter

from tests.hostile import ERROR, NO_REPLY, RETURN, Client

PATIENCE = 40.0
"""Seconds that an answer may take: polkit is waited for half a minute."""
MOST = 1 << 20


def read_all(fds: list[int]) -> bytes:
    """What the descriptors of an answer have to give, which are closed then."""
    found = b""
    while fds:
        fd = fds.pop()
        with contextlib.suppress(OSError):
            os.set_blocking(fd, False)
            end = time.monotonic() + 20
            while time.monotonic() < end and select.select([fd], [], [], 5)[0]:
                piece = os.read(fd, MOST)
                if not piece:
                    break
                found += piece
        os.close(fd)
    return found


def error_of(message: bytes) -> tuple[str, str]:
    """Name and text of an error: its fourth header field, and its only value."""
    length, _serial, fields = struct.unpack("<III", message[4:16])
    head = message[16 : 16 + fields]
    at = head.index(b"\x04\x01s\0") + 4
    at += -at % 4
    size = struct.unpack_from("<I", head, at)[0]
    name = head[at + 4 : at + 4 + size].decode()
    body = message[16 + fields + -fields % 8 :][:length]
    text = body[4:-1].decode("utf-8", "replace") if length > 4 else ""
    return name, text


def answered(client: Client, serial: int) -> bytes | None:
    """The reply to the message of that number; None where the bus has ended the connection."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            message = client.next()
        except (ConnectionResetError, BrokenPipeError):
            return None
        if message[1] in (RETURN, ERROR) and struct.pack("<I", serial) in message[16:]:
            return message
    raise TimeoutError(f"no answer to the message {serial}")


def main() -> None:
    with open(sys.argv[1], encoding="ascii") as file:
        asked = ast.literal_eval(file.read())
    outcomes: Counter[str] = Counter()
    errors: dict[str, str] = {}
    told: list[str] = []
    client = Client()
    for number, (member, flags, raw, fds) in enumerate(asked["calls"]):
        files = [os.open("/dev/null", os.O_RDONLY) for _ in range(fds)]
        # Numbers of our own stand in the header: a connection that was made anew has others.
        serial = 1000 + number
        raw = raw[:8] + struct.pack("<I", serial) + raw[12:]  # noqa: PLW2901
        try:
            client.send(raw, files)
            answer = None if flags & NO_REPLY else answered(client, serial)
        except (ConnectionResetError, BrokenPipeError):
            answer = None
        for file_ in files:
            os.close(file_)
        if answer is None:
            outcomes["dropped" if flags & NO_REPLY else "thrown out by the bus"] += 1
            if not flags & NO_REPLY:
                client.sock.close()
                client = Client()
            continue
        given = read_all(client.fds)
        if answer[1] == ERROR:
            name, text = error_of(answer)
            outcomes[name] += 1
            errors.setdefault(f"{name}\n{text[:60]}", text)
        else:
            outcomes[f"answered {member}"] += 1
        told += [
            f"{member} {flags}: {secret}"
            for secret in asked["secrets"]
            if secret.encode() in answer + given and secret.encode() not in raw
        ]
    print(json.dumps({"outcomes": outcomes, "errors": list(errors.items()), "told": told}))


if __name__ == "__main__":
    main()
