"""A client of the system bus that means harm, and one that looks whether others are served.

Speaks the protocol by itself, so that it can say what no library would.  Runs in the machine,
as an ordinary user, from standard input: it needs nothing but Python.  The argument says what
to do; the result is printed as JSON.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Sequence

NAME = "org.cryptback1"
PATH = "/org/cryptback1"
INTERFACE = "org.cryptback1.Manager"
BUS = "org.freedesktop.DBus"
ADDRESS = os.environ.get("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/run/dbus/system_bus_socket")
CALL, SIGNAL = 1, 4
NO_REPLY = 1
METHODS = {
    "ListDrives": "", "GetDrive": "s", "GetHistory": "su", "RegisterAgent": "",
    "UnregisterAgent": "", "Run": "sa{sv}", "Verify": "sa{sv}", "Cancel": "s",
    "Eject": "s", "Survey": "sa{sv}", "Init": "sa{sv}", "Header": "s", "Passphrase": "sa{sv}",
    "Adopt": "s", "Repair": "sa{sv}", "HandOver": "ss", "Browse": "sa{sv}", "ShowOn": "sh",
    "Close": "s", "Kit": "s", "KitWritten": "ss", "Forget": "s", "Resize": "ss",
    "Restore": "sa{sv}", "Recover": "sa{sv}",
    "Find": "sa{sv}", "Versions": "s", "Compare": "sss",
}  # fmt: skip


def padded(data: bytes, to: int) -> bytes:
    return data + bytes(-len(data) % to)


def string(text: str) -> bytes:
    return struct.pack("<I", len(text.encode())) + text.encode() + b"\0"


def signature(text: str) -> bytes:
    return bytes([len(text)]) + text.encode() + b"\0"


def body_for(kinds: str) -> bytes:
    """Values of these types (s, u, h, a{sv}): as empty as can be."""
    body = b""
    for kind in kinds.replace("a{sv}", "o"):
        body = padded(body, 4)
        if kind == "s":
            body += string("home")
        elif kind == "o":  # an array, with the alignment of its first element
            body = padded(body + struct.pack("<I", 0), 8)
        else:
            body += struct.pack("<I", 7)
    return body


class Client:
    """A connection; ``send`` says anything."""

    def __init__(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect(ADDRESS.partition("path=")[2].partition(",")[0])
        uid = str(os.getuid()).encode().hex().encode()
        for line in (b"\0AUTH EXTERNAL " + uid, b"NEGOTIATE_UNIX_FD"):
            self.sock.sendall(line + b"\r\n")
            self.sock.recv(1000)
        self.sock.sendall(b"BEGIN\r\n")
        self.serial = 0
        self.got = b""
        self.send(self.message("Hello", to=BUS, path="/org/freedesktop/DBus", interface=BUS))
        self.reply()

    def message(
        self, member: str, kinds: str = "", body: bytes = b"", *, to: str = NAME, path: str = PATH,
        interface: str = INTERFACE, kind: int = CALL, flags: int = 0, fds: int = 0,
    ) -> bytes:  # fmt: skip
        self.serial += 1
        fields = b""
        for code, type_, text in (
            (1, "o", path), (2, "s", interface), (3, "s", member), (6, "s", to), (8, "g", kinds)
        ):  # fmt: skip
            if not text:
                continue
            fields = padded(fields, 8) + bytes([code]) + signature(type_)
            if type_ == "g":
                fields += signature(text)
            else:
                fields = padded(fields, 4) + string(text)
        if fds:
            fields = padded(padded(fields, 8) + bytes([9]) + signature("u"), 4)
            fields += struct.pack("<I", fds)
        start = b"l" + bytes([kind, flags, 1])
        start += struct.pack("<III", len(body), self.serial, len(fields))
        return padded(start + fields, 8) + body

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        if fds:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
            self.sock.sendmsg([data], ancillary)
        else:
            self.sock.sendall(data)

    def reply(self) -> bytes:
        """The next reply; everything else is passed over."""
        while True:
            while len(self.got) < 16:
                self._more()
            length, _serial, fields = struct.unpack("<III", self.got[4:16])
            end = 16 + fields + -fields % 8 + length
            while len(self.got) < end:
                self._more()
            message, self.got = self.got[:end], self.got[end:]
            if message[1] in (2, 3):
                return message

    def _more(self) -> None:
        data = self.sock.recv(1 << 16)
        if not data:
            raise ConnectionResetError
        self.got += data

    def swallow(self) -> None:
        """Read and drop whatever comes, from now on."""

        def read() -> None:
            try:
                while self.sock.recv(1 << 20):
                    pass
            except OSError:
                pass

        threading.Thread(target=read, daemon=True).start()


def oddities() -> int:
    """Every value of the bytes for flags and for the kind of a message."""
    count = 0
    client = Client()
    client.swallow()
    for number in range(256):
        client.send(client.message("ListDrives", flags=number))
        count += 1
    for number in (0, *range(5, 256)):
        # The bus ends a connection that says what it does not like.
        other = Client()
        with contextlib.suppress(OSError):
            other.send(other.message("ListDrives", kind=number))
        other.sock.close()
        count += 1
    time.sleep(0.5)
    return count


def descriptors(number: int = 1000) -> int:
    """Signals and calls that carry descriptors, and calls that name some that don't come."""
    client = Client()
    client.swallow()
    for turn in range(number):
        fds = [0] * (turn % 3 + 1)
        for kind, member, kinds, body in (
            (SIGNAL, "ListDrives", "", b""),
            (SIGNAL, "PrepareForSleep", "b", struct.pack("<I", 1)),
            (CALL, "ListDrives", "", b""),
            (CALL, "HandOver", "hh", struct.pack("<II", 0, 0xFFFFFFFF)),
            (CALL, "GetDrive", "h", struct.pack("<I", turn)),
        ):
            data = client.message(member, kinds, body, kind=kind, fds=len(fds), flags=NO_REPLY)
            client.send(data, fds)
    time.sleep(0.5)
    return number * 5


def types() -> int:
    """Every method with arguments of the wrong types, and with none."""
    client = Client()
    nested = signature("v") * 30 + signature("u")
    wrong = [
        ("", b""), ("u", struct.pack("<I", 1)), ("s", string("")), ("s", string("x" * 100_000)),
        ("s", string("../../etc")), ("ss", body_for("ss")), ("h", struct.pack("<I", 99)),
        ("v", padded(nested, 4) + struct.pack("<I", 1)),
        ("sa{sv}", padded(string("home"), 4) + struct.pack("<I", 0)),
    ]  # fmt: skip
    count = 0
    for member in METHODS:
        for kinds, body in wrong:
            if kinds == "sa{sv}":
                body = padded(body, 8)  # noqa: PLW2901
            client.send(client.message(member, kinds, body))
            client.reply()
            count += 1
    return count


def flood(number: int = 10_000, connections: int = 4) -> int:
    """So many calls, half of which want no answer."""
    clients = [Client() for _ in range(connections)]
    for client in clients:
        client.swallow()
    members = list(METHODS)
    for client in clients:
        calls = []
        for turn in range(number // connections):
            member = members[turn % len(members)] if turn % 4 == 0 else "ListDrives"
            kinds = METHODS[member]
            calls.append(client.message(member, kinds, body_for(kinds), flags=turn % 2))
        threading.Thread(target=client.send, args=(b"".join(calls),)).start()
    for client in clients:
        # Answered when all before it was.
        client.send(client.message("Ping", interface="org.freedesktop.DBus.Peer", flags=0))
    while any(thread.name.startswith("Thread") and not thread.daemon
              for thread in threading.enumerate()):  # fmt: skip
        time.sleep(0.05)
    time.sleep(1)
    return number


def leave() -> int:
    """Leave in the middle of a message, right after a call, and before its answer is read."""
    count = 0
    for member, kinds in METHODS.items():
        data = Client().message(member, kinds, body_for(kinds))
        for part in (16, len(data) - 1, len(data)):
            client = Client()
            client.send(data[:part])
            client.sock.close()
            count += 1
    time.sleep(0.5)
    return count


def ask(member: str, flags: str = "0") -> dict[str, object]:
    """What one call of a method is answered: whether it was refused, and in which words."""
    client = Client()
    kinds = METHODS[member]
    client.send(client.message(member, kinds, body_for(kinds), flags=int(flags)))
    answer = client.reply()
    words = answer.decode("ascii", "replace")
    return {
        "refused": answer[1] == 3,
        "words": "".join(c if c.isprintable() else " " for c in words),
    }


def look(until: str) -> dict[str, float]:
    """Ask for the drives over and over until the file *until* is there: how long that took."""
    client = Client()
    slowest, count = 0.0, 0
    while count < 10 or not os.path.exists(until):
        started = time.monotonic()
        client.send(client.message("ListDrives"))
        answer = client.reply()
        assert answer[1] == 2, answer
        slowest = max(slowest, time.monotonic() - started)
        count += 1
        time.sleep(0.02)
    return {"slowest": slowest, "count": count}


ATTACKS: dict[str, Callable[[], int]] = {
    "oddities": oddities, "descriptors": descriptors, "types": types, "flood": flood,
    "leave": leave,
}  # fmt: skip

if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "look":
        print(json.dumps(look(rest[0])))
    elif what == "ask":
        print(json.dumps(ask(*rest)))
    else:
        print(json.dumps(ATTACKS[what]()))
