"""The words of the domain: a drive, an insertion, a job, its phases and how it ends."""

from __future__ import annotations

from enum import StrEnum

import attrs


class JobKind(StrEnum):
    """What a worker can be asked to do."""

    SURVEY = "survey"
    """Look at a device and tell what is on it; changes nothing."""
    INIT = "init"
    """Make a container, enrol it and (unless told not to) make the first backup."""
    BACKUP = "backup"
    PASSPHRASE = "passphrase"  # noqa: S105
    """Change the keyslots of a drive."""
    ADOPT = "adopt"
    """Store the header that is on the drive."""
    REPAIR = "repair"
    """Write the stored header to the drive."""
    RESIZE = "resize"
    """Make the container longer or shorter."""
    RESTORE = "restore"
    """Let whoever asks read files of a version, with no more rights than theirs."""
    RECOVER = "recover"
    """Read the settings that a container holds, of a drive that is to be enrolled again."""
    LOOK = "look"
    """Look at the header on a drive; changes nothing."""
    VERIFY = "verify"
    """Read files back from the drive and compare them with the manifest; changes nothing."""
    RELEASE = "release"
    """Prove that a drive with which nothing is going on may be pulled."""
    BROWSE = "browse"
    """Show the versions to a user, read-only, until that is closed."""


class Phase(StrEnum):
    """Where on its way a job is; ``CRYPTBACK_PHASE`` in the journal."""

    STARTING = "starting"
    ATTACHING = "attaching"
    FORMATTING = "formatting"
    UNLOCKING = "unlocking"
    CHANGING = "changing"
    """What opens the drive is being changed."""
    RESIZING = "resizing"
    """The container is made longer or shorter."""
    MOUNTING = "mounting"
    COMPARING = "comparing"
    SYNCING = "syncing"
    RESTORING = "restoring"
    KEEPING = "keeping"
    """A version is being made of what was synced."""
    REMOVING = "removing"
    """Versions that are not to stay are being removed."""
    VERIFYING = "verifying"
    """Files are read back from the drive."""
    SCRUBBING = "scrubbing"
    """btrfs checks every block that it uses."""
    BROWSING = "browsing"
    """The versions are open for a user to look at."""
    LOCKING = "locking"
    """Data is flushed, everything is unmounted and closed."""
    PROVING = "proving"
    """It is checked that nothing holds the drive any more."""
    POWERING_OFF = "powering-off"
    FINISHED = "finished"


class Outcome(StrEnum):
    """How a run ended; ``CRYPTBACK_OUTCOME`` in the journal, written when all is locked."""

    DONE = "done"
    WARNINGS = "warnings"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"


class StopReason(StrEnum):
    """Why a job is asked to stop before its end."""

    CANCEL = "cancel"
    EJECT = "eject"
    SERVICE_STOP = "service-stop"
    """The insertion counts as interrupted and is taken up by the next start."""
    SLEEP = "sleep"
    """The computer goes to sleep or shuts down; taken up when it wakes, or by the next start."""

    @property
    def is_taken_up(self) -> bool:
        """Whether what was stopped for this reason begins again by itself."""
        return self in (StopReason.SERVICE_STOP, StopReason.SLEEP)


@attrs.frozen
class Device:
    """A block device as udev shows it, with the disk that it lies on.

    ``diskseq`` is the kernel's ``DISKSEQ``: a number that no other insertion of any disk
    has had since boot (``BLKGETDISKSEQ``, Linux 5.15).  ``disk`` equals ``node`` where the
    filesystem is on the whole disk.
    """

    node: str
    major: int
    minor: int
    disk: str
    diskseq: int
    uuid: str = ""
    fstype: str = ""

    @property
    def devno(self) -> str:
        """``major:minor``, as sysfs and mountinfo write it."""
        return f"{self.major}:{self.minor}"


@attrs.frozen
class LedgerEntry:
    """What the computer remembers of the last version that was proven to be on the drive."""

    sequence: int
    version: str
    nonce: str
    record_sha256: str
    """SHA-256, hexadecimal, of the version's JSON file."""


@attrs.frozen
class Progress:
    """How far the phase is: bytes, bytes a second, seconds left (-1: not known)."""

    done: int
    total: int
    rate: float = 0.0
    left: float = -1.0


@attrs.define
class RunResult:
    """How a job ended, as the worker tells it and the history keeps it."""

    outcome: Outcome
    sentence: str
    hint: str = ""
    error: str = ""
    """Class name of the error (see ``cryptbackd.errors``), or empty."""
    safe: bool = False
    """Every condition of "you may unplug" was proven."""
    powered_off: bool = False
    touched: bool = True
    """Whether anything was done with the drive; if not, ``safe`` says nothing."""
    warnings: list[str] = attrs.field(factory=list)
    version: str = ""
    files: int = 0
    size: int = 0
    """Bytes of all files in the version."""
    changed_files: int = 0
    changed_bytes: int = 0
    ledger: LedgerEntry | None = None
    data: dict[str, object] = attrs.field(factory=dict)
    """What a survey found, and other answers that are not runs."""
