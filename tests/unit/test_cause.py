"""What a person is told of an error of the system."""

from __future__ import annotations

import errno
import os

import pytest

from cryptbackd.worker.control import cause

EIO = "Input/output error"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.EIO, EIO), EIO),
        (OSError(errno.EIO, EIO, "/mnt/a"), EIO + ' ("/mnt/a")'),
        (OSError(errno.EIO, EIO, b"/mnt/\x1b[2J"), EIO + ' ("/mnt/\\x1b[2J")'),
        (OSError(errno.EIO, EIO, 7), EIO),
        (OSError("no such thing"), '"no such thing"'),
    ],
    ids=["alone", "file", "escapes", "open", "text"],
)
def test_the_cause_names_what_went_wrong_and_where(error: OSError, said: str) -> None:
    assert os.strerror(errno.EIO) == EIO
    assert cause(error) == said
