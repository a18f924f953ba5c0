"""Root's own keyring, where an administrator has set one up.

That is: ``/root/.config/python_keyring/keyringrc.cfg`` names a backend of the library
``keyring``.  Without that file nothing is started.  The file decides which code runs as root,
so it must be root's, and writable by nobody else.  The lookup is done by a child, which a
backend that blocks can't outlive, and which writes into the pipe whose other end is the key.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import attrs

from ... import lookup, run
from ...errors import ToolFailed
from .. import children
from . import Key, Request, SourceFailed

_DEADLINE = 30.0
"""Seconds."""


@attrs.define
class RootKeyring:
    """Service ``cryptback``, user: the UUID of the LUKS volume."""

    home: Path = Path("/root")
    name: str = "root's keyring"
    asks_again: bool = False
    owner: int = 0

    async def key(self, request: Request) -> Key | None:
        """What it has for the volume, unread in a pipe."""
        if not request.luks_uuid or not self._is_set_up():
            return None
        reading, writing = os.pipe2(os.O_CLOEXEC)
        found = False
        try:
            try:
                ended = await children.output(
                    [*lookup.COMMAND, request.luks_uuid],
                    deadline=_DEADLINE,
                    stdout=writing,
                    environment={**run.ENVIRONMENT, "HOME": str(self.home)},
                )
            finally:
                os.close(writing)
            found = ended.status == lookup.FOUND
        except ToolFailed as exc:
            raise SourceFailed(f"Root's keyring can't be used: {exc.sentence}", exc.hint) from exc
        finally:
            if not found:
                os.close(reading)
        if found:
            return Key(self.name, reading)
        if ended.status == lookup.NOTHING:
            return None
        raise SourceFailed(
            f"Root's keyring can't be used: {ended.complaint}",
            f"See {self._file}, and try: sudo HOME={self.home} {' '.join(lookup.COMMAND)} --check",
        )

    @property
    def _file(self) -> Path:
        return self.home / ".config" / "python_keyring" / "keyringrc.cfg"

    def _is_set_up(self) -> bool:
        try:
            status = os.stat(self._file, follow_symlinks=False)
        except OSError:
            return False
        if (
            not stat.S_ISREG(status.st_mode)
            or status.st_uid != self.owner
            or status.st_mode & 0o022
        ):
            raise SourceFailed(
                f"Root's keyring is not used: {self._file} must be a file of root that nobody"
                " else may write.",
                f"chown root:root {self._file}; chmod 600 {self._file}",
            )
        return True
