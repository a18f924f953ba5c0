"""Which paths an entry's patterns exclude: rsync says it.

A skeleton of empty files and directories is built in an empty directory (of the workspace),
a dry run of rsync goes through it as it would go through the source, and what it doesn't name
is excluded.  The skeleton is gone when :func:`included` returns.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ...run import run
from ..rsync_words import unescaped
from ..versions.tree import remove_tree

_ITEM = b"="


def included(
    paths: Iterable[tuple[bytes, bool]], patterns: tuple[str, ...], where: Path, rsync: str
) -> set[bytes]:
    """Those of *paths* (each with whether it is a directory) that are not excluded.

    *where* must not exist yet.  Raises OSError where no skeleton can be made of a path (it may be
    longer than PATH_MAX), and ToolFailed.
    """
    asked = dict(paths)
    if not patterns or not asked:
        return set(asked)
    where.mkdir()
    try:
        _build(os.fsencode(where), asked)
        argv = [rsync, "--recursive", "--dry-run", f"--out-format={_ITEM.decode()}%n"]
        argv += [f"--filter=- {pattern}" for pattern in patterns]
        told = run([*argv, f"{where}/", f"{where}-none/"], deadline=600).out
    finally:
        remove_tree(where)
    named = {
        unescaped(line[1:]).rstrip(b"/") for line in told.split(b"\n") if line.startswith(_ITEM)
    }
    return named & asked.keys()


def _build(where: bytes, paths: dict[bytes, bool]) -> None:
    made = {b""}
    for path, is_directory in paths.items():
        directory = path if is_directory else os.path.dirname(path)
        missing = []
        while directory not in made:
            missing.append(directory)
            made.add(directory)
            directory = os.path.dirname(directory)
        for directory in reversed(missing):
            os.mkdir(os.path.join(where, directory))
        if not is_directory:
            flags = os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC
            os.close(os.open(os.path.join(where, path), flags, 0o600))
