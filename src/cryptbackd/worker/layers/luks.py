"""The LUKS2 volume: from a key to an armed mapping.

cryptsetup makes the mapping; from then on three things hold it down to us: we keep it open,
``dmsetup remove --deferred`` makes its last close its end, and it keeps the loop device
beneath it.  Between its birth and the arming there is a gap in which nothing ends it but
``worker.sweep``; an exception in the gap sweeps here, our death makes the daemon sweep.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs

from ... import kernel, paths
from ...errors import DriveFailed, ForgedDrive, ToolFailed, WrongPassphrase
from ...luks2 import CIPHER
from ...run import Ended, run
from ...text import printable, size
from .. import sweep
from ..control import Control
from ..gone import until
from ..header import sealed
from ..whitelist import Header

CRYPTSETUP = "/usr/sbin/cryptsetup"
DMSETUP = "/usr/sbin/dmsetup"
SED = "/usr/bin/sed"
KDF_DEADLINE = 600
"""Seconds; Argon2 with 1 GiB on a machine that swaps takes minutes."""
UDEV_DEADLINE = 60
"""Seconds that udev may take for a mapping that is there.

cryptsetup waits for it for ever (dm_udev_wait(), libdevmapper.h), and where udev could not process
the device, the answer never comes.
"""
WRONG_KEY = 2
"""cryptsetup(8), "Return codes": no permission (bad passphrase)."""
OUT_OF_MEMORY = 3
"""The same."""
CUT_SHORT = (
    "What is missing can't be brought back from this drive. Look at the container by hand, or"
    " remove it and enrol the drive anew."
)


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
    extensible: bool = False,
) -> Iterator[Volume]:
    """Unlock the volume on the block device *backing* while the block runs.

    *header* is the stored one.  *extensible*: it may be made longer by :func:`extend`; the
    kernel then keeps the volume key with the mapping, and not in a keyring.  Raises
    WrongPassphrase, ForgedDrive when the mapping is not what the header says, DriveFailed
    when it doesn't go away, and Cancelled.
    """
    _check_length(backing, header)
    mapping = paths.mapping(name)
    if Path("/dev/mapper", mapping).exists():
        raise DriveFailed(
            f"There is a mapping {mapping} already.",
            "A run that died may have left it: `systemctl restart cryptbackd` locks it.",
        )
    with sealed(header) as header_fd, sweep.noted(name):
        try:
            how = ["--readonly"] if read_only else []
            how += ["--disable-keyring"] if extensible else []
            source = _unlock(backing, mapping, header_fd, control, purpose, how)
            held = os.open(f"/dev/mapper/{mapping}", os.O_RDONLY | os.O_CLOEXEC)
            run([DMSETUP, "remove", "--deferred", "--noudevsync", mapping])
        except BaseException:
            sweep.lock(mapping)
            raise
    rdev = os.fstat(held).st_rdev
    devno = f"{os.major(rdev)}:{os.minor(rdev)}"
    uuid = Path("/sys/dev/block", devno, "dm/uuid")
    ours = _uuid(header, mapping)
    try:
        _check(mapping, uuid, ours, header, backing)
        yield Volume(f"/dev/mapper/{mapping}", devno, source)
    finally:
        os.close(held)
        if not until(lambda: _read(uuid) != ours, 20):
            raise DriveFailed(
                f"The volume {mapping} is still open.",
                "Something else uses it; `lsof /dev/mapper/" + mapping + "` may tell.",
            )


def _check_length(backing: str, header: Header) -> None:
    """Raise ForgedDrive where nothing of the volume can be there; no key is asked for then."""
    with open(backing, "rb") as opened:
        there = kernel.device_size(opened.fileno())
    if there <= header.size:
        raise ForgedDrive(
            f"The container was cut short: {size(there)} of it are there, and what it holds begins"
            f" after {size(header.size)}.",
            CUT_SHORT,
        )


def extend(volume: Volume, backing: str, name: str, header: Header) -> None:
    """Have the *extensible* volume of the entry *name* reach to the end of *backing* again.

    Raises DriveFailed and ForgedDrive.
    """
    mapping = paths.mapping(name)
    with sealed(header) as header_fd, sweep.noted(name):
        argv = [CRYPTSETUP, "resize", "--header", f"/proc/self/fd/{header_fd}"]
        argv += ["--disable-external-tokens", mapping]
        try:
            run(argv, pass_fds=[header_fd])
        except ToolFailed as exc:
            raise DriveFailed(f"The volume can't be made longer: {exc.sentence}") from exc
    uuid = Path("/sys/dev/block", volume.devno, "dm/uuid")
    _check(mapping, uuid, _uuid(header, mapping), header, backing)


def rebase(volume: Volume, backing: str, name: str, header: Header) -> None:
    """Have the *extensible* volume of the entry *name* lie on the block device *backing*.

    The volume key goes from the kernel to the kernel by way of two programs, and is read by
    neither us nor a command line.  Raises DriveFailed and ForgedDrive.
    """
    mapping = paths.mapping(name)
    rdev = os.stat(backing).st_rdev
    # The seventh word of the table is the device (admin-guide/device-mapper/dm-crypt.rst).
    put = rf"s/^((\S+ ){{6}})\S+/\1{os.major(rdev)}:{os.minor(rdev)}/"
    with ExitStack() as stack:
        table = _through(stack, [DMSETUP, "table", "--showkeys", mapping], None)
        table = _through(stack, [SED, "--regexp-extended", put], table)
        dmsetup(["reload", mapping], stdin=table)
    dmsetup(["resume", "--noudevsync", mapping])
    uuid = Path("/sys/dev/block", volume.devno, "dm/uuid")
    _check(mapping, uuid, _uuid(header, mapping), header, backing)


def dmsetup(words: Sequence[str], stdin: int | None = None) -> None:
    """Run dmsetup with these *words*; raises DriveFailed."""
    ended = run([DMSETUP, *words], stdin=stdin, ok=None)
    if ended.status != 0:
        # Its last line says only that it failed.
        reason = ended.err.decode("utf-8", "replace").partition("\n")[0] or ended.complaint
        raise DriveFailed(f"The device mapper refused: {printable(reason)}.")


def _through(stack: ExitStack, argv: Sequence[str], stdin: int | None) -> int:
    """A pipe with what the program says: it is short, and fits."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    stack.callback(os.close, reading)
    try:
        run(argv, stdin=stdin, stdout=writing)
    finally:
        os.close(writing)
    return reading


def _unlock(
    backing: str,
    mapping: str,
    header_fd: int,
    control: Control,
    purpose: str,
    how: Sequence[str],
) -> str:
    refused = ""
    while True:
        key, fd = control.key(purpose, refused)
        # The plugins are for the token that was chosen, in the header that is stored, alone.
        token = ["--token-only", "--token-id", str(key.token)]
        words = token if key.token >= 0 else ["--disable-external-tokens"]
        argv = [CRYPTSETUP, "open", "--type", "luks2", "--header", f"/proc/self/fd/{header_fd}"]
        argv += ["--tries", "1", *how, *words, backing, mapping]
        try:
            ended = run(
                argv,
                stdin=fd if fd >= 0 else None,
                pass_fds=[header_fd],
                deadline=KDF_DEADLINE,
                ok=None,
                interrupt=control.interrupt,
                tick=(1, _Impatience(mapping)),
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
            raise _locked_still(ended)
        if purpose == "first-open":
            raise WrongPassphrase("The two passphrases differ.")
        if purpose != "open":
            raise WrongPassphrase("That passphrase does not open the drive; nothing was changed.")
        refused = key.source


class _Impatience:
    """Called while cryptsetup opens *mapping*; raises DriveFailed when udev takes too long."""

    def __init__(self, mapping: str) -> None:
        self._mapping = mapping
        self._since: float | None = None

    def __call__(self) -> None:
        if self._since is None:
            if sweep.is_open(self._mapping):
                self._since = time.monotonic()
        elif time.monotonic() - self._since > UDEV_DEADLINE:
            raise DriveFailed(
                f"udev did not see to the unlocked volume within {UDEV_DEADLINE} seconds; it was"
                " locked again.",
                "`journalctl -u systemd-udevd` may tell why. If it stays like that, restart the"
                " computer.",
            )


def _locked_still(ended: Ended) -> DriveFailed:
    """Why the volume could not be unlocked, though not for a wrong passphrase."""
    sentence = f"The volume can't be unlocked: {ended.complaint.rstrip('.')}"
    if ended.status not in (OUT_OF_MEMORY, -signal.SIGKILL):
        return DriveFailed(f"{sentence}.")
    return DriveFailed(
        f"{sentence}, as happens when there is too little memory.",
        "The key derivation takes up to 1 GiB (`cryptsetup luksDump` tells how much): close other"
        " programs, and plug the drive in again.",
    )


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
