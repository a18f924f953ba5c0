"""What holds for everything that is told, whatever was read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cryptbackd.errors import CryptbackError

LONGEST = 1000
"""Characters of a sentence: the journal has no more of one."""


def harmless(text: str) -> None:
    """One line without anything that a terminal or the journal would take for more than text."""
    assert isinstance(text, str)
    assert text.isprintable(), f"not printable: {text!r}"
    assert len(text) <= LONGEST, f"{len(text)} characters"


def told(error: CryptbackError) -> None:
    """A sentence, and a hint or none."""
    harmless(error.sentence)
    harmless(error.hint)
    # What a tool said last may be its end.
    assert error.sentence.strip(" :") == error.sentence != "", f"no sentence: {error.sentence!r}"


class Ended(Exception):
    """The input was refused, in the way that is documented."""


@contextmanager
def refusing(*documented: type[CryptbackError]) -> Iterator[None]:
    """Nothing but these errors comes out, each with sentence and hint; then Ended."""
    try:
        yield
    except documented as error:
        told(error)
        raise Ended from error


def outcome(check: Callable[[], str]) -> str:
    """What *check* returns; "refused" where it raised Ended."""
    try:
        return check()
    except Ended:
        return "refused"


def inside(path: str | bytes) -> None:
    """A path that leads nowhere but below where it begins."""
    raw = path.encode("utf-8", "surrogateescape") if isinstance(path, str) else path
    assert not raw.startswith(b"/"), f"absolute: {raw!r}"
    assert b".." not in raw.split(b"/"), f"leads out: {raw!r}"
    assert b"\0" not in raw, f"NUL: {raw!r}"
