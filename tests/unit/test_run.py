"""Programs that are read from while they run."""

from __future__ import annotations

import pytest

from cryptbackd import run
from cryptbackd.errors import ToolFailed

ENDS = ["/bin/sh", "-c", "cat; sleep 1; echo end"]


def test_nothing_is_lost_between_two_readings() -> None:
    """Of which the first fed it all that there was, and closed that stream."""
    with run.child(ENDS, stdin=b"fed\n") as program:
        assert next(program.read()) == ("out", b"fed\n")
        assert b"".join(chunk for _stream, chunk in program.read(deadline=10)) == b"end\n"


def test_a_program_that_there_is_no_room_for_is_told_as_that() -> None:
    """E2BIG here; fork(2) fails with EAGAIN and ENOMEM."""
    with pytest.raises(ToolFailed, match=r"^/bin/true could not be started: Argument list too"):
        run.spawn(["/bin/true", "x" * 3_000_000])


def test_of_mount_that_is_told_which_says_what_is_wrong() -> None:
    """mount(8) ends with a line that sends people to the kernel's messages."""
    said = b"mount: /mnt: wrong fs type.\n       dmesg(1) may have more information after that.\n"
    assert run.Ended(("mount",), 32, b"", said).complaint == "mount: /mnt: wrong fs type."
