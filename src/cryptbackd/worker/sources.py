"""What is copied: the sources of an entry, and how the reader gets to see them.

:func:`plan` looks at each source once and decides whether it is read, or whether its last
state is kept because it is missing, on another filesystem than before, or empty where it
was not.  :func:`stage` then builds a tree that holds the sources under their absolute paths
and nothing else: read-only bind mounts of the very directories that were looked at, below
directories that look like the real ones.  The mounts live as long as the worker.  No symbolic
link is followed in them: whoever owns a directory could put one in its place while it is read,
and get what lies in another source under a name of their own.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import attrs

from .. import kernel
from .control import Control, escaped
from .mountinfo import mount_of, mounts

_HAS_FSID_OF_ITS_UUID = ("ext2", "ext3", "ext4")


@attrs.define
class Source:
    """One source.  ``fd`` is an O_PATH descriptor, or -1 when its last state is kept."""

    path: str
    filesystem: str
    """What it lies on, so that the next run can tell whether that is still so."""
    fd: int = -1


@attrs.frozen
class Plan:
    """The sources to read, those to keep, and the mount points below that were left out."""

    read: tuple[Source, ...]
    kept: tuple[Source, ...]
    skipped_mounts: tuple[str, ...]
    recursive: bool

    def filesystems(self) -> dict[str, str]:
        """Source to filesystem, for the version's record."""
        return {source.path: source.filesystem for source in (*self.read, *self.kept)}


def plan(
    include: Sequence[str],
    *,
    cross_filesystems: bool,
    open_: Callable[[str], int],
    last_tree: Path | None,
    last_filesystems: Mapping[str, str],
    known_skipped: Sequence[str],
    accept: bool,
    control: Control,
) -> Plan:
    """Decide for each source; what is kept or left out is warned about through *control*.

    *open_* gives an O_PATH descriptor of a source, or raises OSError.

    *last_tree* holds the last state of the sources under their absolute paths (None: there
    is none).  *accept* takes sources that are empty or on another filesystem as they are.
    """
    read, kept = [], []
    hint = "Its last state was kept (`cryptback run --accept-changes` takes it as it is)."
    for path in _outermost(include):
        before = last_filesystems.get(path, "")
        try:
            source = Source(path, before, open_(path))
        except OSError as exc:
            why = "is missing" if exc.errno == errno.ENOENT else f"can't be read: {exc.strerror}"
            sentence = f"The source {escaped(path)} {why}. Its last state was kept."
            control.warn(sentence, doubt=False, many=True)
            kept.append(Source(path, before))
            continue
        source.filesystem = _filesystem(path, source.fd)
        fault = ""
        if last_tree is not None and not accept:
            if before not in ("", source.filesystem):
                fault = "is on another filesystem than before"
            elif _is_empty(source.fd) and _has_content(last_tree, path):
                fault = "is empty, and was not before"
        if fault:
            sentence = f"The source {escaped(path)} {fault}. {hint}"
            control.warn(sentence, doubt=False, many=True)
            os.close(source.fd)
            kept.append(Source(path, before))
        else:
            read.append(source)
    skipped = () if cross_filesystems else _mounts_below(read)
    for point in skipped:
        if point not in known_skipped:
            control.warn(
                f"{escaped(point)} is another filesystem and was left out"
                " (`cross_filesystems = true` would take it along).",
                doubt=False,
                many=True,
            )
    return Plan(tuple(read), tuple(kept), skipped, cross_filesystems)


def unveil() -> None:
    """Have /tmp and /var/tmp be the computer's in this mount namespace, read-only.

    The service has private ones (PrivateTmp=), which are in the way of sources that lie there.
    """
    for place in ("/tmp", "/var/tmp"):  # noqa: S108 - nothing is made there
        if "/systemd-private-" not in mount_of(place).root:
            continue
        kernel.detach(place)
        found = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            kernel.bind_read_only(found, place, recursive=True)
        finally:
            os.close(found)


def is_inside(path: str, other: str) -> bool:
    """Whether *path* is *other*, or lies in it."""
    return path == other or path.startswith(other.rstrip("/") + "/")


def _outermost(include: Sequence[str]) -> list[str]:
    """The sources without those that lie in another one and on the same filesystem."""
    found: list[str] = []
    for path in sorted({os.path.normpath(path).replace("//", "/") for path in include}):
        inside = any(is_inside(path, other) for other in found)
        if not inside or os.path.ismount(path):
            found.append(path)
    return found


def _filesystem(path: str, fd: int) -> str:
    """A word that stays the same as long as the source lies on the same filesystem.

    Only ext2 to ext4 derive their fsid from their UUID (statfs(2)); of others only the
    type is certain to be the same after a reboot.
    """
    fstype = mount_of(path).fstype
    if fstype in _HAS_FSID_OF_ITS_UUID:
        return f"{fstype}:{os.fstatvfs(fd).f_fsid:016x}"
    return fstype


def _is_empty(fd: int) -> bool:
    if not stat.S_ISDIR(os.fstat(fd).st_mode):
        return False
    directory = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with os.scandir(directory) as entries:
            return next(entries, None) is None
    finally:
        os.close(directory)


def _has_content(tree: Path, path: str) -> bool:
    try:
        with os.scandir(tree / path.lstrip("/")) as entries:
            return next(entries, None) is not None
    except OSError:
        return False


def _mounts_below(sources: Sequence[Source]) -> tuple[str, ...]:
    own = {source.path for source in sources}
    below = set()
    for source in sources:
        root = source.path.rstrip("/") + "/"
        devno = mount_of(source.path).devno
        # A bind mount of the same filesystem (the service has some) hides nothing that lies
        # nowhere else.
        below |= {
            mount.path
            for mount in mounts()
            if mount.path.startswith(root)
            and mount.path not in own
            and mount.devno != devno
            and mount.fstype != "autofs"
        }
    # Of a mount in a mount only the outer one is worth a word.
    return tuple(sorted(p for p in below if not any(p.startswith(other + "/") for other in below)))


def stage(plan_: Plan, others: Sequence[str], where: Path, last_tree: Path | None) -> None:
    """Build the tree that the reader sees at *where*, an empty directory in the workspace.

    It also has the directories that lead to *others*, which stay as they are in the target.
    """
    where.mkdir()
    ancestors: dict[str, None] = {"": None}
    for path in (*(source.path for source in plan_.read), *others):
        parts = path.strip("/").split("/")[:-1]
        for depth in range(len(parts)):
            ancestors["/".join(parts[: depth + 1])] = None
    for ancestor in ancestors:
        if ancestor:
            (where / ancestor).mkdir(exist_ok=True)
    for ancestor in sorted(ancestors, reverse=True):
        _resemble(where / ancestor, ancestor, last_tree)
    for source in plan_.read:
        target = where / source.path.lstrip("/")
        if not target.exists():
            if stat.S_ISDIR(os.fstat(source.fd).st_mode):
                target.mkdir()
            else:
                target.touch()
            _resemble(target.parent, os.path.dirname(source.path.lstrip("/")), last_tree)
        kernel.bind_read_only(source.fd, str(target), recursive=plan_.recursive)
        os.close(source.fd)
        source.fd = -1


def _resemble(staged: Path, path: str, last_tree: Path | None) -> None:
    """Give the staged directory owner, mode, times and attributes of the real one."""
    real = Path("/", path)
    if not real.is_dir():
        if last_tree is None or not (last_tree / path).is_dir():
            return
        real = last_tree / path
    status = os.stat(real)
    os.chown(staged, status.st_uid, status.st_gid)
    with suppress(OSError):
        # tmpfs may not take every extended attribute.
        shutil.copystat(real, staged)
    os.utime(staged, ns=(status.st_atime_ns, status.st_mtime_ns))
