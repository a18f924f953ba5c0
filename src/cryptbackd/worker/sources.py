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
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import attrs

from .. import kernel
from . import careful, rights
from .control import Control, escaped
from .mountinfo import Mount, holding, mount_of, mounts, shows_other

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
    elsewhere: Container[str] = (),
) -> Plan:
    """Decide for each source of *include*, none of which is to be left to another one
    (:func:`outermost`); what is kept or left out is warned about through *control*.

    *open_* gives an O_PATH descriptor of a source, or raises OSError.

    *last_tree* holds the last state of the sources under their absolute paths (None: there
    is none).  *accept* takes sources that are empty or on another filesystem as they are.
    *elsewhere* are sources that are planned with others' rights.
    """
    read, kept = [], []
    hint = "Its last state was kept (`cryptback run --accept-changes` takes it as it is)."
    for path in include:
        before = last_filesystems.get(path, "")
        source = Source(path, before)
        fault = ""
        try:
            source.fd = open_(path)
            source.filesystem = _filesystem(path, source.fd)
            if last_tree is not None and not accept:
                if before not in ("", source.filesystem):
                    fault = "is on another filesystem than before"
                elif _is_empty(source.fd) and _has_content(last_tree, path):
                    fault = "is empty, and was not before"
        except OSError as exc:
            _let_go(source, exc, control)
            kept.append(Source(path, before))
            continue
        if fault:
            sentence = f"The source {escaped(path)} {fault}. {hint}"
            control.warn(sentence, doubt=False, many=True)
            os.close(source.fd)
            kept.append(Source(path, before))
        else:
            read.append(source)
    skipped = _left_out(read, elsewhere, crossed=cross_filesystems)
    for mount in skipped:
        if mount.path not in known_skipped:
            what = (
                "is another filesystem and was left out (`cross_filesystems = true` would take it"
            )
            what += " along)."
            if mount.served_by_user:
                what = "was left out, as it is a user's own filesystem (FUSE)."
            control.warn(f"{escaped(mount.path)} {what}", doubt=False, many=True)
    points = tuple(mount.path for mount in skipped)
    return Plan(tuple(read), tuple(kept), points, cross_filesystems)


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


def is_hidden(path: str, around: str, table: Sequence[Mount], *, crossed: bool = False) -> bool:
    """Whether who reads *around*, in which *path* lies, does not come to that: it is mounted there.

    Where mounts are *crossed*, they come to all but what a user serves.
    """
    mount, outer = holding(path, table), holding(around, table)
    is_inner = mount.path != outer.path and is_inside(mount.path, outer.path)
    return is_inner and shows_other(mount, outer) and (mount.served_by_user or not crossed)


def outermost(include: Sequence[str], known: Container[str] = ()) -> list[str]:
    """The sources without those that lie in another one, and on the same filesystem as that.

    One that was read for itself before (*known*) goes on being one: where its disk isn't mounted,
    or it is gone, the other one would have nothing in its place.
    """
    found: dict[str, None] = {}
    table = mounts()
    for path in sorted({os.path.normpath(path).replace("//", "/") for path in include}):
        above = path
        while above not in found and above != "/":
            above = os.path.dirname(above)
        if above not in found or path in known or is_hidden(path, above, table):
            found[path] = None
    return list(found)


def _let_go(source: Source, why: OSError, control: Control) -> None:
    """Warn of a source that can't be read."""
    if source.fd >= 0:
        os.close(source.fd)
        source.fd = -1
    fault = "is missing" if why.errno == errno.ENOENT else f"can't be read: {why.strerror}"
    sentence = f"The source {escaped(source.path)} {fault}. Its last state was kept."
    control.warn(sentence, doubt=False, many=True)


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


def _left_out(
    sources: Sequence[Source], elsewhere: Container[str], *, crossed: bool
) -> list[Mount]:
    """What is mounted below and not read: where mounts are *crossed*, only what a user serves."""
    own = {source.path for source in sources}
    found: dict[str, Mount] = {}
    for source in sources:
        outer = mount_of(source.path)
        # A bind mount of the same filesystem (the service has some) hides nothing that lies
        # nowhere else; another subvolume of a btrfs does.
        found |= {
            mount.path: mount
            for mount in _below(source.path)
            if mount.path not in own
            and mount.path not in elsewhere
            and (mount.devno != outer.devno or not is_inside(mount.root, outer.root))
            and mount.fstype != "autofs"
        }
    return _outer(mount for mount in found.values() if mount.served_by_user or not crossed)


def _below(path: str) -> list[Mount]:
    """What is mounted below *path*: of two at one place that which is on top."""
    root = path.rstrip("/") + "/"
    found = {mount.path: mount for mount in mounts()}
    return [mount for mount in found.values() if mount.path.startswith(root)]


def _outer(found: Iterable[Mount]) -> list[Mount]:
    """Of a mount in a mount only the outer one is worth a word."""
    by_path = {mount.path: mount for mount in found}
    outer = [p for p in by_path if not any(p.startswith(other + "/") for other in by_path)]
    return [by_path[path] for path in sorted(outer)]


def stage(
    plan_: Plan, others: Sequence[str], where: Path, last_tree: Path | None, control: Control
) -> Plan:
    """Build the tree that the reader sees at *where*, an empty directory in the workspace.

    It also has the directories that lead to *others*, which stay as they are in the target.
    What a user serves below a source is not in it.  Returns what has become of the plan: a source
    that can't be shown is warned about and kept.
    """
    where.mkdir()
    ancestors = {""}
    placed, shown, kept = [], [], list(plan_.kept)
    for source in plan_.read:
        try:
            _place(source, where, ancestors)
            placed.append(source)
        except OSError as exc:
            _let_go(source, exc, control)
            kept.append(source)
    for path in others:
        # What can't lead anywhere here, as a name is too long or a file's, doesn't in the target.
        with suppress(OSError):
            _lead_to(path, where, ancestors)
    for ancestor in sorted(ancestors, reverse=True):
        _resemble(where / ancestor, ancestor, last_tree)
    for source in placed:
        target = where / source.path.lstrip("/")
        try:
            kernel.bind_read_only(source.fd, str(target), recursive=plan_.recursive)
        except OSError as exc:
            _let_go(source, exc, control)
            kept.append(source)
            # What stands for it would be copied.
            with suppress(OSError):
                target.rmdir() if target.is_dir() else target.unlink()
            continue
        os.close(source.fd)
        source.fd = -1
        shown.append(source)
    if plan_.recursive:
        _take_away_served(where, [str(where / source.path.lstrip("/")) for source in shown])
    return attrs.evolve(plan_, read=tuple(shown), kept=tuple(kept))


def _take_away_served(where: Path, own: Container[str]) -> None:
    """Take away what a user serves but for *own*: who reads there waits for that user, and can't be
    killed.

    What is mounted later does not come up here.
    """
    while served := _outer(
        mount for mount in _below(str(where)) if mount.served_by_user and mount.path not in own
    ):
        for mount in served:
            kernel.detach(mount.path)


def _place(source: Source, where: Path, ancestors: set[str]) -> None:
    """Make what the source is to be mounted on."""
    _lead_to(source.path, where, ancestors)
    target = where / source.path.lstrip("/")
    if stat.S_ISDIR(os.fstat(source.fd).st_mode):
        target.mkdir(exist_ok=True)
    else:
        target.touch()


def _lead_to(path: str, where: Path, ancestors: set[str]) -> None:
    """Make the directories that *path* lies in, and add them to *ancestors*."""
    parts = path.strip("/").split("/")[:-1]
    for depth in range(len(parts)):
        ancestor = "/".join(parts[: depth + 1])
        if ancestor not in ancestors:
            (where / ancestor).mkdir(exist_ok=True)
            ancestors.add(ancestor)


def _resemble(staged: Path, path: str, last_tree: Path | None) -> None:
    """Give the staged directory owner, mode, times and attributes of the real one."""
    fd = _real(path, last_tree)
    if fd is None:
        return
    try:
        status = os.fstat(fd)
        os.chown(staged, status.st_uid, status.st_gid)
        with suppress(OSError):
            # tmpfs may not take every extended attribute.
            shutil.copystat(f"/proc/self/fd/{fd}", staged)
        os.utime(staged, ns=(status.st_atime_ns, status.st_mtime_ns))
    finally:
        os.close(fd)


def _real(path: str, last_tree: Path | None) -> int | None:
    """The directory as it is, or was the last time: an O_PATH descriptor, the caller's to close.

    A user who serves a filesystem is not asked for one that lies there.
    """
    with suppress(OSError, KeyError, careful.ServedByUser):
        fd = _walked(f"/{path}")
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            return fd
        os.close(fd)
    if last_tree is not None:
        with suppress(OSError):
            return os.open(last_tree / path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    return None


def _walked(path: str) -> int:
    """Where *path* leads; by a user's symbolic link not further than that user could go.

    Raises OSError, KeyError where there is no such user, and ServedByUser.
    """
    try:
        return careful.walk(path, trusting=False)
    except careful.LinkOfUser as exc:
        found = rights.opened(rights.of_user(exc.user), [path], os.O_PATH)[path]
    if isinstance(found, OSError):
        raise found
    return found
