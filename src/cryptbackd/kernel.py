"""System calls that Python does not wrap, each as one function that raises OSError.

Only what the standard library lacks stands here.  Structures and numbers are from the
kernel's ``include/uapi`` headers and the man pages named at each function.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import math
import os
import stat
import struct
from collections.abc import Iterable
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

# These numbers are the same on every architecture that Debian ships (asm-generic).
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_OPENAT2 = 437
_SYS_MOUNT_SETATTR = 442

_SYS_PIVOT_ROOT = {
    ("x86_64", 8): 155,
    ("x86_64", 4): 217,
    ("i686", 4): 217,
    ("aarch64", 8): 41,
    ("aarch64", 4): 218,
    ("armv7l", 4): 218,
    ("ppc64le", 8): 203,
    ("riscv64", 8): 41,
    ("s390x", 8): 217,
}
"""By machine and bytes of a pointer: this one is older than the common numbers."""

CLONE_NEWNS = 0x00020000
CLONE_NEWPID = 0x20000000
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REC = 0x4000
MS_SLAVE = 1 << 19
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_CAPBSET_READ = 23
_PR_CAPBSET_DROP = 24
_CAPABILITIES = struct.Struct("=6I")
"""Two of ``struct __user_cap_data_struct``: effective, permitted, inheritable."""
_CAPABILITY_HEADER = struct.pack("=Ii", 0x20080522, 0)
"""Version 3, this thread."""

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08

_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 0x04
_MS_PRIVATE = 1 << 18
_MNT_DETACH = 2
_MOUNT_ATTR_RDONLY = 0x01
_MOUNT_ATTR_NOSUID = 0x02
_MOUNT_ATTR_NODEV = 0x04
_MOUNT_ATTR_NOEXEC = 0x08
_MOUNT_ATTR_NOSYMFOLLOW = 0x200000

_AT_STATX_DONT_SYNC = 0x4000
_STATX_TYPE = 0x01
_STATX = struct.Struct("=28xH98xII120x")
"""Of ``struct statx`` (256 bytes): stx_mode, stx_rdev_major and stx_rdev_minor."""

_BLKGETDISKSEQ = 0x80081280
_BLKGETSIZE64 = 0x80081272

_BTRFS_IOC_GET_SUBVOL_INFO = 0x81F8943C
_BTRFS_IOC_FS_INFO = 0x8400941F

_CLOCK_REALTIME = 0
_TFD_TIMER_ABSTIME = 1
_TFD_TIMER_CANCEL_ON_SET = 2

_SEM_GETPID = 11
_SEM_GETZCNT = 15


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def _syscall(number: int, *args: Any, what: str = "") -> int:
    return _check(_libc.syscall(ctypes.c_long(number), *args), what)


def unshare(flags: int) -> None:
    """Leave the namespaces in *flags* (unshare(2))."""
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def set_propagation(path: str, flags: int) -> None:
    """Change how mounts below *path* propagate (mount(2), ``MS_SLAVE`` and friends)."""
    _check(
        _libc.mount(None, os.fsencode(path), None, ctypes.c_ulong(flags), None),
        path,
    )


def mount(fstype: str, target: str, flags: int, options: str = "") -> None:
    """Mount a filesystem that lies on no device (``proc``, ``tmpfs``) at *target* (mount(2))."""
    _check(
        _libc.mount(
            ctypes.c_char_p(fstype.encode()),
            ctypes.c_char_p(os.fsencode(target)),
            ctypes.c_char_p(fstype.encode()),
            ctypes.c_ulong(flags),
            ctypes.c_char_p(options.encode()),
        ),
        target,
    )


def die_with_parent(signal_number: int) -> None:
    """Be sent *signal_number* when the parent thread ends (PR_SET_PDEATHSIG, prctl(2))."""
    _check(
        _libc.prctl(ctypes.c_int(_PR_SET_PDEATHSIG), ctypes.c_ulong(signal_number), 0, 0, 0),
        "prctl",
    )


def forbid_dump() -> None:
    """No core dump and no ptrace by others of our user (PR_SET_DUMPABLE, prctl(2))."""
    _check(_libc.prctl(ctypes.c_int(_PR_SET_DUMPABLE), ctypes.c_ulong(0), 0, 0, 0), "prctl")


def bounding_set() -> set[int]:
    """The numbers of the capabilities in the bounding set (PR_CAPBSET_READ, prctl(2))."""
    found: set[int] = set()
    for number in range(64):
        has = _libc.prctl(ctypes.c_int(_PR_CAPBSET_READ), ctypes.c_ulong(number), 0, 0, 0)
        if has < 0:  # the kernel knows no more
            break
        if has:
            found.add(number)
    return found


def drop_from_bounding_set(number: int) -> None:
    """Nothing that is started from here has the capability any more (PR_CAPBSET_DROP, prctl(2))."""
    _check(_libc.prctl(ctypes.c_int(_PR_CAPBSET_DROP), ctypes.c_ulong(number), 0, 0, 0), "prctl")


def limit_capabilities(numbers: Iterable[int]) -> None:
    """Of the effective and permitted capabilities keep these, and inherit none (capset(2))."""
    header = ctypes.create_string_buffer(_CAPABILITY_HEADER)
    raw = ctypes.create_string_buffer(_CAPABILITIES.size)
    _check(_libc.capget(header, raw), "capget")
    wanted = sum(1 << number for number in numbers)
    low, high = wanted & 0xFFFFFFFF, wanted >> 32
    effective, permitted, _, effective_high, permitted_high, _ = _CAPABILITIES.unpack(raw.raw[:24])
    limited = [effective & low, permitted & low, 0, effective_high & high, permitted_high & high, 0]
    _check(_libc.capset(header, ctypes.c_char_p(_CAPABILITIES.pack(*limited))), "capset")


def syncfs(fd: int) -> None:
    """Write the filesystem of *fd* out; raises the first write-back error since *fd* was
    opened (syncfs(2), Linux 5.8).
    """
    _check(_libc.syncfs(ctypes.c_int(fd)), "syncfs")


def openat2(directory: int, path: str | bytes, flags: int, resolve: int, mode: int = 0) -> int:
    """Open *path* below the descriptor *directory* under the rules *resolve* (openat2(2))."""
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, resolve)
    return _syscall(
        _SYS_OPENAT2,
        ctypes.c_int(directory),
        ctypes.c_char_p(os.fsencode(path)),
        ctypes.c_char_p(how),
        ctypes.c_size_t(len(how)),
        what=os.fsdecode(path),
    )


def bind_read_only(source: int, target: str, *, recursive: bool) -> None:
    """Show the directory or file *source* (a descriptor, O_PATH will do) at *target*.

    Read-only, nosuid, nodev, noexec and private, before anybody can see it there, and no
    symbolic link is followed in it: it can be read, as any link, by readlink(2).  *recursive*
    takes along what is mounted below (open_tree(2), mount_setattr(2), move_mount(2);
    Linux 5.14).
    """
    attributes = _MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV | _MOUNT_ATTR_NOEXEC
    attributes |= _MOUNT_ATTR_NOSYMFOLLOW
    _bind(source, target, attributes, _AT_RECURSIVE if recursive else 0)


def bind(source: int, target: str) -> None:
    """Show the directory *source* (a descriptor) at *target*, as it is, nosuid and nodev."""
    _bind(source, target, _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV, 0)


def bind_programs(source: int, target: str) -> None:
    """Show the directory *source* (a descriptor) at *target*: read, and execute what is in it."""
    attributes = _MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV
    _bind(source, target, attributes, _AT_RECURSIVE)


def _bind(source: int, target: str, attributes: int, deep: int) -> None:
    tree = _syscall(
        _SYS_OPEN_TREE,
        ctypes.c_int(source),
        ctypes.c_char_p(b""),
        ctypes.c_uint(_AT_EMPTY_PATH | _OPEN_TREE_CLONE | os.O_CLOEXEC | deep),
        what="open_tree",
    )
    try:
        attr = struct.pack("=QQQQ", attributes, 0, _MS_PRIVATE, 0)
        _syscall(
            _SYS_MOUNT_SETATTR,
            ctypes.c_int(tree),
            ctypes.c_char_p(b""),
            ctypes.c_uint(_AT_EMPTY_PATH | deep),
            ctypes.c_char_p(attr),
            ctypes.c_size_t(len(attr)),
            what="mount_setattr",
        )
        _attach(tree, target)
    finally:
        os.close(tree)


def make_read_only(directory: str) -> None:
    """Nothing can be written any more to what is mounted at *directory*, by way of this mount."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        attr = struct.pack("=QQQQ", _MOUNT_ATTR_RDONLY, 0, 0, 0)
        _syscall(
            _SYS_MOUNT_SETATTR,
            ctypes.c_int(fd),
            ctypes.c_char_p(b""),
            ctypes.c_uint(_AT_EMPTY_PATH),
            ctypes.c_char_p(attr),
            ctypes.c_size_t(len(attr)),
            what="mount_setattr",
        )
    finally:
        os.close(fd)


def make_root(directory: str) -> None:
    """Have the mount at *directory* be the root, and nothing of the old one be reached any more.

    In a mount namespace of our own (pivot_root(2), "pivot_root(".", ".")").
    """
    number = _SYS_PIVOT_ROOT.get((os.uname().machine, struct.calcsize("P")))
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), "pivot_root")
    os.chdir(directory)
    _syscall(number, ctypes.c_char_p(b"."), ctypes.c_char_p(b"."), what="pivot_root")
    detach(".")
    os.chdir("/")


def device_number(fd: int) -> tuple[int, int] | None:
    """Of which character device *fd* is opened, major and minor; None: of something else.

    Nothing is asked of the filesystem that it lies on (statx(2), AT_STATX_DONT_SYNC).
    """
    found = ctypes.create_string_buffer(_STATX.size)
    flags = _AT_EMPTY_PATH | _AT_STATX_DONT_SYNC
    result = _libc.statx(
        ctypes.c_int(fd), b"", ctypes.c_int(flags), ctypes.c_uint(_STATX_TYPE), found
    )
    _check(result, "statx")
    mode, major, minor = _STATX.unpack(found.raw)
    return (major, minor) if stat.S_ISCHR(mode) else None


def _attach(tree: int, target: str) -> None:
    _syscall(
        _SYS_MOVE_MOUNT,
        ctypes.c_int(tree),
        ctypes.c_char_p(b""),
        ctypes.c_int(-100),
        ctypes.c_char_p(os.fsencode(target)),
        ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH),
        what=target,
    )


def bind_without_links(source: int, target: str) -> None:
    """Show the directory *source* (a descriptor), and all that is mounted below it, at *target*.

    No symbolic link is followed there, whoever puts one into the way (open_tree(2),
    mount_setattr(2), move_mount(2); Linux 5.14).
    """
    tree = _syscall(
        _SYS_OPEN_TREE,
        ctypes.c_int(source),
        ctypes.c_char_p(b""),
        ctypes.c_uint(_AT_EMPTY_PATH | _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_RECURSIVE),
        what="open_tree",
    )
    try:
        attr = struct.pack("=QQQQ", _MOUNT_ATTR_NOSYMFOLLOW, 0, _MS_PRIVATE, 0)
        _syscall(
            _SYS_MOUNT_SETATTR,
            ctypes.c_int(tree),
            ctypes.c_char_p(b""),
            ctypes.c_uint(_AT_EMPTY_PATH | _AT_RECURSIVE),
            ctypes.c_char_p(attr),
            ctypes.c_size_t(len(attr)),
            what="mount_setattr",
        )
        _attach(tree, target)
    finally:
        os.close(tree)


def detach(target: str) -> None:
    """Take away what is mounted at *target*, with all below it (umount2(2))."""
    _check(_libc.umount2(ctypes.c_char_p(os.fsencode(target)), ctypes.c_int(_MNT_DETACH)), target)


def disk_sequence(fd: int) -> int:
    """The DISKSEQ of the opened block device (BLKGETDISKSEQ, linux/fs.h)."""
    return int(struct.unpack("=Q", fcntl.ioctl(fd, _BLKGETDISKSEQ, bytes(8)))[0])


def device_size(fd: int) -> int:
    """Bytes on the opened block device (BLKGETSIZE64, linux/fs.h)."""
    return int(struct.unpack("=Q", fcntl.ioctl(fd, _BLKGETSIZE64, bytes(8)))[0])


def timer() -> int:
    """A descriptor that can be waited for until a time of day (timerfd_create(2))."""
    flags = os.O_CLOEXEC | os.O_NONBLOCK
    fd = _libc.timerfd_create(ctypes.c_int(_CLOCK_REALTIME), ctypes.c_int(flags))
    return _check(fd, "timerfd_create")


def set_timer(fd: int, when: float) -> None:
    """Have the timer *fd* become readable at *when* (Unix time), or when the clock is set.

    It goes on in the computer's sleep, and is due at once on waking.  Reading it, and setting
    it anew, raise ECANCELED where the clock was set since (timerfd_settime(2)).
    """
    seconds, nanoseconds = divmod(max(1, math.ceil(when * 1e9)), 1_000_000_000)
    spec = struct.pack("@llll", 0, 0, seconds, nanoseconds)
    _check(
        _libc.timerfd_settime(
            ctypes.c_int(fd),
            ctypes.c_int(_TFD_TIMER_ABSTIME | _TFD_TIMER_CANCEL_ON_SET),
            ctypes.c_char_p(spec),
            None,
        ),
        "timerfd_settime",
    )


def last_semaphore_user(semid: int) -> int:
    """The process id that last changed the semaphore (GETPID, semctl(2)); 0: none that
    lives in our PID namespace.
    """
    return _check(
        _libc.semctl(ctypes.c_int(semid), ctypes.c_int(0), ctypes.c_int(_SEM_GETPID)), "semctl"
    )


def waiters_for_zero(semid: int) -> int:
    """How many processes wait for the semaphore to become zero (GETZCNT, semctl(2))."""
    return _check(
        _libc.semctl(ctypes.c_int(semid), ctypes.c_int(0), ctypes.c_int(_SEM_GETZCNT)), "semctl"
    )


def btrfs_last_change(path: str) -> int:
    """The number of the transaction in which something was last changed in a subvolume of btrfs.

    A snapshot has that of what it was made of (``ctransid`` of BTRFS_IOC_GET_SUBVOL_INFO,
    linux/btrfs.h).
    """
    info = bytearray(504)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _BTRFS_IOC_GET_SUBVOL_INFO, info)
    finally:
        os.close(fd)
    number: int = struct.unpack_from("=Q", info, 344)[0]
    return number


def btrfs_devices(fd: int) -> int:
    """On how many devices the mounted btrfs lies that *fd* was opened on.

    ``num_devices`` of BTRFS_IOC_FS_INFO (linux/btrfs.h).
    """
    info = bytearray(1024)
    fcntl.ioctl(fd, _BTRFS_IOC_FS_INFO, info)
    number: int = struct.unpack_from("=Q", info, 8)[0]
    return number
