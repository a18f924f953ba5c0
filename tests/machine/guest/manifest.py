"""Runs in a guest: prints what is to be kept of each file below a directory, a line of JSON each.

Shares no code with the program under test. Its arguments are directories; an empty line
stands between the lines of two.
"""

import base64
import hashlib
import json
import os
import stat
import sys
from collections.abc import Iterator

LARGE = 1 << 20
"""Smaller files are laid out differently from filesystem to filesystem."""

PIECE = 1 << 18

ACL_OF_XFS = "trusted.SGI_ACL_"
"""XFS shows ACLs a second time, in its own form."""


def text(raw: bytes) -> str:
    return raw.decode("ascii", "backslashreplace")


def everything(top: bytes) -> Iterator[bytes]:
    yield top
    for directory, directories, files in os.walk(top):
        for name in directories + files:
            yield os.path.join(directory, name)


def checksum(path: bytes) -> str:
    # Emulated, SHA-512 takes half of the time that SHA-256 does.
    digest = hashlib.sha512()
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def attributes(path: bytes) -> dict[str, str]:
    """Extended attributes; ACLs and capabilities are such."""
    names = sorted(os.listxattr(path, follow_symlinks=False))
    names = [name for name in names if not name.startswith(ACL_OF_XFS)]
    return {
        name: base64.b64encode(os.getxattr(path, name, follow_symlinks=False)).decode()
        for name in names
    }


def record(path: bytes, name: bytes, status: os.stat_result) -> dict[str, object]:
    kind = stat.S_IFMT(status.st_mode)
    shown: dict[str, object] = {
        "name": text(name),
        "kind": oct(kind),
        "mode": oct(stat.S_IMODE(status.st_mode)),
        "owner": [status.st_uid, status.st_gid],
        "time": status.st_mtime_ns,
        "attributes": attributes(path),
    }
    if kind == stat.S_IFREG:
        shown["size"] = status.st_size
        shown["sha512"] = checksum(path)
        shown["sparse"] = status.st_size >= LARGE and status.st_blocks * 512 < status.st_size // 2
    elif kind == stat.S_IFLNK:
        shown["target"] = text(os.readlink(path))
    elif kind in (stat.S_IFBLK, stat.S_IFCHR):
        shown["device"] = [os.major(status.st_rdev), os.minor(status.st_rdev)]
    return shown


def show(top: bytes) -> None:
    top = top.rstrip(b"/") or b"/"
    records: dict[bytes, dict[str, object]] = {}
    names: dict[tuple[int, int], list[bytes]] = {}
    for path in everything(top):
        name = path[len(top) + 1 :] or b"."
        status = os.lstat(path)
        records[name] = record(path, name, status)
        if not stat.S_ISDIR(status.st_mode):
            names.setdefault((status.st_dev, status.st_ino), []).append(name)
    for same in names.values():
        if len(same) > 1:
            for name in same:
                records[name]["links"] = sorted(text(other) for other in same)
    for _, shown in sorted(records.items()):
        print(json.dumps(shown, sort_keys=True))


show(os.fsencode(sys.argv[1]))
for argument in sys.argv[2:]:
    print()
    show(os.fsencode(argument))
