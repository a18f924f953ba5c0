"""Locking what a dead worker left open.

A worker arms the undo of everything it makes, but dies unarmed if it is killed between
cryptsetup making a mapping and the arming.  The daemon sweeps after every worker that died,
at its start, and systemd sweeps after the daemon's end (``ExecStopPost=``).

Only a mapping whose name *and* dm UUID are ours is touched, and only udev cookies that came
up while a volume of ours was being opened, that nobody waits for, whose last user is dead, and
that nobody has used for some seconds.  Nothing here waits for udev (``--noudevsync``): a udev that
doesn't answer is one way in which such a mapping comes to be.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from .. import kernel, paths
from ..errors import ToolFailed
from ..paths import NAME
from ..run import run
from .gone import until

DMSETUP = "/usr/sbin/dmsetup"
IPCRM = "/usr/bin/ipcrm"
_COOKIE_MAGIC = 0x0D4D
"""Upper half of the key of a device-mapper udev cookie (DM_COOKIE_MAGIC, libdevmapper.h)."""
REDO, REDO_UUID = ".redo", "CRYPTBACK-REDO-"
"""What the name of a mapping of ``layers.redo`` ends in, and how its dm UUID begins."""
_VOLUME, _OVERLAY, _PARTS = range(3)
"""How deep a mapping lies: the volume, what keeps its changes, what joins its files."""
PATIENCE = 5.0
"""Seconds in which what was closed must be gone."""
_QUIET = 2.0
"""Seconds after its last use in which a cookie may still be waited for.

udev's ``dmsetup udevcomplete`` is gone as soon as it has used one, and whoever made that (LVM, a
program of a user) may not have come to its waiting yet (dm_udev_wait(), libdevmapper.h).
"""


def main(name: str | None) -> int:
    """Sweep for the entry *name*, or for all; one JSON object a line says what was found.

    The exit status is 1 when something could not be locked.
    """
    stuck = False
    for mapping, is_volume in _ours(name).items():
        what = f"The volume {mapping}" if is_volume else f"The mapping {mapping}"
        if not lock(mapping):
            stuck = True
            _tell("stuck", f"{what} could not be locked: something else uses it.")
        else:
            _tell("swept", f"{what} had been left open and was locked.")
    for cookie in _forget_cookies(name):
        _tell("swept", f"The udev cookie 0x{cookie:08x} had been left behind and was removed.")
    return int(stuck)


def _tell(kind: str, sentence: str) -> None:
    print(json.dumps({kind: sentence}), flush=True)


def _ours(name: str | None = None) -> dict[str, bool]:
    """The mappings that are ours by name and dm UUID, and whether each is a volume.

    In the order in which they can be removed: a volume comes before what it lies on.
    """
    found = []
    for directory in Path("/sys/class/block").glob("dm-*/dm"):
        with suppress(OSError):
            mapping = (directory / "name").read_text().strip()
            uuid = (directory / "uuid").read_text().strip()
            entry, depth = _whose(mapping, uuid)
            if (
                mapping.startswith(paths.mapping(entry))
                and NAME.fullmatch(entry)
                and name in (None, entry)
            ):
                found.append((depth, mapping))
    return {mapping: depth < _PARTS for depth, mapping in sorted(found)}


def _whose(mapping: str, uuid: str) -> tuple[str, int]:
    """The entry to which a mapping of this name and dm UUID belongs, and how deep it lies.

    An empty name: it is none of ours.
    """
    entry = mapping.removeprefix("cryptback-")
    if uuid.startswith("CRYPT-LUKS2-") and uuid.endswith(f"-{mapping}"):
        return entry, _VOLUME
    if uuid == f"{REDO_UUID}{mapping}":
        return entry.removesuffix(REDO), _OVERLAY
    entry = uuid.removeprefix(paths.PARTS_UUID)
    if (mapping, uuid) == (paths.parts(entry), paths.parts_uuid(entry)):
        return entry, _PARTS
    return "", _PARTS


def is_open(mapping: str) -> bool:
    """Whether the kernel has *mapping*, and it is ours."""
    return mapping in _ours()


def lock(mapping: str) -> bool:
    """Remove *mapping* if it is ours; whether it is gone afterwards.

    Busy, it is armed at least: its last user's close ends it.
    """
    if not is_open(mapping):
        return True
    for how in (["--retry"], ["--deferred"]):
        with suppress(ToolFailed):
            run([DMSETUP, "remove", *how, "--noudevsync", mapping], deadline=20)
            break
    return until(lambda: not is_open(mapping), PATIENCE)


@contextmanager
def noted(name: str) -> Iterator[None]:
    """Note which udev cookies stand before a volume of the entry *name* is opened.

    While the note exists (until the block ends in order, or a sweep took it) a new cookie
    without a living user is known to be ours.  A worker can't see that user when it was
    udev's, outside of its PID namespace: it leaves the note for the daemon's sweep then.
    """
    paths.COOKIES.mkdir(mode=0o700, parents=True, exist_ok=True)
    note = paths.COOKIES / name
    note.write_text("\n".join(str(semid) for semid in _cookies()))
    try:
        yield
    except BaseException:
        _take(note)
        raise
    note.unlink()


class _Cookie(NamedTuple):
    key: int
    used: int
    """When it was made or used last (Unix time)."""


def _cookies() -> dict[int, _Cookie]:
    """Every device-mapper udev cookie by its semaphore id (proc_sysvipc(5)).

    The last two fields are ``sem_otime``, of the last semop, 0 before the first one, and
    ``sem_ctime``, of the making and SETVAL (semctl(2)).
    """
    found = {}
    for line in Path("/proc/sysvipc/sem").read_text().splitlines()[1:]:
        fields = line.split()
        key = int(fields[0]) & 0xFFFFFFFF
        if key >> 16 == _COOKIE_MAGIC:
            found[int(fields[1])] = _Cookie(key, max(int(fields[8]), int(fields[9])))
    return found


def _forget_cookies(name: str | None) -> list[int]:
    """Remove the cookies that came up under a note and have no living user; their keys."""
    if not paths.COOKIES.is_dir():
        return []
    removed = []
    for note in sorted(paths.COOKIES.iterdir()):
        if name not in (None, note.name):
            continue
        end = time.monotonic() + PATIENCE
        while True:
            removed += _take(note)
            if not note.exists() or time.monotonic() > end:
                break
            time.sleep(0.05)
        note.unlink(missing_ok=True)
    return removed


def _take(note: Path) -> list[int]:
    """Remove what is abandoned of the new cookies; their keys.  The note stays while one is
    left of which that can't be told yet.
    """
    before = {int(word) for word in note.read_text().split()}
    removed = []
    undecided = False
    for semid, cookie in _cookies().items():
        if semid in before:
            continue
        if not _is_fresh(cookie) and _is_abandoned(semid):
            with suppress(ToolFailed):
                run([IPCRM, "--semaphore-id", str(semid)])
                removed.append(cookie.key)
        else:
            undecided = True
    if not undecided:
        note.unlink()
    return removed


def _is_fresh(cookie: _Cookie) -> bool:
    # The kernel's time is cut to seconds; one that is yet to come is from before the clock was set.
    return 0 <= time.time() - cookie.used < _QUIET


def _is_abandoned(semid: int) -> bool:
    try:
        if kernel.waiters_for_zero(semid) > 0:
            return False
        user = kernel.last_semaphore_user(semid)
    except OSError:
        return False
    if user == 0:
        return False
    try:
        os.kill(user, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
