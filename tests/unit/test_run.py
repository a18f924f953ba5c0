"""Programs that are read from while they run."""

from __future__ import annotations

from cryptbackd import run

ENDS = ["/bin/sh", "-c", "cat; sleep 1; echo end"]


def test_nothing_is_lost_between_two_readings() -> None:
    """Of which the first fed it all that there was, and closed that stream."""
    with run.child(ENDS, stdin=b"fed\n") as program:
        assert next(program.read()) == ("out", b"fed\n")
        assert b"".join(chunk for _stream, chunk in program.read(deadline=10)) == b"end\n"
