"""The header of a drive that is to have none: nothing counts before somebody has it."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from cryptbackd import config, protocol
from cryptbackd import kits as kit_notes
from cryptbackd.errors import Cancelled, Refused
from cryptbackd.model import StopReason
from cryptbackd.worker.control import Control
from cryptbackd.worker.jobs import first_kit
from cryptbackd.worker.whitelist import Header

ENTRY = config.parse('uuid = "AAAA-BBBB"\ncontainer = "x"\n[backup]\ninclude = ["/a"]\n', "home")
RAW = os.urandom(1 << 20)
HEADER = Header("", 0, 4096, "", "", (), 16384, 1, frozenset({0}), (), RAW)
SHA256 = hashlib.sha256(RAW).hexdigest()


class Asker:
    """Whoever asked for the drive, behind the daemon: takes the header and answers."""

    def __init__(self, answer: str | None, stop: bool = False) -> None:
        self.answer = answer
        self.stop = stop
        self.facts: dict[str, Any] = {}
        self.header = b""

    def serve(self, sock: socket.socket) -> None:
        """What the daemon's end of the socket hears, and says to it."""
        with suppress(protocol.ProtocolError, OSError):
            self._give(sock, "header")
            if self.stop:
                protocol.send(sock, protocol.Stop(StopReason.CANCEL))
                return
            if self.answer is not None:
                self._give(sock, "kit")

    def _give(self, sock: socket.socket, purpose: str) -> None:
        received = protocol.receive(sock)
        assert received is not None
        message, _fd = received
        assert isinstance(message, protocol.KeyWanted)
        assert message.purpose == purpose
        reading, writing = os.pipe()
        theirs, ours = (writing, reading) if purpose == "header" else (reading, writing)
        protocol.send(sock, protocol.Key("enrolment"), theirs)
        os.close(theirs)
        if purpose == "kit":
            assert self.answer is not None
            os.write(ours, self.answer.encode())
        elif not self.stop and self.answer is not None:
            with os.fdopen(ours, "rb") as file:
                first, _newline, self.header = file.read().partition(b"\n")
            self.facts = json.loads(first)
            return
        if not self.stop:
            os.close(ours)


@contextmanager
def asked(asker: Asker) -> Iterator[Control]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    thread = threading.Thread(target=asker.serve, args=(theirs,))
    thread.start()
    try:
        yield Control(ours)
    finally:
        thread.join()
        ours.close()
        theirs.close()  # not before: without a daemon a worker ends at once


@pytest.fixture
def kits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(kit_notes.note, "__defaults__", (tmp_path,))
    return tmp_path


def test_it_counts_when_it_is_written(kits: Path) -> None:
    asker = Asker(f"{SHA256}\n")
    with asked(asker) as control:
        first_kit.written("home", ENTRY, 64 << 20, HEADER, control)
    assert asker.header == RAW
    assert asker.facts["uuid"] == "AAAA-BBBB"
    assert asker.facts["sha256"] == SHA256
    assert (kits / "home").read_text() == f"{SHA256}\n"


@pytest.mark.parametrize("answer", ["", "no", hashlib.sha256(b"").hexdigest(), None])
def test_without_the_right_answer_nothing_counts(kits: Path, answer: str | None) -> None:
    with asked(Asker(answer)) as control, pytest.raises(Refused, match="nothing was enrolled"):
        first_kit.written("home", ENTRY, 64 << 20, HEADER, control)
    assert list(kits.iterdir()) == []


def test_it_is_cancelled_while_nobody_reads(kits: Path) -> None:
    with asked(Asker("", stop=True)) as control, pytest.raises(Cancelled):
        first_kit.written("home", ENTRY, 64 << 20, HEADER, control)
    assert list(kits.iterdir()) == []
