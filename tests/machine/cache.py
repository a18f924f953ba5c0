"""Where built things are kept: a directory an entry, named after all that went in."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

KEEP = 3
"""Entries of one kind that stay, newest use first."""

IN_USE = 3600.0
"""Seconds since its last use for which an entry is never removed: another test run may be on it."""


def directory() -> Path:
    """The cache directory, made if need be."""
    if chosen := os.environ.get("CRYPTBACKD_CACHE"):
        path = Path(chosen)
    else:
        path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cryptbackd"
    path.mkdir(parents=True, exist_ok=True)
    return path


def digest(inputs: Iterable[bytes | str]) -> str:
    """A short hash of these inputs and of where one ends and the next begins."""
    total = hashlib.sha256()
    for item in inputs:
        data = item.encode() if isinstance(item, str) else item
        total.update(hashlib.sha256(data).digest())
    return total.hexdigest()[:16]


def entry(kind: str, key: str, build: Callable[[Path], None]) -> Path:
    """The entry of this kind and key; `build` fills an empty directory if there is none yet.

    Only one process builds an entry, the others wait for it. An entry is there whole or not at all:
    who finds it waits for nobody.
    """
    path = directory() / f"{kind}-{key}"
    if path.is_dir():
        os.utime(path)
        return path
    with lock(kind):
        if not path.is_dir():
            _prune(kind, KEEP - 1)
            unfinished = Path(tempfile.mkdtemp(prefix=f".{kind}-", dir=directory()))
            try:
                build(unfinished)
                unfinished.chmod(0o755)
                unfinished.rename(path)
            except BaseException:
                shutil.rmtree(unfinished, ignore_errors=True)
                raise
        os.utime(path)
    return path


@contextlib.contextmanager
def lock(name: str) -> Iterator[None]:
    """Hold the cache's lock of this name; it goes with the process, however that ends."""
    with open(directory() / f".{name}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _prune(kind: str, keep: int) -> None:
    entries = sorted(
        directory().glob(f"{kind}-*"), key=lambda path: path.stat().st_mtime, reverse=True
    )
    unfinished = directory().glob(
        f".{kind}-*"
    )  # of a build that was killed: the lock is ours, so nobody is on it
    stale = [path for path in entries[keep:] if time.time() - path.stat().st_mtime > IN_USE]
    for path in [*stale, *unfinished]:
        shutil.rmtree(path, ignore_errors=True)
