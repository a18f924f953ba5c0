"""The entries as they are now, read again when a file changed, and the udev markers.

Reading them costs little: as long as every file below the directory is the same (inode,
time, size, owner, mode) nothing is opened.  A bad file is told to the journal once for each
content that it has.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import attrs

from .. import config, paths
from ..errors import ConfigError, UnknownDrive
from ..text import printable

_Print = tuple[tuple[str, int, int, int, int, int], ...]


@attrs.define
class EntryStore:
    """Call :meth:`now` whenever entries matter.

    *complain* gets the name and fault of each bad file, once for each of its contents;
    *changed* is called after entries were read anew.
    """

    complain: Callable[[str, ConfigError], None]
    changed: Callable[[config.Entries], None]
    directory: Path = paths.DRIVES_D
    _print: _Print | None = None
    _entries: config.Entries = attrs.field(factory=lambda: config.Entries({}, {}, {}))
    _told: dict[str, str] = attrs.field(factory=dict)

    def now(self) -> config.Entries:
        """All entries as the files are now."""
        fingerprint = self._fingerprint()
        if fingerprint != self._print:
            self._entries = config.read_all(self.directory)
            self._print = fingerprint
            self._tell()
            self.changed(self._entries)
        return self._entries

    def forget(self) -> None:
        """Read everything anew next time, and tell of every bad file again."""
        self._print = None
        self._told.clear()

    def get(self, name: str) -> config.Entry:
        """The entry *name*; raises UnknownDrive, or ConfigError when its file is bad."""
        entries = self.now()
        if name in entries.bad:
            raise entries.bad[name]
        try:
            return entries.good[name]
        except KeyError:
            raise UnknownDrive(
                f'No drive is enrolled under the name "{printable(name, 40)}".',
                "`cryptback status` lists them.",
            ) from None

    def _fingerprint(self) -> _Print:
        found = []
        try:
            with os.scandir(self.directory) as files:
                for file in files:
                    status = file.stat(follow_symlinks=False)
                    found.append(
                        (
                            file.name, status.st_ino, status.st_ctime_ns, status.st_size,
                            status.st_uid, status.st_mode,
                        )
                    )  # fmt: skip
        except FileNotFoundError:
            return ()
        return tuple(sorted(found))

    def _tell(self) -> None:
        bad = self._entries.bad
        for name, fault in bad.items():
            if self._told.get(name) != fault.sentence:
                self.complain(name, fault)
        self._told = {name: fault.sentence for name, fault in bad.items()}


def keep_markers(entries: config.Entries, directory: Path = paths.UUIDS) -> None:
    """Make *directory* hold one empty file for each known UUID, which the udev rules test for.

    The marker of an entry whose file is bad stays: the drive is still not the desktop's.
    """
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    wanted: set[str] = {entry.uuid for entry in entries.good.values()}
    present = {path.name for path in directory.iterdir()}
    for uuid in wanted - present:
        (directory / uuid).touch(mode=0o644)
    if not entries.bad:
        for uuid in present - wanted:
            (directory / uuid).unlink()
