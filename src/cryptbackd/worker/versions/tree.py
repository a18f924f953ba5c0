"""Removing a tree of files that came from anywhere."""

from __future__ import annotations

from pathlib import Path

from ...run import Interrupt
from ..changing import change

RM = "/usr/bin/rm"
_PATIENCE = 6 * 3600.0
"""Seconds; a slow drive takes its time for a million names."""


def remove_tree(tree: Path, interrupt: Interrupt | None = None) -> None:
    """Remove *tree* with all that is in it, following no link and staying on its filesystem.

    rm(1) does that by descriptors, however deep it is.  Raises DriveFailed and DriveFull, and
    what *interrupt* raises.
    """
    argv = [RM, "--recursive", "--force", "--one-file-system", "--", str(tree)]
    change(argv, "Files could not be removed", deadline=_PATIENCE, interrupt=interrupt)
