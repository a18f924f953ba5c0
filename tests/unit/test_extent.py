"""A container's files made longer and cut off again, on real files, cut off at every call."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cryptbackd import kernel
from cryptbackd.errors import Refused
from cryptbackd.worker import extent
from cryptbackd.worker.control import Control
from cryptbackd.worker.layers import files
from cryptbackd.worker.layers.files import BLOCK, PART, container
from cryptbackd.worker.layers.mounted import Mounted
from cryptbackd.worker.layers.outer import Outer

EACH = 8 * BLOCK


class KilledError(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


@pytest.fixture
def control() -> Iterator[Control]:
    """One whose daemon only listens."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.setblocking(False)
    with ours, theirs:
        yield Control(ours)


def drive(path: Path, fstype: str) -> Iterator[Outer]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield Outer(Mounted(path, fd, fstype, "The filesystem"))
    finally:
        os.close(fd)


@pytest.fixture(params=["ext4", "vfat"])
def outer(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Outer]:
    """A drive: space on the one is allocated, on the other written."""
    yield from drive(tmp_path, request.param)


def make(path: Path, *lengths: int) -> bytes:
    """Files of these lengths; what is in them."""
    raw = os.urandom(sum(lengths))
    at = 0
    for number, length in enumerate(lengths):
        Path(files.part(str(path / "dir/backup.luks"), number)).write_bytes(raw[at : at + length])
        at += length
    return raw


def content(path: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted((path / "dir").iterdir()))


CALLS = ("pwrite", "posix_fallocate", "ftruncate", "fsync", "fdatasync", "unlink")


def killed(monkeypatch: pytest.MonkeyPatch, after: int, what: Callable[[], None]) -> bool:
    """Whether *what* had more calls to the kernel than these before it was killed."""
    left = after

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*words: Any, **more: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise KilledError
            return call(*words, **more)

        return called

    with monkeypatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, counted(getattr(os, name)))
        patch.setattr(kernel, "openat2", counted(kernel.openat2))
        try:
            what()
        except KilledError:
            return True
    return False


@pytest.mark.parametrize("last", [EACH, EACH // 2])
def test_killed_anywhere_it_is_a_container_and_undone(
    outer: Outer,
    control: Control,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    last: int,
) -> None:
    (tmp_path / "dir").mkdir()
    raw = make(tmp_path, EACH, last)
    target = 3 * EACH + BLOCK
    steps = 0
    while True:
        with container(outer, "dir/backup.luks") as found:
            wanted = extent.plan(found, target)
            assert wanted == [EACH, EACH, EACH, BLOCK]

            def grow(found: files.Files = found, wanted: list[int] = wanted) -> None:
                extent.lengthen(found, wanted, control, random=False)

            through = not killed(monkeypatch, steps, grow)
        assert content(tmp_path).startswith(raw)
        assert set(content(tmp_path)[len(raw) :]) <= {0}
        with container(outer, "dir/backup.luks", os.O_RDONLY) as found:
            assert len(raw) <= found.length <= target
            assert through <= (found.length == target)
        undo = 0
        while True:
            with container(outer, "dir/backup.luks") as found:

                def cut(found: files.Files = found) -> None:
                    found.cut(len(raw))

                if not killed(monkeypatch, undo, cut):
                    break
            undo += 1
        assert content(tmp_path) == raw
        assert len(list((tmp_path / "dir").iterdir())) == 2
        if through:
            break
        steps += 1
    assert steps > 6
    assert undo > 1


def test_what_has_holes_is_allocated_and_nothing_written_over(
    outer: Outer, control: Control, tmp_path: Path
) -> None:
    (tmp_path / "dir").mkdir()
    raw = make(tmp_path, 64 * BLOCK)
    with open(tmp_path / "dir/backup.luks.000", "r+b") as file:
        file.truncate(BLOCK)
        file.truncate(64 * BLOCK)
    with container(outer, "dir/backup.luks") as found:
        assert extent.taken(found) < found.length
        extent.lengthen(found, [96 * BLOCK], control, random=False)
        if outer.filesystem.fstype == "ext4":
            assert extent.taken(found) == found.length
        assert found.length == 96 * BLOCK
    assert content(tmp_path) == raw[:BLOCK] + bytes(95 * BLOCK)


def sparse(path: Path, length: int) -> None:
    with path.open("wb") as file:
        file.truncate(length)


def test_one_file_goes_on_in_another_where_it_must(outer: Outer, tmp_path: Path) -> None:
    sparse(tmp_path / "backup.luks", 80 << 20)
    with container(outer, "backup.luks") as found:
        if outer.filesystem.fstype == "ext4":
            assert extent.most(found) is None
            assert extent.plan(found, 5 << 30) == [5 << 30]
        else:
            assert extent.most(found) == 1000 * PART
            assert extent.plan(found, PART) == [PART]
            assert extent.plan(found, 5 << 30) == [PART, (5 << 30) - PART]


def test_what_follows_on_one_file_belongs_to_it_from_a_length_on(
    outer: Outer, tmp_path: Path
) -> None:
    sparse(tmp_path / "backup.luks.001", BLOCK)
    for length, together in ((80 << 20, False), (PART, True), (5 << 30, False)):
        sparse(tmp_path / "backup.luks", length)
        with container(outer, "backup.luks", os.O_RDONLY) as found:
            assert found.names == ["backup.luks", "backup.luks.001"][: 1 + together]
            assert found.length == length + BLOCK * together


def test_a_file_of_an_odd_length_does_not_go_on(tmp_path: Path) -> None:
    sparse(tmp_path / "backup.luks", PART + 1)
    for outer in drive(tmp_path, "vfat"):
        with container(outer, "backup.luks") as found, pytest.raises(Refused, match="no multiple"):
            extent.plan(found, 5 << 30)
