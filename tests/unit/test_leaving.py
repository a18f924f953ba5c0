"""The end of a program: all that it said is written, and its status told."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.unit.conftest import SRC

SAY = """
import sys
sys.path.insert(0, sys.argv[1])
from cryptbackd.leaving import leave
if sys.stdout is not None:
    sys.stdout.write("said")
sys.stderr.write("complained")
leave(3)
"""


@pytest.mark.parametrize(("closed", "out"), [("", "said"), (">&-", "")])
def test_what_was_said_is_written_before_it_ends(closed: str, out: str) -> None:
    script = f'exec "$@" {closed}'
    command = ["/bin/sh", "-c", script, "sh", sys.executable, "-I", "-c", SAY, str(SRC)]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (3, out, "complained")


def test_what_can_not_be_written_is_no_success() -> None:
    script = 'exec "$@" > /dev/full'
    command = ["/bin/sh", "-c", script, "sh", sys.executable, "-I", "-c", SAY, str(SRC)]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ended.returncode not in (0, 3)
    assert "No space left on device" in ended.stderr
