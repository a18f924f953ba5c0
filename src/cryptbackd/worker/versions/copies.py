"""The copies of records and manifests on the computer, and what is lost put back on either side.

A copy that was once held against its record is not read again as long as size, time and inode
stay what they were: a run would else read every manifest there is.  What is damaged beneath is
seen when it is read (``manifest``), removed then, and put back here.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ... import catalogue, foreign
from ..control import Control, cause
from .record import Version

_CHECKED = ".checked"
_Stamp = list[int | str]


def bring_in_line(name: str, found: list[Version], control: Control) -> None:
    """Have the catalogue of the entry *name* hold what the drive does: the versions *found*.

    Whatever goes wrong is a warning: the version that was made is there without it.
    """
    try:
        place = catalogue.make(name)
        checked = _read(place / _CHECKED)
        ours = [version for version in found if _made_here(version)]
        copied: dict[str, Path] = {}
        for version in ours:
            control.check()
            _one(place, version, checked, copied, control)
        wanted = {
            f"{version.path.name}.{what}" for version in ours for what in ("json", "manifest")
        }
        for path in place.iterdir():
            if not path.name.startswith(".") and path.name not in wanted:
                path.unlink()
        names = {version.path.name for version in ours}
        with _fresh(place / _CHECKED) as fresh:
            fresh.write_text(json.dumps({k: v for k, v in checked.items() if k in names}))
    except OSError as exc:
        control.warn(f"What this computer remembers of {name} could not be written: {cause(exc)}.")


def _made_here(version: Version) -> bool:
    """A copy of a version, under another name, is somebody else's."""
    name = version.path.name
    return catalogue.is_name(name) and version.record.get("version") == name


def _one(
    place: Path,
    version: Version,
    checked: dict[str, _Stamp],
    copied: dict[str, Path],
    control: Control,
) -> None:
    """Put right what there is of one version; *copied* has the copies by their hashes."""
    name = version.path.name
    record, copy = place / f"{name}.json", place / f"{name}.manifest"
    if _sha256(record) != version.sha256:
        with _fresh(record) as fresh:
            shutil.copyfile(version.path.with_name(record.name), fresh, follow_symlinks=False)
    if not version.manifest:
        return
    stamp = _stamp(copy, version)
    if (stamp is None or checked.get(name) != stamp) and _sha256(copy) != version.manifest:
        same = copied.get(version.manifest)
        if same is not None:
            # Nothing changed: the drive need not be read.
            with _fresh(copy) as fresh:
                os.link(same, fresh)
        elif _sha256(version.manifest_path) == version.manifest:
            with _fresh(copy) as fresh:
                shutil.copyfile(version.manifest_path, fresh, follow_symlinks=False)
        else:
            copy.unlink(missing_ok=True)
            checked.pop(name, None)
            control.warn(
                f"The manifest of the version {name} is lost or damaged, on the drive and on this"
                " computer: its files are there, but can't be searched or held against it."
            )
            return
    stamp = _stamp(copy, version)
    if stamp is not None:
        checked[name] = stamp
    copied[version.manifest] = copy
    if not _has_size(version.manifest_path, copy.stat().st_size):
        with _fresh(version.manifest_path) as fresh:
            shutil.copyfile(copy, fresh, follow_symlinks=False)


def _stamp(path: Path, version: Version) -> _Stamp | None:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    return [status.st_ino, status.st_size, status.st_mtime_ns, version.manifest]


def _has_size(path: Path, size: int) -> bool:
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == size


def _sha256(path: Path) -> str:
    try:
        return catalogue.sha256(path)
    except OSError:
        return ""


def _read(path: Path) -> dict[str, _Stamp]:
    try:
        told = foreign.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


@contextmanager
def _fresh(path: Path) -> Iterator[Path]:
    """A file to write that takes the place of *path*, durably, when the block ends well."""
    fresh = path.with_name(f".{path.name}.new")
    with suppress(FileNotFoundError):
        fresh.unlink()
    try:
        yield fresh
        fd = os.open(fresh, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.fchmod(fd, 0o600)
            os.fsync(fd)
        finally:
            os.close(fd)
        fresh.rename(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
