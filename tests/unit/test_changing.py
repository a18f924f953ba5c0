"""What a program's complaint means that changes the container."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cryptbackd.errors import DriveFailed
from cryptbackd.run import Ended
from cryptbackd.worker.changing import FULL, TooMuch, change, complains


@pytest.mark.parametrize(
    ("said", "full"),
    [
        ("/usr/bin/cp: cannot create directory '/t/a': No space left on device\n", True),
        ("cp: cannot create '/t/a': Disk quota exceeded\ncp: preserving times for '/t'\n", True),
        ("fallocate: fallocate failed: No space left on device", True),
        ("ERROR: Could not create subvolume: No space left on device\n", True),
        ("cp: cannot stat '/t/a': Input/output error\n", False),
        ("rm: cannot remove 'x: No space left on device': Input/output error\n", False),
        ("", False),
    ],
)
def test_a_full_container_is_told_by_the_end_of_a_line(said: str, full: bool) -> None:
    assert complains(Ended(("cp",), 1, b"", said.encode()), *FULL) is full


def test_any_other_failure_is_the_drives() -> None:
    argv = ["/usr/bin/rm", "--recursive", "--", "/nonexistent/tree"]
    with pytest.raises(DriveFailed) as failed:
        change(argv, "Files could not be removed", deadline=60)
    assert failed.value.sentence == (
        "Files could not be removed: /usr/bin/rm failed: /usr/bin/rm: cannot remove"
        " '/nonexistent/tree': No such file or directory"
    )


def test_a_path_that_is_too_long_is_not_the_drives_failure() -> None:
    argv = ["/usr/bin/cp", "--archive", "--", "/etc/hostname", "/nonexistent/" + "x" * 5000]
    with pytest.raises(TooMuch):
        change(argv, "The last state could not be linked", deadline=60)


def test_nor_are_too_many_names_of_a_file(tmp_path: Path) -> None:
    """A file with a thousand names on ext4 has as many as it can have by its 65th version."""
    said = f"cp: cannot create hard link 'b' to 'a': {os.strerror(errno.EMLINK)}"
    program = tmp_path / "cp"
    program.write_text(f'#!/bin/sh\necho "{said}" >&2\nexit 1\n')
    program.chmod(0o755)
    with pytest.raises(TooMuch):
        change([str(program)], "The last state could not be linked", deadline=60)
