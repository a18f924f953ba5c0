"""Every error that a person may see: one sentence, one hint, one exit code.

::

    CryptbackError            1    anything else
    ├── ConfigError           1    an entry below drives.d that is not as it must be
    ├── UnknownDrive         10    no entry of that name
    ├── Busy                 11    something is already going on with that drive
    ├── WrongPassphrase      12    no source had a passphrase that opens the volume
    ├── DriveAbsent          75    the drive is not here
    ├── Cancelled           130    somebody asked for it to stop
    ├── Refused               1    asked for something that must not or cannot be done
    ├── ForgedDrive           1    what the drive shows is not what was enrolled
    ├── DriveFull             1    no room left, inside the container or outside
    ├── DriveFailed           1    the drive, or a filesystem on it, gave an error
    ├── ToolFailed            1    a program that we rest on ended with an error
    ├── ManifestDamaged       1    what is remembered of a version can't be read
    └── Damaged               1    read back, something is not what was backed up

The exit codes are part of the interface of ``cryptback`` and are documented in
cryptback(1).
"""

from __future__ import annotations


class CryptbackError(Exception):
    """A failure that is told to a person as *sentence* and *hint* (what to do about it)."""

    code = 1

    def __init__(self, sentence: str, hint: str = "") -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.sentence} {self.hint}".strip()


class ConfigError(CryptbackError):
    """An entry that cannot be used; names the file, the key, what was found and wanted."""


class UnknownDrive(CryptbackError):
    """No entry of that name."""

    code = 10


class Busy(CryptbackError):
    """Something else is going on with the drive."""

    code = 11


class WrongPassphrase(CryptbackError):
    """No passphrase that was offered opens the volume, or none was offered."""

    code = 12


class DriveAbsent(CryptbackError):
    """The drive is not plugged in, or left in the middle."""

    code = 75


class Cancelled(CryptbackError):
    """Somebody asked for the job to stop: everything is locked in order."""

    code = 130


class Refused(CryptbackError):
    """Asked for something that must not, or cannot, be done; nothing was touched."""


class ForgedDrive(CryptbackError):
    """What the drive shows is not what was enrolled."""


class DriveFull(CryptbackError):
    """No room left, inside the container or on the drive around it."""

    missing = 0
    """Bytes that were still to be copied, by the sources' sizes; 0: not known."""
    solid = 0
    """The same without holes, and as little as it can be; 0: not known."""


class DriveFailed(CryptbackError):
    """The drive, or a filesystem on it, gave an error: what was written can't be trusted."""

    lost_writes = False
    """Whether something was written that is not on the drive."""


class Damaged(CryptbackError):
    """What was read back from the drive is not what was backed up."""


class ToolFailed(CryptbackError):
    """A program that we rest on ended with an error of its own."""


class ManifestDamaged(CryptbackError):
    """A manifest that can't be read, or is not what was written."""


BY_NAME: dict[str, type[CryptbackError]] = {
    cls.__name__: cls
    for cls in (
        CryptbackError,
        ConfigError,
        UnknownDrive,
        Busy,
        WrongPassphrase,
        DriveAbsent,
        Cancelled,
        Refused,
        ForgedDrive,
        DriveFull,
        DriveFailed,
        Damaged,
        ToolFailed,
        ManifestDamaged,
    )
}
"""Errors by class name, the form in which they cross from process to process."""
