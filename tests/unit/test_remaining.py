"""What is told of how far it is, and the thread that tells what remains to be written."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest

from cryptbackd import protocol
from cryptbackd.model import Phase
from cryptbackd.worker import remaining
from cryptbackd.worker.control import Control, Meter


def test_the_thread_is_gone_when_the_next_phase_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    statistics = tmp_path / "memory.stat"
    statistics.write_text("anon 1\nfile_dirty 4096\nfile_writeback 0\n")
    monkeypatch.setattr(remaining, "_statistics", lambda: statistics)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        control = Control(ours)
        for _ in range(50):
            control.phase(Phase.KEEPING)
            remaining.tell(control)
            assert "remaining" in {thread.name for thread in threading.enumerate()}
            control.phase(Phase.COMPARING)
            assert "remaining" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize(
    ("total", "done"),
    [
        (2 * 10**9, [10**8] * 2000),
        (30 * 10**18, [0, 10**9]),
        (30 * 10**18, [0, 20 * 10**18]),
    ],
    ids=["only empty files for long", "more than there is", "more than can be read"],
)
def test_whatever_files_come_to_the_daemon_understands_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, total: int, done: list[int]
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        meter = Meter(Control(ours), total)
        for through in done:
            now[0] += 0.5
            meter.at(through)
            received = protocol.receive(theirs)
            assert received is not None
            assert isinstance(received[0], protocol.Progressed)
