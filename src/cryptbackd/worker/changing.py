"""Programs that change what is in the container, and what it means when one fails.

Each ends before :func:`change` does.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from ..errors import DriveFailed, DriveFull, ToolFailed
from ..run import Ended, Interrupt, run


class TooMuch(ToolFailed):
    """A path is longer than the program can take, or a file has too many names for one more by it;
    others may know a way.
    """


FULL = (errno.ENOSPC, errno.EDQUOT)
"""What the kernel says where there is no room left."""


def change(
    argv: Sequence[str],
    failure: str,
    *,
    deadline: float,
    pass_fds: Sequence[int] = (),
    interrupt: Interrupt | None = None,
) -> None:
    """Run a program that changes the container; *failure* is what it means if it fails.

    Raises DriveFull, TooMuch, DriveFailed, and what *interrupt* raises.
    """
    try:
        ended = run(argv, pass_fds=pass_fds, deadline=deadline, ok=None, interrupt=interrupt)
    except ToolFailed as exc:
        raise DriveFailed(f"{failure}: {exc.sentence}") from exc
    if ended.status == 0:
        return
    if complains(ended, *FULL):
        raise no_room()
    sentence = f"{failure}: {argv[0]} failed: {ended.complaint}"
    if complains(ended, errno.ENAMETOOLONG, errno.EMLINK):
        raise TooMuch(sentence)
    raise DriveFailed(sentence)


def complains(ended: Ended, *numbers: int) -> bool:
    """Whether a program has complained of an error with one of these numbers.

    That is what a line ends with, in the locale C (error(3)); a name in it is somebody's choice.
    """
    ends = tuple(f": {os.strerror(number)}".encode() for number in numbers)
    return any(line.endswith(ends) for line in ended.err.splitlines())


def no_room() -> DriveFull:
    """To be raised."""
    return DriveFull("There is no room left in the container.")
