"""Locking what a killed worker may have left: ``cryptbackd.worker --sweep``, as a child.

It runs to its end before the daemon looks for drives, after every worker that died, and
after one that could not tell whether a udev cookie is its own.
"""

from __future__ import annotations

import json

import attrs

from .. import paths
from ..errors import ToolFailed
from . import children

_DEADLINE = 60.0


@attrs.frozen
class Swept:
    """What a sweep locked, and what it could not, in sentences."""

    locked: tuple[str, ...] = ()
    stuck: tuple[str, ...] = ()


def is_due(name: str) -> bool:
    """Whether a worker of the entry *name* that ended in order left cookies undecided."""
    return (paths.COOKIES / name).exists()


async def sweep(name: str | None = None) -> Swept:
    """Sweep what belongs to the entry *name*, or everything of ours."""
    argv = ["/usr/bin/python3", "-I", "-m", "cryptbackd.worker", "--sweep"]
    if name is not None:
        argv.append(name)
    try:
        ended = await children.output(argv, deadline=_DEADLINE)
    except ToolFailed as exc:
        return Swept(stuck=(f"The sweep failed: {exc.sentence}",))
    locked: list[str] = []
    stuck: list[str] = []
    for line in ended.out.splitlines():
        try:
            said = json.loads(line)
        except ValueError:
            continue
        if isinstance(said, dict):
            locked += [str(said["swept"])] if "swept" in said else []
            stuck += [str(said["stuck"])] if "stuck" in said else []
    if ended.status != 0 and not stuck:
        stuck.append(f"The sweep failed: {ended.complaint}")
    return Swept(tuple(locked), tuple(stuck))
