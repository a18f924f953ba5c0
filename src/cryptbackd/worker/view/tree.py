"""The versions as one read-only tree, of which every file is opened beneath its version.

The number of a file is valid from the lookup that gave it until it is forgotten as often as it
was looked up, and never given to another one.  A descriptor is held for each version, as long
as the tree lives; those that are handed out are the caller's to close.

Nothing here follows a link, whatever lies on the drive: openat2(2) is told so at each open.
Who may read what is the kernel's business: it knows us as the user for whom we read.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence

import attrs

from ... import kernel

ROOT = 1
"""The number of the directory that holds the versions (FUSE_ROOT_ID)."""

_BENEATH = (
    kernel.RESOLVE_BENEATH
    | kernel.RESOLVE_NO_SYMLINKS
    | kernel.RESOLVE_NO_MAGICLINKS
    | kernel.RESOLVE_NO_XDEV
)
_LONGEST = 4000
"""Bytes of a path that are looked up at once; the kernel takes less than 4096 (PATH_MAX)."""
_SHOWN = ("user.", "system.posix_acl_")
"""What the names of those extended attributes begin with that are shown."""
_CAPABILITIES = "security.capability"

_Key = tuple[int, bytes] | tuple[int, int, int]


@attrs.define
class _Node:
    """A file or directory that the kernel knows by a number."""

    version: int
    path: bytes
    """Below the version's root; one of them, where it has several names."""
    key: _Key
    lookups: int = 0


class Tree:
    """*names* and *roots* (descriptors, O_PATH will do; owned) are the versions, in order."""

    def __init__(self, names: Sequence[bytes], roots: Sequence[int], user: int, group: int) -> None:
        self._names = list(names)
        self._roots = list(roots)
        self._user, self._group = user, group
        self._nodes: dict[int, _Node] = {}
        self._numbers: dict[_Key, int] = {}
        self._next = ROOT + 1

    def lookup(self, parent: int, name: bytes) -> tuple[int, os.stat_result]:
        """The number and the status of what is called *name* in the directory *parent*.

        It counts as looked up once more.  Raises OSError.
        """
        if parent == ROOT:
            if name not in self._names:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            version, path = self._names.index(name), b""
        else:
            above = self._nodes[parent]
            version, path = above.version, above.path + b"/" + name if above.path else name
        status = self._status(version, path)
        key: _Key = (version, status.st_dev, status.st_ino)
        if stat.S_ISDIR(status.st_mode):
            key = (version, path)  # the stubs of btrfs' subvolumes all have the same number
        number = self._numbers.get(key)
        if number is None:
            number, self._next = self._next, self._next + 1
            self._numbers[key] = number
            self._nodes[number] = _Node(version, path, key)
        self._nodes[number].lookups += 1
        return number, status

    def forget(self, number: int, lookups: int) -> None:
        """So many lookups of *number* don't count any more."""
        node = self._nodes.get(number)
        if node is None:
            return
        node.lookups -= lookups
        if node.lookups <= 0:
            del self._nodes[number], self._numbers[node.key]

    def status(self, number: int) -> os.stat_result:
        """Of the number that a lookup gave; that of ROOT is made up.  Raises OSError."""
        if number != ROOT:
            node = self._nodes[number]
            return self._status(node.version, node.path)
        mode = stat.S_IFDIR | stat.S_IRUSR | stat.S_IXUSR
        links = 2 + len(self._names)
        newest = os.fstat(self._roots[-1]).st_ctime if self._roots else 0
        times = (newest, newest, newest)
        return os.stat_result((mode, ROOT, 0, links, self._user, self._group, 0, *times))

    def link(self, number: int) -> bytes:
        """Where a symbolic link says that it leads."""
        node = self._nodes[number]
        fd = self._open(node.version, node.path, os.O_PATH | os.O_NOFOLLOW)
        try:
            return os.readlink(b"", dir_fd=fd)
        finally:
            os.close(fd)

    def names(self, number: int) -> list[bytes]:
        """What is in a directory."""
        if number == ROOT:
            return list(self._names)
        node = self._nodes[number]
        fd = self._open(node.version, node.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return [os.fsencode(name) for name in os.listdir(fd)]
        finally:
            os.close(fd)

    def file(self, number: int) -> int:
        """A descriptor to read a regular file from; of anything else raises OSError."""
        if number == ROOT:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        node = self._nodes[number]
        fd = self._open(node.version, node.path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return fd
        os.close(fd)
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    def attributes(self, number: int) -> list[str]:
        """The names of the extended attributes that are shown."""
        if number == ROOT:
            return []
        names = os.listxattr(self._beside(number), follow_symlinks=False)
        return [name for name in names if _is_shown(name)]

    def attribute(self, number: int, name: str) -> bytes:
        """The value of one of them; raises OSError."""
        if number == ROOT or not _is_shown(name):
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
        return os.getxattr(self._beside(number), name, follow_symlinks=False)

    def room(self) -> os.statvfs_result:
        """Of the filesystem that the versions are on."""
        return os.fstatvfs(self._roots[-1])

    def close(self) -> None:
        """Let go of the versions."""
        while self._roots:
            os.close(self._roots.pop())

    def _status(self, version: int, path: bytes) -> os.stat_result:
        fd = self._open(version, path, os.O_PATH | os.O_NOFOLLOW)
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)

    def _open(self, version: int, path: bytes, flags: int) -> int:
        """*path* beneath the root of *version*."""
        above = self._roots[version]
        held = -1
        try:
            while len(path) > _LONGEST:
                cut = path.rindex(b"/", 0, _LONGEST)
                further = kernel.openat2(above, path[:cut], os.O_PATH | os.O_DIRECTORY, _BENEATH)
                if held >= 0:
                    os.close(held)
                above = held = further
                path = path[cut + 1 :]
            return kernel.openat2(above, path or b".", flags, _BENEATH)
        finally:
            if held >= 0:
                os.close(held)

    def _beside(self, number: int) -> bytes:
        """The name of a file in its directory, which is made the current one.

        Extended attributes can be had by a path alone, unless the file itself is opened.
        """
        node = self._nodes[number]
        directory, _slash, name = node.path.rpartition(b"/")
        fd = self._open(node.version, directory, os.O_PATH | os.O_DIRECTORY)
        try:
            os.fchdir(fd)
        finally:
            os.close(fd)
        return name or b"."


def _is_shown(name: str) -> bool:
    return name.startswith(_SHOWN) or name == _CAPABILITIES
