"""The thread that tells what remains to be written, and its end."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from cryptbackd.model import Phase
from cryptbackd.worker import remaining
from cryptbackd.worker.control import Control


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
