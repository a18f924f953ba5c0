"""Finding files in the versions that the computer remembers.

Each block of a manifest is searched once, however many versions have it.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

import attrs

from .changes import fields, same_content
from .manifest import SEPARATOR, Block, Reader
from .seeing import Seer, Sight

_WILD = re.compile(r"\*|\?|\[[^]]*\]")


class Pattern:
    """What is searched for.  Upper and lower case are the same.

    With ``*``, ``?`` or ``[…]`` it is a pattern for the whole name, else a piece of the name.  With
    a ``/`` in it, it is for names that follow each other at the end of the path, and beginning
    with ``/`` for the whole path.
    """

    def __init__(self, text: str) -> None:
        wild = _WILD.search(text) is not None
        self._by_name = "/" not in text
        pieces = sorted(_WILD.split(text), key=len)
        self.literal = pieces[-1].strip("/").lower()
        """Lower-case text that is in each path that fits."""
        if self._by_name:
            expression = text if wild else f"*{_escaped(text)}*"
        else:
            path = (text if wild else _escaped(text)).rstrip("/")
            expression = path if text.startswith("/") else f"*/{path}"
        self._matches = re.compile(fnmatch.translate(expression), re.IGNORECASE).match

    def fits(self, path: str) -> bool:
        """Whether it fits the *path*, which begins with ``/``."""
        return self._matches(path.rpartition("/")[2] if self._by_name else path) is not None


def _escaped(text: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", text)


class State(NamedTuple):
    """What a path was like in versions that follow each other."""

    record: list[bytes]
    versions: list[str]


@attrs.define
class Found:
    """The paths that were found on one drive, each with its states in the versions' order."""

    paths: dict[bytes, list[State]] = attrs.field(factory=dict)
    more: bool = False
    """There were more than were asked for."""


class Search:
    """A search through the manifests of one drive, oldest version first."""

    def __init__(self, pattern: Pattern, seer: Seer, limit: int) -> None:
        self._pattern = pattern
        self._seer = seer
        self._limit = limit
        self._blocks: dict[bytes, list[tuple[bytes, list[bytes]]]] = {}
        self._last = ""
        self.found = Found()

    def look(self, version: str, reader: Reader) -> None:
        """Search the manifest of a version; raises ManifestDamaged."""
        sight = self._seer.look(reader)
        for block in reader.blocks:
            for path, record in self._matches(reader, block, sight):
                if sight.shows(path, record):
                    self._add(version, path, record)
        self._last = version

    def _matches(
        self, reader: Reader, block: Block, sight: Sight
    ) -> list[tuple[bytes, list[bytes]]]:
        known = self._blocks.get(block.digest)
        if known is not None:
            return known
        found: list[tuple[bytes, list[bytes]]] = []
        hidden = False
        for path, record in _fitting(self._pattern, reader.text(block)):
            if not sight.shows(path, record):
                hidden = True
            elif path in self.found.paths or len(self.found.paths) + len(found) < self._limit:
                found.append((path, record))
            else:
                self.found.more = True
        if not hidden:
            self._blocks[block.digest] = found
        return found

    def _add(self, version: str, path: bytes, record: list[bytes]) -> None:
        states = self.found.paths.setdefault(path, [])
        last = states[-1] if states else None
        if last is not None and last.versions[-1] == self._last and _unchanged(last.record, record):
            last.versions.append(version)
        else:
            states.append(State(record, [version]))


def _fitting(pattern: Pattern, text: bytes) -> Iterator[tuple[bytes, list[bytes]]]:
    if pattern.literal not in os.fsdecode(text).lower():
        return
    for raw in text[:-1].split(b"\0"):
        path = raw.partition(SEPARATOR)[0]
        if pattern.fits("/" + os.fsdecode(path)):
            yield path, fields(raw)[1]


def _unchanged(one: list[bytes], other: list[bytes]) -> bool:
    return same_content(one, other) and (one[0] != b"f" or one[6] == other[6])


def groups_of(uid: int) -> frozenset[int]:
    """The groups of a user."""
    import pwd

    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        return frozenset()
    return frozenset(os.getgrouplist(user.pw_name, user.pw_gid))
