"""What a reader says beside its protocol, as far as it is passed on.

One line a file that can't be read is too much for a message where there are very many.
"""

from __future__ import annotations

import attrs

from . import rsync_words

_PASSED_ON = 16 * 1024
_LAST = 1024
"""Bytes of the last line that tells of no file."""


@attrs.define
class Said:
    """The first lines, how many complaints there are ``more``, and of the others the last.

    The first, since whoever looks before they copy hears the same ones at the beginning.
    """

    more: int = 0
    _first: bytes = b""
    _last: bytes = b""
    _rest: bytes = b""

    def hear(self, data: bytes) -> None:
        """Take in the next bytes; empty at the end."""
        *lines, rest = (self._rest + (data or b"\n")).split(b"\n")
        self._rest = rest[: rsync_words.LONGEST]
        for line in lines:
            self._line(line)

    def _line(self, line: bytes) -> None:
        if not self.more and len(self._first) + len(line) < _PASSED_ON:
            self._first += line + b"\n"
        elif rsync_words.complaint(line.decode("utf-8", "surrogateescape")) is not None:
            self.more += 1
        elif line:
            self._last = line[:_LAST]

    @property
    def text(self) -> str:
        """What is passed on."""
        return (self._first + self._last).decode("utf-8", "surrogateescape").rstrip("\n")
