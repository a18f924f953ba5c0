"""Trees that are deeper than Python recurses, and paths that are longer than the kernel takes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryptbackd.worker import readback
from cryptbackd.worker.quick.excluded import included
from cryptbackd.worker.quick.within import within
from cryptbackd.worker.rsync_job import RSYNC
from cryptbackd.worker.versions.tree import remove_tree

DEEP = b"/".join([b"d"] * 1500)
RSYNC_GOES = b"/".join([b"d"] * 1000)
"""rsync 3.5 goes into 1,024 directories; it says so of more, and then a run is a full one."""


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Path]:
    """A directory with a file in 1,500 others."""
    tree = tmp_path / "tree"
    tree.mkdir()
    at = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=at)
        below = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=at)
        os.close(at)
        at = below
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=at))
    os.close(at)
    yield tree
    remove_tree(tree)


def test_what_is_excluded_is_told_of_deep_trees(tmp_path: Path) -> None:
    paths = {RSYNC_GOES + b"/file": False, b"top": False, b"e/f/g": True}
    paths[RSYNC_GOES + b"/cache.tmp"] = False
    where = tmp_path / "skeleton"
    told = included(paths.items(), ("*.tmp",), where, RSYNC)
    assert told == {RSYNC_GOES + b"/file", b"top", b"e/f/g"}
    assert not where.exists()


def test_what_is_excluded_cannot_be_told_of_paths_that_are_too_long(tmp_path: Path) -> None:
    where = tmp_path / "skeleton"
    with pytest.raises(OSError, match="File name too long"):
        included([(b"/".join([b"d" * 100] * 50), True)], ("*.tmp",), where, RSYNC)
    assert not where.exists()


def test_a_deep_tree_is_removed_where_it_stands(deep: Path) -> None:
    never, writes = os.pipe()
    other = deep.parent / "other"
    other.mkdir()
    (other / "file").touch()
    (deep / "link").symlink_to(other)
    with within(deep.parent) as found:
        found.remove(b"tree", (never, lambda: None))
        found.remove(b"tree", (never, lambda: None))
    os.close(never)
    os.close(writes)
    assert not deep.exists()
    assert (other / "file").exists()


def test_a_deep_directory_is_read(deep: Path) -> None:
    root = os.open(deep, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert list(readback.directory(root, b"")) == [b"d"]
        assert list(readback.directory(root, DEEP)) == [b"file"]
        with pytest.raises(FileNotFoundError):
            readback.directory(root, b"e")
    finally:
        os.close(root)
