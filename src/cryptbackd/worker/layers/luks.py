"""The LUKS2 volume: from a key to an armed mapping.

cryptsetup makes the mapping; from then on three things hold it down to us: we keep it open,
``dmsetup remove --deferred`` makes its last close its end, and it keeps the loop device
beneath it.  Between its birth and the arming there is a gap in which nothing ends it but
``worker.sweep``; an exception in the gap sweeps here, our death makes the daemon sweep.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from ... import paths
from ...errors import DriveFailed, ForgedDrive, ToolFailed, WrongPassphrase
from ...luks2 import CIPHER
from ...run import run
from .. import sweep
from ..control import Control
from ..gone import watch
from ..header import Header, sealed

CRYPTSETUP = "/usr/sbin/cryptsetup"
DMSETUP = "/usr/sbin/dmsetup"
KDF_DEADLINE = 600
"""Seconds; Argon2 with 1 GiB on a machine that swaps takes minutes."""
WRONG_KEY = 2
"""cryptsetup(8), "Return codes": no permission (bad passphrase)."""


@attrs.define
class Volume:
    """An unlocked, armed volume; ``node`` is its device."""

    node: str
    devno: str
    key_source: str


@contextmanager
def luks(
    backing: str,
    name: str,
    header: Header,
    control: Control,
    purpose: str = "open",
    *,
    read_only: bool = False,
) -> Iterator[Volume]:
    """Unlock the volume on the block device *backing* while the block runs.

    *header* is the stored one.  Raises WrongPassphrase, ForgedDrive when the mapping is not
    what the header says, DriveFailed when it doesn't go away, and Cancelled.
    """
    mapping = paths.mapping(name)
    if Path("/dev/mapper", mapping).exists():
        raise DriveFailed(
            f"There is a mapping {mapping} already.",
            "A run that died may have left it: `systemctl restart cryptbackd` locks it.",
        )
    with sealed(header) as header_fd, sweep.noted(name):
        try:
            source = _unlock(backing, mapping, header_fd, control, purpose, read_only)
            held = os.open(f"/dev/mapper/{mapping}", os.O_RDONLY | os.O_CLOEXEC)
            run([DMSETUP, "remove", "--deferred", "--noudevsync", mapping])
        except BaseException:
            sweep.lock(mapping)
            raise
    with watch() as kernel_events:
        rdev = os.fstat(held).st_rdev
        devno = f"{os.major(rdev)}:{os.minor(rdev)}"
        uuid = Path("/sys/dev/block", devno, "dm/uuid")
        ours = _uuid(header, mapping)
        try:
            _check(mapping, uuid, ours, header, backing)
            yield Volume(f"/dev/mapper/{mapping}", devno, source)
        finally:
            os.close(held)
            if not kernel_events.until(lambda: _read(uuid) != ours, 20):
                raise DriveFailed(
                    f"The volume {mapping} is still open.",
                    "Something else uses it; `lsof /dev/mapper/" + mapping + "` may tell.",
                )


def _unlock(
    backing: str, mapping: str, header_fd: int, control: Control, purpose: str, read_only: bool
) -> str:
    refused = ""
    while True:
        key, fd = control.key(purpose, refused)
        # The plugins are for the token that was chosen, in the header that is stored, alone.
        token = ["--token-only", "--token-id", str(key.token)]
        words = token if key.token >= 0 else ["--disable-external-tokens"]
        argv = [CRYPTSETUP, "open", "--type", "luks2", "--header", f"/proc/self/fd/{header_fd}"]
        argv += ["--tries", "1", *(["--readonly"] if read_only else []), *words, backing, mapping]
        try:
            ended = run(
                argv,
                stdin=fd if fd >= 0 else None,
                pass_fds=[header_fd],
                deadline=KDF_DEADLINE,
                ok=None,
                interrupt=control.interrupt,
            )
        finally:
            if fd >= 0:
                os.close(fd)
        if ended.status == 0:
            return key.source
        if key.token >= 0:
            # Whatever keeps a token from it, there are other sources.
            control.say(f"{key.source} does not open it: {ended.complaint}", priority=4)
        elif ended.status != WRONG_KEY:
            raise DriveFailed(f"The volume can't be unlocked: {ended.complaint}")
        if purpose != "open":
            raise WrongPassphrase("The two passphrases differ.")
        refused = key.source


def _uuid(header: Header, mapping: str) -> str:
    return f"CRYPT-LUKS2-{header.uuid.replace('-', '')}-{mapping}"


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _check(mapping: str, uuid: Path, ours: str, header: Header, backing: str) -> None:
    """The mapping in the kernel is the one that the stored header describes."""
    if _read(uuid) != ours:
        raise ForgedDrive(f"The mapping {mapping} is not ours.")
    table = run([DMSETUP, "table", mapping]).out.decode("ascii", "replace").split()
    rdev = os.stat(backing).st_rdev
    wanted = {
        2: "crypt",
        3: CIPHER,
        5: "0",
        6: f"{os.major(rdev)}:{os.minor(rdev)}",
        7: str(header.size // 512),
    }
    odd = [table[at] if at < len(table) else "" for at, word in wanted.items()]
    if odd != list(wanted.values()):
        raise ForgedDrive(f"The mapping {mapping} has another table than the stored header.")
    options = set(table[9:])
    if header.sector_size != 512 and f"sector_size:{header.sector_size}" not in options:
        raise ForgedDrive(f"The mapping {mapping} has another sector size.")


def cost(pbkdf_memory: int | None, pbkdf_iterations: int | None) -> list[str]:
    """The words that replace cryptsetup's benchmark: memory in KiB, and iterations."""
    words = []
    if pbkdf_memory is not None:
        words += ["--pbkdf-memory", str(pbkdf_memory)]
    if pbkdf_iterations is not None:
        words += ["--pbkdf-force-iterations", str(pbkdf_iterations)]
    return words


def format_volume(
    backing: str,
    control: Control,
    pbkdf_memory: int | None,
    pbkdf_iterations: int | None,
    header: Path | None = None,
) -> None:
    """Write a new LUKS2 header onto *backing*: 4 KiB sectors, Argon2id.

    With *header* it goes to that file, and nothing onto *backing*, all of which is then data.
    *pbkdf_memory* and *pbkdf_iterations* are as in :func:`cost`.  The key is the ``format``
    one of whoever enrols the drive.  Raises WrongPassphrase and DriveFailed.
    """
    _key, fd = control.key("format")
    argv = [CRYPTSETUP, "luksFormat", "--batch-mode", "--type", "luks2", "--cipher", CIPHER]
    argv += ["--key-size", "512", "--sector-size", "4096", "--pbkdf", "argon2id"]
    argv += cost(pbkdf_memory, pbkdf_iterations)
    if header is not None:
        argv += ["--header", str(header), "--offset", "0"]
    argv += ["--use-urandom", backing]
    try:
        run(argv, stdin=fd, deadline=KDF_DEADLINE, interrupt=control.interrupt)
    except ToolFailed as exc:
        raise DriveFailed(f"The container can't be formatted: {exc.sentence}") from exc
    finally:
        os.close(fd)
