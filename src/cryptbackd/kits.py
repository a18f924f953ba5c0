"""Of which headers there is a recovery kit: what `forget` may remove.

A note is a file, made when the kit was written; it says which header the kit has, by its
SHA-256, and stays until the entry is forgotten.  A header that was changed since then is not
in the kit.
"""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import suppress
from pathlib import Path

from . import paths
from .errors import Refused

_SHA256 = re.compile(r"[0-9a-f]{64}")


def note(name: str, sha256: str, directory: Path = paths.KITS) -> None:
    """Remember that a kit has the header of the entry *name* with this *sha256*.

    Raises Refused for what is none, and where there is no room for it.
    """
    if _SHA256.fullmatch(sha256) is None:
        raise Refused("A recovery kit is known by the SHA-256 of its header, in hexadecimal.")
    try:
        _write(name, sha256, directory)
    except OSError as exc:
        raise Refused(
            f"This computer can't remember that there is a kit of {name}: {exc.strerror}.",
            f"Make room in {directory}, and write the kit again.",
        ) from exc


def _write(name: str, sha256: str, directory: Path) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = directory / f".{name}.new"
    with suppress(FileNotFoundError):
        fresh.unlink()
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(f"{sha256}\n")
        file.flush()
        os.fsync(fd)
    fresh.rename(directory / name)


def has(name: str, header: Path, directory: Path = paths.KITS) -> bool:
    """Whether a kit has the stored header of the entry *name*, which is the file *header*."""
    try:
        noted = (directory / name).read_text(encoding="ascii").strip()
        with header.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == noted
    except (OSError, UnicodeDecodeError):
        return False


def noted(name: str, directory: Path = paths.KITS) -> bool:
    """Whether there is a kit of *name*, with whatever header."""
    return (directory / name).exists()


def forget(name: str, directory: Path = paths.KITS) -> None:
    """Remember no kit of the entry *name*."""
    with suppress(FileNotFoundError):
        (directory / name).unlink()
