"""A place of the worker's own: ``/run/cryptbackd/NAME``, an empty tmpfs in its namespace.

Everything that a job mounts is mounted below it.  It vanishes with the namespace; nobody
outside ever sees more than an empty directory.
"""

from __future__ import annotations

from pathlib import Path

from .. import kernel, paths


def make(name: str) -> Path:
    """The workspace of the entry (or job) *name*."""
    where = paths.RUNTIME / name
    where.mkdir(mode=0o700, parents=True, exist_ok=True)
    safe = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    kernel.mount("tmpfs", str(where), safe, "size=16m,mode=0700")
    return where
