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
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence

NAME = "org.cryptback1"
PATH = "/org/cryptback1"
INTERFACE = "org.cryptback1.Manager"
BUS = "org.freedesktop.DBus"
ADDRESS = os.environ.get("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/run/dbus/system_bus_socket")
CALL, RETURN, ERROR, SIGNAL = 1, 2, 3, 4
NO_REPLY = 1
METHODS = {
    "ListDrives": "", "GetDrive": "s", "GetHistory": "su", "GetResult": "s", "RegisterAgent": "",
    "UnregisterAgent": "", "Run": "sa{sv}", "Verify": "sa{sv}", "Cancel": "s",
    "Eject": "s", "Survey": "sa{sv}", "Init": "sa{sv}", "Header": "s", "Passphrase": "sa{sv}",
    "Adopt": "s", "Repair": "sa{sv}", "HandOver": "ss", "Browse": "sa{sv}",
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


def text_of(message: bytes) -> str:
    """The only value of a message, a string."""
    return message.rstrip(b"\0").rpartition(b"\0")[2].decode()


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
        self.fds: list[int] = []
        self.send(self.message("Hello", to=BUS, path="/org/freedesktop/DBus", interface=BUS))
        self.name = text_of(self.reply())

    def message(
        self, member: str, kinds: str = "", body: bytes = b"", *, to: str = NAME, path: str = PATH,
        interface: str = INTERFACE, kind: int = CALL, flags: int = 0, fds: int = 0,
        answers: int = 0,
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
        for code, number in ((5, answers), (9, fds)):
            if number:
                fields = padded(padded(fields, 8) + bytes([code]) + signature("u"), 4)
                fields += struct.pack("<I", number)
        start = b"l" + bytes([kind, flags, 1])
        start += struct.pack("<III", len(body), self.serial, len(fields))
        return padded(start + fields, 8) + body

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        if fds:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
            self.sock.sendmsg([data], ancillary)
        else:
            self.sock.sendall(data)

    def next(self) -> bytes:
        """The next message."""
        while len(self.got) < 16:
            self._more()
        length, _serial, fields = struct.unpack("<III", self.got[4:16])
        end = 16 + fields + -fields % 8 + length
        while len(self.got) < end:
            self._more()
        message, self.got = self.got[:end], self.got[end:]
        return message

    def reply(self) -> bytes:
        """The next reply; everything else is passed over."""
        while (message := self.next())[1] not in (RETURN, ERROR):
            pass
        return message

    def owner(self) -> str:
        """The unique name of the daemon."""
        name = string(NAME)
        self.send(self.message("GetNameOwner", "s", name, to=BUS, path="/", interface=BUS))
        return text_of(self.reply())

    def _more(self) -> None:
        data, fds, _flags, _address = socket.recv_fds(self.sock, 1 << 16, 8)
        self.fds += fds
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


class Filesystem:
    """A mount whose server never tells root that a file may be closed (FUSE_FLUSH).

    Whoever closes a descriptor of it waits, and no signal ends that, not even SIGKILL.  A *mute*
    one answers nothing at all.
    """

    FLUSH, INIT = 25, 26

    def __init__(self, place: str = "", mute: bool = False) -> None:
        self.place = place or tempfile.mkdtemp()
        self.mute = mute
        self.keeps = True
        self.kept: list[int] = []
        """The questions without an answer."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            around = {**os.environ, "_FUSE_COMMFD": str(theirs.fileno())}
            command = ["fusermount3", "-o", "rw", "--", self.place]
            subprocess.run(command, check=True, env=around, pass_fds=[theirs.fileno()])
            _data, (self.device,), _flags, _address = socket.recv_fds(ours, 1, 1)
        threading.Thread(target=self._serve, daemon=True).start()

    def file(self) -> int:
        return os.open(os.path.join(self.place, "file"), os.O_RDONLY)

    def close(self) -> None:
        subprocess.run(["fusermount3", "-u", "-z", "--", self.place], check=True)
        os.rmdir(self.place)

    def answer_all(self) -> None:
        """Let those go on who wait."""
        self.keeps = False
        for unique in self.kept:
            os.write(self.device, struct.pack("=IiQ", 16, 0, unique))

    def _serve(self) -> None:
        while True:
            request = os.read(self.device, 1 << 18)
            _length, code, unique, node, user = struct.unpack_from("=IIQQI", request)
            if code in (2, 36, 42):  # forget, interrupt, batch forget: nobody waits for an answer
                continue
            unanswered = (code == self.FLUSH and user == 0) or (self.mute and code != self.INIT)
            if self.keeps and unanswered:
                self.kept.append(unique)
                continue
            error, answer = self._answer(code, node)
            os.write(self.device, struct.pack("=IiQ", 16 + len(answer), error, unique) + answer)

    def _answer(self, code: int, node: int) -> tuple[int, bytes]:
        match code:
            case 1:  # lookup
                return 0, struct.pack("=QQQQII", 2, 0, 60, 60, 0, 0) + self._attributes(2)
            case 3:  # getattr
                return 0, struct.pack("=QII", 60, 0, 0) + self._attributes(node)
            case 14:  # open
                return 0, struct.pack("=QII", 1, 0, 0)
            case self.INIT:
                return 0, struct.pack("=IIIIHHII", 7, 31, 0, 0, 12, 9, 1 << 16, 1) + bytes(36)
            case 18 | self.FLUSH:
                return 0, b""
        return -38, b""  # ENOSYS

    @staticmethod
    def _attributes(node: int) -> bytes:
        mode = 0o40755 if node == 1 else 0o100644
        owner = (os.getuid(), os.getgid())
        return struct.pack("=6Q3I7I", node, 0, 0, 0, 0, 0, 0, 0, 0, mode, 1, *owner, 0, 4096, 0)


def unclosable(seconds: float = 5.0) -> int:
    """Descriptors whose closing takes for ever, with messages of all kinds."""
    filesystem = Filesystem()
    count = 0
    for to in (NAME, Client().owner()):
        for kind, member, kinds in (
            (SIGNAL, "ListDrives", ""), (SIGNAL, "PrepareForSleep", "b"), (RETURN, "", ""),
            (ERROR, "", ""), (CALL, "ListDrives", ""), (CALL, "HandOver", "ss"), (CALL, "No", ""),
        ):  # fmt: skip
            for flags in (0, NO_REPLY):
                # The bus may end one that says what it does not like.
                other = Client()
                other.swallow()
                data = other.message(
                    member, kinds, body_for(kinds), to=to, kind=kind, flags=flags, fds=1,
                    answers=1 if kind in (RETURN, ERROR) else 0,
                )  # fmt: skip
                file = filesystem.file()
                with contextlib.suppress(OSError):
                    other.send(data, [file])
                os.close(file)
                count += 1
    time.sleep(seconds)
    filesystem.close()
    return count


def early(until: str) -> int:
    """Descriptors to connections that are only just made, until the file *until* is there."""
    count = 0
    client = Client()
    client.swallow()
    while not os.path.exists(until):
        newest = int(Client().name.rpartition(".")[2])
        messages = [
            client.message("Anything", to=f":1.{newest + ahead}", kind=SIGNAL, fds=1)
            for ahead in range(1, 9)
        ]
        for message in messages * 20:
            client.send(message, [0])
            count += 1
    return count


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


def ask_each(flags: str, *members: str) -> dict[str, dict[str, object]]:
    """What one call of each of these methods is answered."""
    return {member: ask(member, flags) for member in members}


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


def wait_for(path: str) -> None:
    while not os.path.exists(path):
        time.sleep(0.1)


def serve(place: str, until: str) -> bool:
    """A filesystem there whose server answers nothing, until the file *until* is there."""
    filesystem = Filesystem(place, mute=True)
    wait_for(until)
    filesystem.close()
    return True


def browse(until: str) -> bool:
    """Hand over something else than a mount, that can't be closed before the file *until* is there.

    Whether it was taken.
    """
    client = Client()
    client.send(client.message("Browse", "sa{sv}", body_for("sa{sv}")))
    run = text_of(client.reply())
    while True:
        client.send(client.message("GetDrive", "s", body_for("s")))
        if b"browsing" in client.reply():
            break
        time.sleep(0.2)
    wanted = padded(string(run), 4) + string("mount")
    client.send(client.message("HandOver", "ss", wanted))
    client.reply()
    filesystem = Filesystem()
    with socket.socket(fileno=client.fds[0]) as way:
        file = filesystem.file()
        socket.send_fds(way, [b"mount"], [file])
        taken = way.recv(1) != b""
    wait_for(until)
    filesystem.answer_all()
    os.close(file)
    filesystem.close()
    return taken


def answer(descriptors: str) -> dict[str, bool]:
    """Be an agent that answers one question, with so many descriptors."""
    client = Client()
    client.send(client.message("RegisterAgent"))
    client.reply()
    while (call := client.next())[1] != CALL:
        pass
    (serial,) = struct.unpack_from("<I", call, 8)
    number = int(descriptors)
    for name in (NAME, client.owner()):
        reply = client.message("", to=name, path="", interface="", kind=RETURN, answers=serial,
                               fds=number)  # fmt: skip
        client.send(reply, [0] * number)
    time.sleep(0.2)
    return {"asked": True}


def look(until: str, pid: str) -> dict[str, float]:
    """Ask for the drives over and over until the file *until* is there: how long that took.

    ``busiest`` is how long the daemon, the process *pid*, was at work while somebody waited for an
    answer.  Unlike the time that passed, that does not grow with what else the computer does.
    """
    client = Client()
    slowest, busiest, count = 0.0, 0.0, 0
    while count < 10 or not os.path.exists(until):
        worked, started = at_work(pid), time.monotonic()
        client.send(client.message("ListDrives"))
        answer = client.reply()
        assert answer[1] == 2, answer
        slowest = max(slowest, time.monotonic() - started)
        busiest = max(busiest, at_work(pid) - worked)
        count += 1
        time.sleep(0.02)
    return {"slowest": slowest, "busiest": busiest, "count": count}


def at_work(pid: str) -> float:
    """Seconds of processor time that a process has used until now (proc_pid_stat(5))."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


ATTACKS: dict[str, Callable[..., object]] = {
    "oddities": oddities, "descriptors": descriptors, "types": types, "flood": flood,
    "leave": leave, "unclosable": unclosable,
}  # fmt: skip

OTHERS: dict[str, Callable[..., object]] = {
    "look": look, "early": early, "answer": answer, "ask": ask, "ask_each": ask_each,
    "serve": serve, "browse": browse,
}  # fmt: skip

if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    print(json.dumps((ATTACKS | OTHERS)[what](*rest)))
