"""A place of the worker's own: ``/run/cryptbackd/NAME``, an empty tmpfs in its namespace.

Everything that a job mounts is mounted below it.  It vanishes with the namespace; nobody
outside ever sees more than an empty directory.
"""

from __future__ import annotations

from pathlib import Path

from .. import paths
from ..run import run
from .layers.mounted import MOUNT


def make(name: str) -> Path:
    """The workspace of the entry (or job) *name*."""
    where = paths.RUNTIME / name
    where.mkdir(mode=0o700, parents=True, exist_ok=True)
    options = "size=16m,mode=0700,nosuid,nodev,noexec"
    run([MOUNT, "--types", "tmpfs", "--options", options, "tmpfs", str(where)])
    return where
