"""What keeps a passphrase to itself."""

from __future__ import annotations

import base64
import os
import pty
import socket
import subprocess
import sys

import pytest

from cryptbackd.cli import ask
from cryptbackd.errors import Refused
from cryptbackd.secret import kept
from tests.unit.conftest import SRC
from tests.vm import search

LOOK = """
import ctypes, resource
from cryptbackd.secret import secretive

secretive()
print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), *resource.getrlimit(resource.RLIMIT_CORE))
"""
"""3: PR_GET_DUMPABLE."""


def test_a_secretive_process_leaves_no_core() -> None:
    told = subprocess.run(
        [sys.executable, "-c", LOOK],
        env={"PYTHONPATH": str(SRC)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.split() == ["0", "0", "0"]


@pytest.mark.parametrize("fd", [2**31 - 1, 10**30])
def test_a_descriptor_that_is_not_open_is_refused(fd: int) -> None:
    with pytest.raises(Refused, match="descriptor"), kept(fd):
        pass
    with pytest.raises(Refused, match=r"[Dd]escriptor"):
        ask.one_line(fd)


def test_what_the_kernel_moves_no_passphrase_from_is_refused() -> None:
    near, far = pty.openpty()
    ours, theirs = socket.socketpair()
    with ours, theirs, open(os.devnull, "w", encoding="ascii") as unread:
        os.write(near, b"x\n")
        theirs.send(b"x\n")
        for fd in (far, ours.fileno(), unread.fileno()):
            with pytest.raises(Refused, match="can't be taken from there"), kept(fd):
                pass
    os.close(near)
    os.close(far)


def test_the_search_finds_what_it_is_to_find() -> None:
    """Or the tests in the machine that find nothing would say nothing."""
    secret = "a phrase, über all/things"
    raw = secret.encode()
    written = [raw, secret.encode("utf-16"), secret.encode("utf-16-be"), raw.hex().encode()]
    written += [base64.b64encode(b"x" * before + raw + b"y") for before in range(4)]
    for form in written:
        for before in range(3):
            assert search.times(b"." * before + form + b".", [secret]) > 0, form
    assert search.times(b"a phrase, " * 99, [secret]) == 0
