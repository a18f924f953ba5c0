"""Finding files in the versions that the computer remembers.

A block of a manifest is searched once, however many versions have it; more often only where much
is hidden from who asks, as memory is bounded.
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
from .seeing import Seer

_WILD = re.compile(r"\*|\?|\[[^]]*\]")
_MOST_KEPT = 100_000
"""Matches that are remembered for versions to come."""

_Match = tuple[bytes, list[bytes]]


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
        self._blocks: dict[bytes, list[_Match]] = {}
        self._room = _MOST_KEPT
        self._last = ""
        self.found = Found()

    def look(self, version: str, reader: Reader) -> None:
        """Search the manifest of a version; raises ManifestDamaged."""
        sight = self._seer.look(reader)
        for block in reader.blocks:
            matches = self._blocks.get(block.digest)
            fresh = matches is None
            if matches is None:
                matches = list(_fitting(self._pattern, reader.text(block)))
            seen = [match for match in matches if sight.shows(*match)]
            for path, record in seen:
                self._add(version, path, record)
            if fresh:
                self._keep(block, matches, hidden=len(seen) < len(matches))
        self._last = version

    def _keep(self, block: Block, matches: list[_Match], *, hidden: bool) -> None:
        """Remember what was found in a block: another version may have it, too.

        What is hidden in this version may be seen in another.
        """
        if not hidden:
            matches = [match for match in matches if match[0] in self.found.paths]
        if not hidden or len(matches) <= self._room:
            self._blocks[block.digest] = matches
            self._room -= len(matches)

    def _add(self, version: str, path: bytes, record: list[bytes]) -> None:
        if path not in self.found.paths and len(self.found.paths) >= self._limit:
            self.found.more = True
            return
        states = self.found.paths.setdefault(path, [])
        last = states[-1] if states else None
        if last is not None and last.versions[-1] == self._last and _unchanged(last.record, record):
            last.versions.append(version)
        else:
            states.append(State(record, [version]))


def _fitting(pattern: Pattern, text: bytes) -> Iterator[_Match]:
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
