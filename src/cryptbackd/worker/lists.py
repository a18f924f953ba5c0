"""The users' own lists (``include_from``), and what is asked for in all.

A list is read anew in every run, with the rights of the user in whose home directory it
lies; what it names is also looked at, and copied, with those.  So nobody gets a file onto
the drive by a list that they could not have read.  A list outside of every home directory is
root's, and then nobody else may be able to write it.

Nothing here lives longer than the call, but for the descriptors in the plans, which
``sources.stage`` closes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Container, Mapping, Sequence
from functools import partial

import attrs

from ..config import Entry
from ..text import printable
from ..trusted import open_as_root
from . import rights
from .control import Control, escaped
from .listing import pattern
from .mountinfo import Mount, holding, mounts
from .rights import Rights
from .sources import Plan, Source, is_hidden, is_inside, outermost, unveil

_LARGEST = 1 << 20
"""Bytes of a list that are read."""
_NAMED = 5
"""Bad lines of one list that are named one by one."""
_LONGEST = 2000
"""Bytes of a path.  A filter of rsync, in which each may be escaped, is shorter than PATH_MAX."""
_ROOM = 1 << 20
"""Bytes of a program's arguments for what all lists name: half of what Linux takes (execve(2))."""
_RULES, _WORDS = 4, 24
"""So many filters of rsync there are of a path at most, with so many bytes beside it each."""


@attrs.frozen
class Group:
    """Sources that are read with the same rights; ``rights`` None: with root's."""

    rights: Rights | None
    plan: Plan


@attrs.frozen
class Asked:
    """Everything that is to be copied, in groups, and what each list named."""

    groups: tuple[Group, ...]
    lists: dict[str, list[str]]

    @property
    def kept(self) -> tuple[str, ...]:
        """The sources whose last state stays."""
        return tuple(source.path for group in self.groups for source in group.plan.kept)

    @property
    def skipped_mounts(self) -> tuple[str, ...]:
        """Mount points that were left out."""
        return tuple(point for group in self.groups for point in group.plan.skipped_mounts)

    def filesystems(self) -> dict[str, str]:
        """Source to filesystem, for the version's record."""
        return {k: v for group in self.groups for k, v in group.plan.filesystems().items()}

    def others(self, group: Group) -> tuple[str, ...]:
        """What a sync of *group* must leave alone: all that it doesn't itself read."""
        own = {source.path for source in group.plan.read}
        every = self.filesystems()
        return tuple(path for path in every if path not in own)


def gather(
    entry: Entry,
    plan_for: Callable[..., Plan],
    last_lists: Mapping[str, Sequence[str]],
    known: Container[str],
    control: Control,
) -> Asked:
    """Read the lists of *entry*, and plan what it and they name.

    *plan_for* is ``sources.plan`` with all but the sources and how they are opened.  A list
    that can't be read is warned about, and what it named the last time (*last_lists*) keeps
    its last state.  A path that lies in one that was named before it is left to that, but where
    who reads that one does not come to it; of those with the same rights *known* ones are not
    either (``sources.outermost``).
    """
    unveil()
    wanted: dict[Rights | None, list[str]] = {None: list(entry.backup.include)}
    unread: list[str] = []
    lists: dict[str, list[str]] = {}
    for path in entry.backup.include_from:
        whose = rights.owner_of_home(path, entry.owner)
        whose = None if whose is not None and whose.uid == 0 else whose
        try:
            room = _ROOM // len(entry.backup.include_from)
            lists[path] = fitting(path, _read(path, whose, control), room, control)
        except OSError as exc:
            lists[path] = list(last_lists.get(path, ()))
            control.warn(
                f"The list {escaped(path)} can't be read: {exc.strerror}. What it named keeps its"
                " last state.",
                doubt=False,
            )
            unread += lists[path]
            continue
        wanted.setdefault(whose, []).extend(lists[path])
    claimed: list[str] = []
    table = mounts()
    left = partial(_is_left_to, claimed, known, table, entry.backup.cross_filesystems)
    shares: dict[Rights | None, list[str]] = {}
    for whose, paths in wanted.items():
        own = [path for path in paths if not left(path)]
        claimed += own
        shares[whose] = outermost(own, known)
    groups: list[Group] = []
    for whose, paths in shares.items():
        planned = partial(plan_for, elsewhere=frozenset(claimed).difference(paths))
        groups += _apart(Group(whose, _plan(planned, paths, whose)), table)
    kept = [path for path in unread if not left(path)]
    if kept:
        first = groups[0]
        more = tuple(Source(path, "") for path in dict.fromkeys(kept))
        groups[0] = attrs.evolve(
            first, plan=attrs.evolve(first.plan, kept=(*first.plan.kept, *more))
        )
    return Asked(tuple(groups), lists)


def _is_left_to(
    claimed: Sequence[str],
    known: Container[str],
    table: Sequence[Mount],
    crossed: bool,
    path: str,
) -> bool:
    """Whether who reads one of the sources *claimed* reads *path*, too.

    Two that were read apart the last time (*known*) stay apart: the disk may not be mounted now.
    """
    around = max((each for each in claimed if is_inside(path, each)), key=len, default="")
    if not around or path == around:
        return bool(around)
    were_apart = path in known and around in known
    return not (were_apart or is_hidden(path, around, table, crossed=crossed))


def _apart(group: Group, table: Sequence[Mount]) -> list[Group]:
    """*group* without what it reads in sources that it keeps, or on disks that are mounted in its
    sources, and groups with that.

    Nobody who reads around a source that is kept comes to what lies in it; and where a disk is
    mounted there are no directories beneath to show what lies in it.
    """
    shares: dict[str, list[Source]] = {"": []}
    paths = {source.path for source in group.plan.read}
    for source in group.plan.read:
        around = [kept.path for kept in group.plan.kept if is_inside(source.path, kept.path)]
        around.append(_disk(source.path, paths, table))
        shares.setdefault(max(around, key=len), []).append(source)
    outside, *within = map(tuple, shares.values())
    plans = [attrs.evolve(group.plan, read=outside)]
    plans += [attrs.evolve(group.plan, read=read, kept=(), skipped_mounts=()) for read in within]
    return [attrs.evolve(group, plan=plan) for plan in plans]


def _disk(path: str, others: Container[str], table: Sequence[Mount]) -> str:
    """The mount point that *path* lies below, where that hides it from one of the *others*."""
    mount = holding(path, table).path
    above = path
    while above not in ("/", mount):
        above = os.path.dirname(above)
    while mount != path and above != "/":
        above = os.path.dirname(above)
        if above in others and is_hidden(path, above, table):
            return mount
    return ""


def _plan(plan_for: Callable[..., Plan], paths: Sequence[str], whose: Rights | None) -> Plan:
    if whose is None:
        return plan_for(paths, open_=open_as_root)
    found = rights.opened(whose, paths, os.O_PATH)

    def open_(path: str) -> int:
        result = found.pop(path)
        if isinstance(result, OSError):
            raise result
        return result

    try:
        return plan_for(paths, open_=open_)
    finally:
        # An error may come before all were asked for.
        for result in found.values():
            if isinstance(result, int):
                os.close(result)


def _read(path: str, whose: Rights | None, control: Control) -> list[str]:
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
    if whose is None:
        # O_PATH first: nothing is opened for reading before it is known to be a file.
        fd = open_as_root(path)
        try:
            _want_roots(path, os.fstat(fd))
            file = os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC)
        finally:
            os.close(fd)
    else:
        result = rights.opened(whose, [path], flags)[path]
        if isinstance(result, OSError):
            raise result
        file = result
    with os.fdopen(file, "rb") as opened:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise OSError(0, "it is not a regular file")
        raw = opened.read(_LARGEST + 1)
    if len(raw) > _LARGEST:
        raise OSError(0, "it is longer than 1 MiB")
    named, bad = parse(raw, whose.home if whose is not None else "/root")
    for number, line in bad[:_NAMED]:
        control.warn(
            f'Line {number} of the list {escaped(path)} is left out: "{printable(line, 60)}" is not'
            f' an absolute path without "..", of at most {_LONGEST} bytes.',
            doubt=False,
        )
    if len(bad) > _NAMED:
        more = f"… and {len(bad) - _NAMED} more lines of the list {escaped(path)}."
        control.warn(more, doubt=False)
    return named


def fitting(path: str, named: list[str], room: int, control: Control) -> list[str]:
    """Of what the list *path* has *named* as much as *room* is for; the rest is warned about."""
    for number, each in enumerate(named):
        room -= _RULES * (len(os.fsencode(pattern(each))) + _WORDS)
        if room < 0:
            control.warn(
                f"The list {escaped(path)} names too much: {escaped(each)} and all"
                f" {len(named) - number} paths from there on are left out.",
                doubt=False,
            )
            return named[:number]
    return named


def _want_roots(path: str, status: os.stat_result) -> None:
    if status.st_uid != 0 or status.st_mode & 0o022:
        raise OSError(
            0,
            "it lies in nobody's home directory, and so must be root's and writable by nobody else",
        )
    for parent in _parents(path):
        above = os.stat(parent)
        if above.st_uid != 0 or above.st_mode & 0o022:
            raise OSError(0, f"{printable(parent)} is writable by others than root")


def _parents(path: str) -> list[str]:
    parts = path.strip("/").split("/")[:-1]
    return ["/" + "/".join(parts[:depth]) for depth in range(len(parts) + 1)]


def parse(raw: bytes, home: str) -> tuple[list[str], list[tuple[int, str]]]:
    """The paths that a list names, and the lines (number, text) that name none.

    One path a line; blanks around it don't count, nor does a line that begins with ``#``;
    ``~`` at the beginning is the home directory.  Names needn't be UTF-8.
    """
    named: list[str] = []
    bad: list[tuple[int, str]] = []
    for number, line in enumerate(os.fsdecode(raw).split("\n"), 1):
        text = line.strip(" \t\r")
        if not text or text.startswith("#"):
            continue
        path = home.rstrip("/") + text[1:] if text == "~" or text.startswith("~/") else text
        if (
            path.startswith("/")
            and "\0" not in path
            and ".." not in path.split("/")
            and len(os.fsencode(path)) <= _LONGEST
        ):
            named.append(os.path.normpath(path).replace("//", "/"))
        else:
            bad.append((number, text))
    return list(dict.fromkeys(named)), bad
