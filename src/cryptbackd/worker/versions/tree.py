"""Removing a tree of files that came from anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...run import Interrupt
from ..changing import change

RM = "/usr/bin/rm"
_PATIENCE = 6 * 3600.0
"""Seconds; a slow drive takes its time for a million names."""


def remove_tree(
    tree: Path, interrupt: Interrupt | None = None, *, pass_fds: Sequence[int] = ()
) -> None:
    """Remove *tree* with all that is in it, following no link and staying on its filesystem.

    rm(1) does that by descriptors, however deep it is.  *pass_fds* are what *tree* may be named
    by (proc_pid_fd(5)).  Raises DriveFailed and DriveFull, and what *interrupt* raises.
    """
    argv = [RM, "--recursive", "--force", "--one-file-system", "--", str(tree)]
    change(
        argv,
        "Files could not be removed",
        deadline=_PATIENCE,
        pass_fds=pass_fds,
        interrupt=interrupt,
    )
