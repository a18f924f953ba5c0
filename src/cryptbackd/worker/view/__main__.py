"""The server's process: opens the versions, becomes the user, and answers the kernel.

It begins as root without capabilities but for becoming somebody else, in a sandbox that has
nothing of the computer but ``/usr``, and the versions read-only.  It opens the root of each
version, which only root can reach, and then gives up all that it was for good.

It ends when the mount is gone, or is killed.  "ready" on its standard output means that it
answers.
"""

from __future__ import annotations

import argparse
import os
import resource
import stat
import sys
from collections.abc import Sequence
from contextlib import suppress

from ... import kernel

VERSIONS = "/versions"
"""Where the sandbox has them."""


def main() -> int:
    """*versions* come on standard input, ended by NUL each, the oldest first."""
    parser = argparse.ArgumentParser(prog="cryptbackd.worker.view")
    parser.add_argument("--fuse", type=int, required=True, metavar="FD")
    parser.add_argument("--user", type=int, required=True, metavar="UID")
    parser.add_argument(
        "--groups", required=True, metavar="GID,…", help="the first is the main one"
    )
    options = parser.parse_args()
    _allow_many_files()
    groups = [int(group) for group in options.groups.split(",")]
    names, roots = _versions(sys.stdin.buffer.read().split(b"\0")[:-1])
    _become(options.user, groups)
    return _serve(options.fuse, names, roots, options.user, groups[0])


def _allow_many_files() -> None:
    """A version takes a descriptor, and whoever looks at them may open many files."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _versions(names: Sequence[bytes]) -> tuple[list[bytes], list[int]]:
    """Those of them that are there, and a descriptor of each."""
    found: list[bytes] = []
    roots: list[int] = []
    above = os.open(VERSIONS, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    for name in names:
        try:
            root = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
        except FileNotFoundError:
            continue
        if stat.S_ISDIR(os.fstat(root).st_mode):
            found.append(name)
            roots.append(root)
        else:
            os.close(root)
    os.close(above)
    return found, roots


def _become(user: int, groups: Sequence[int]) -> None:
    """Be *user* in *groups*, whatever this process was; nothing leads back."""
    if user == 0:
        return  # the sandbox has left it the right to read everything, and none else
    os.setgroups(groups)
    os.setresgid(groups[0], groups[0], groups[0])
    os.setresuid(user, user, user)
    kernel.forbid_dump()
    if os.getresuid() != (user, user, user) or os.getresgid() != (groups[0],) * 3:
        raise SystemExit("could not become the user")
    try:
        os.setresuid(0, 0, 0)
    except PermissionError:
        return
    raise SystemExit("could become root again")


def _serve(fd: int, names: Sequence[bytes], roots: Sequence[int], user: int, group: int) -> int:
    # As late as this, so that nothing of them ever runs as root for somebody else.
    import pyfuse3
    import trio

    from .operations import Operations
    from .tree import Tree

    tree = Tree(names, roots, user, group)
    pyfuse3.init(Operations(tree), f"/dev/fd/{fd}", set())
    print("ready", flush=True)
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=False)
        tree.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
