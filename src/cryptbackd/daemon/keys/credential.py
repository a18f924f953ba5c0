"""Systemd credentials named ``cryptback.NAME``, looked up at need.

Encrypted ones (``systemd-creds encrypt``) are decrypted by ``systemd-creds`` straight into a
pipe, whose other end is the key; plain ones are opened, and the open file is the key.  They
are not loaded by the unit: such a one would not be seen before a restart, would stay readable
all day, and a bad one would keep the daemon from starting.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import attrs

from ... import paths
from ...errors import ToolFailed
from .. import children
from . import Key, Request, SourceFailed

_DEADLINE = 60.0
"""Seconds; a TPM is slow, but not that slow."""


@attrs.define
class EncryptedCredential:
    """``/etc/credstore.encrypted/cryptback.NAME``."""

    directory: Path = paths.ENCRYPTED_CREDENTIALS
    name: str = "encrypted credential"
    asks_again: bool = False

    async def key(self, request: Request) -> Key | None:
        """Its decrypted content, unread in a pipe."""
        label = f"cryptback.{request.name}"
        file = self.directory / label
        if not os.path.lexists(file):
            return None
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            try:
                ended = await children.output(
                    ["/usr/bin/systemd-creds", "decrypt", f"--name={label}", str(file), "-"],
                    deadline=_DEADLINE,
                    stdout=writing,
                )
            finally:
                os.close(writing)
            if ended.status != 0:
                raise SourceFailed(
                    f"The credential {file} can't be decrypted: {ended.complaint}",
                    f"Make it anew: systemd-creds encrypt --name={label} - {file}",
                )
        except ToolFailed as exc:
            os.close(reading)
            raise SourceFailed(
                f"The credential {file} can't be decrypted: {exc.sentence}", exc.hint
            ) from exc
        except BaseException:
            os.close(reading)
            raise
        return Key(self.name, reading)


@attrs.define
class PlainCredential:
    """``/etc/credstore/cryptback.NAME``: root's file, readable by nobody else."""

    directory: Path = paths.CREDENTIALS
    name: str = "credential"
    asks_again: bool = False
    owner: int = 0

    async def key(self, request: Request) -> Key | None:
        """The opened file."""
        file = self.directory / f"cryptback.{request.name}"
        try:
            fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise SourceFailed(
                f"The credential {file} can't be opened: {exc.strerror}.",
                "It must be a regular file, not a link.",
            ) from exc
        fault = self._fault(os.fstat(fd))
        if fault:
            os.close(fd)
            raise SourceFailed(
                f"The credential {file} is not used: {fault}.",
                f"chown root:root {file}; chmod 600 {file}",
            )
        return Key(self.name, fd)

    def _fault(self, status: os.stat_result) -> str:
        if not stat.S_ISREG(status.st_mode):
            return "it is not a regular file"
        if status.st_uid != self.owner:
            return f"it belongs to user {status.st_uid}, not to root"
        if status.st_mode & 0o077:
            mode = stat.S_IMODE(status.st_mode)
            return f"others than root may read it (mode {mode:04o})"
        return ""
