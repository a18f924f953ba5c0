"""The manifests of the versions on a drive, for whoever looks for damage.

A manifest counts when it has the hash that the version's record says.  Where the drive's own
doesn't, the one in the computer's catalogue takes its place; where that doesn't either, there
is the list of what lies in the version, without a checksum.  What is open is closed when an
iterator is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import attrs

from .. import catalogue, manifest, paths
from ..foreign import number
from ..manifest import Record
from ..text import printable
from . import readback
from .control import Control
from .damage import opened
from .versions.record import Version


@attrs.define
class Manifests:
    """Those of the entry *name*; what is wrong with one is warned about, once, and counted."""

    name: str
    control: Control
    wrong: int = 0
    """So many manifests are not what was written."""
    _found: dict[str, Path | None] = attrs.field(factory=dict)

    def records(self, version: Version) -> Iterator[bytes]:
        """The records of *version*, as they stand in the manifest."""
        path = self.path(version)
        return manifest.read_raw(path) if path is not None else self._walk(version)

    def path(self, version: Version) -> Path | None:
        """A manifest of *version* that is what was written; None when there is none."""
        key = version.path.name
        if key not in self._found:
            self._found[key] = self._find(version)
        return self._found[key]

    def _find(self, version: Version) -> Path | None:
        shown = printable(version.path.name, 40)
        wanted = version.manifest
        if not wanted:
            self.control.warn(
                f"The version {shown} has no manifest: its files are read, but there is nothing"
                " to compare them with."
            )
            return None
        ours = version.manifest_path
        if _sha256(ours) == wanted:
            return ours
        self.wrong += 1
        copy = paths.catalogue(self.name) / ours.name
        if _sha256(copy) == wanted:
            self.control.warn(
                f"The manifest of the version {shown} on the drive is damaged; the copy in the"
                " computer's catalogue was used."
            )
            return copy
        self.control.warn(
            f"The manifest of the version {shown} is damaged, and the computer has no copy: its"
            " files are read, but there is nothing to compare them with."
        )
        return None

    def _walk(self, version: Version) -> Iterator[bytes]:
        """Every path of *version*, as a record that knows neither its time nor its content."""
        with opened(version) as root:
            directories = [b""]
            while directories:
                directory = directories.pop()
                try:
                    found = readback.directory(root, directory)
                except OSError as exc:
                    self.wrong += 1
                    where = f'"{printable(directory)}" in {printable(version.path.name, 40)}'
                    self.control.warn(f"The directory {where} can't be read: {exc.strerror}.")
                    continue
                for name, status in found.items():
                    path, kind = os.path.join(directory, name), readback.kind(status)
                    if kind == "d":
                        directories.append(path)
                    yield Record(path, kind, status.st_size, 0, None, None, 0, 0, 0, 1).raw()


def _sha256(path: Path) -> str:
    """The hash of the file at *path*; "" where it can't be read."""
    try:
        return catalogue.sha256(path)
    except OSError:
        return ""


def total(versions: list[Version]) -> int:
    """Bytes of all files in *versions*, as their records say."""
    return sum(number(version.record.get("bytes")) for version in versions)
