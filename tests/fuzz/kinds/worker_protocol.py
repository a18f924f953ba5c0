"""What a worker says to the daemon: it has dealt with the drive, and may be somebody else's."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import cast

from dbus_fast import Message, MessageType, Variant

from cryptbackd import protocol
from cryptbackd.daemon import reports, status
from cryptbackd.daemon.history import History, Insertion, Run
from cryptbackd.daemon.jobs import Job
from cryptbackd.daemon.status import DriveView, State
from cryptbackd.daemon.values import drive_values, result_values
from cryptbackd.model import (
    Device,
    JobKind,
    LedgerEntry,
    Outcome,
    Phase,
    Progress,
    RunResult,
    StopReason,
)
from cryptbackd.text import printable
from tests.fuzz import mutate, properties
from tests.fuzz.fuzzer import Fuzzer

_LEDGER = LedgerEntry(7, "2026-11-24T19:03:11Z", "ab" * 16, "cd" * 32)
MESSAGES: tuple[protocol.Message, ...] = (
    protocol.Start(
        JobKind.BACKUP, "home", Device("/dev/sda1", 8, 1, "/dev/sda", 5, "1A2B-3C4D", "vfat"),
        'uuid = "x"\n', _LEDGER, {"full": True, "include": ["/etc"], "size": None},
    ),
    protocol.Key("keyring", 1),
    protocol.Stop(StopReason.EJECT),
    protocol.PhaseChanged(Phase.SYNCING),
    protocol.Progressed(Progress(5, 10, 2.5, -1.0)),
    protocol.Said("home: enrolled.", "enrolled", 6),
    protocol.Warned('"/home/me/file" changed while it was read.'),
    protocol.KeyWanted("open", "keyring"),
    protocol.Finished(
        RunResult(
            Outcome.WARNINGS, "412 files.", "A hint.", "DriveFull", True, False, True, ["one"],
            "2026-11-24T19:03:11Z", 412, 1 << 40, 3, 1 << 20, _LEDGER, {"damaged": []},
        )
    ),
    protocol.Finished(RunResult(Outcome.DONE, "")),
)  # fmt: skip
SAMPLES = tuple(json.loads(protocol.encode(message)) for message in MESSAGES)


def _is_sendable(values: dict[str, Variant]) -> None:
    """It can be told on the bus."""
    Message(
        message_type=MessageType.SIGNAL, path="/org/cryptback1", interface="org.cryptback1.Manager",
        member="DriveChanged", serial=1, signature="sa{sv}", body=["home", values],
    )._marshall(False)  # fmt: skip


@functools.cache
def _history() -> History:
    place = tempfile.TemporaryDirectory(dir="/dev/shm")
    return _Kept(Path(place.name) / "history.db", place)


class _Kept(History):
    """A history whose folder goes with it."""

    def __init__(self, path: Path, place: tempfile.TemporaryDirectory[str]) -> None:
        super().__init__(path, _trouble)
        self._place = place


def _trouble(sentence: str) -> None:
    raise AssertionError(sentence)


def _recorded(result: RunResult) -> None:
    """It is kept, and comes back as it was."""
    history = _history()
    history.begin(Run("1", "home", JobKind.BACKUP, 1.0), Insertion("boot", 1))
    try:
        history.finish("1", result, False, 2.0)
        history.set_ledger("home", result.ledger)
        (kept,) = history.runs("home")
        for name in ("outcome", "error", "sentence", "hint", "version", "files", "size", "safe"):
            assert getattr(kept, name) == getattr(result, name), name
        assert kept.warnings == tuple(result.warnings)
        assert history.ledger("home") == result.ledger
    finally:
        history.forget("home")


def _used(message: protocol.Message) -> None:
    """What the daemon does with it."""
    match message:
        case protocol.Progressed():
            view = DriveView("home", State.RUNNING, phase=Phase.SYNCING, progress=message.progress)
            _is_sendable(drive_values(view, texts=True))
            status.line([view], 1e9).encode("ascii")
        case protocol.PhaseChanged():
            view = DriveView("home", State.RUNNING, phase=message.phase)
            _is_sendable(drive_values(view, texts=True))
            status.line([view], 1e9).encode("ascii")
        case protocol.Said():
            properties.harmless(printable(message.text, 1000))
        case protocol.Warned():
            properties.harmless(printable(message.text, 1000))
        case protocol.Finished():
            result = message.result
            job = SimpleNamespace(
                id="1", name="home", kind=JobKind.VERIFY, seconds=1.0, interrupted=False
            )
            _is_sendable(result_values(cast(Job, job), result, texts=True))
            _recorded(result)
            for line in reports.ended("home", result, seconds=1.0, interrupted=False, present=True):
                properties.harmless(printable(line.text, 1000))


def check(raw: bytes) -> str:
    """It is no message, or one that the daemon can do everything with."""
    try:
        message = protocol.decode(raw)
    except protocol.ProtocolError as error:
        properties.harmless(str(error))
        return "refused"
    assert protocol.decode(protocol.encode(message)) == message
    _used(message)
    return type(message).__name__


FUZZER = Fuzzer(
    "worker-protocol",
    "what a worker says to the daemon: `protocol.decode`, and all that is done with it: bus,"
    " history, status line, journal",
    mutate.json_bytes(SAMPLES),
    check,
)
