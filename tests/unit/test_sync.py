"""What rsync's complaints are taken for: warnings of files by name, and doubts."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from cryptbackd.errors import DriveFailed
from cryptbackd.worker.control import Control
from cryptbackd.worker.rsync_job import Job, Received
from cryptbackd.worker.sync import _Rsync


@pytest.fixture
def control() -> Iterator[Control]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield Control(ours)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    stage, target = tmp_path / "stage", tmp_path / "target"
    for name in ("file", "é", 'a": b'):
        (stage / "home" / name).parent.mkdir(parents=True, exist_ok=True)
        (stage / "home" / name).touch()
    return Job(stage=stage, target=target, exclude=(), own=("/home",), others=())


UNREADABLE = b'rsync: [sender] send_files failed to open "/source%b": Permission denied (13)'
NOT_MADE = b'rsync: [generator] mknod "%b/home/file" failed: Operation not permitted (1)'
GONE = b'rsync: [sender] link_stat "/source/./home/gone" failed: No such file or directory (2)'


@pytest.mark.parametrize(
    ("line", "failed", "told", "doubts"),
    [
        (UNREADABLE % b"/home/file", b"home/file", '"/home/file" could not be read', 0),
        (UNREADABLE % b"/./home/file", b"home/file", '"/home/file" could not be read', 0),
        (UNREADABLE % rb"/home/\#303\#251", "home/é".encode(), '"/home/é" could not be read', 0),
        (UNREADABLE % b'/home/a": b', b'home/a": b', "could not be read: Permission denied.", 0),
        (UNREADABLE % b"/home/other", b"home/other", "could not be read", 1),
        (GONE, b"home/gone", '"/home/gone" vanished', 0),
        (b'file has vanished: "/source/home/gone"', b"home/gone", '"/home/gone" vanished', 0),
        (
            b"ERROR: home/file failed verification -- update discarded.",
            b"home/file",
            "was left out",
            0,
        ),
        (
            b"IO error encountered -- skipping file deletion",
            None,
            "Nothing was deleted this time",
            1,
        ),
    ],
)
def test_a_complaint_of_a_file_that_is_there_leaves_no_doubt(
    job: Job, control: Control, line: bytes, failed: bytes | None, told: str, doubts: int
) -> None:
    dry = _Rsync(job, control, dry=True)
    dry._err(line)
    assert (control.warnings, job.failed) == ([], set())
    for _try in range(2):
        _Rsync(job, control, dry=False)._err(line)
    assert job.failed == ({failed} if failed else set())
    assert told in control.warnings[0]
    assert len(set(control.doubts)) == doubts
    assert len(set(control.warnings)) == 1


ATTRIBUTE = 'rsync: [receiver] rsync_xal_set: lsetxattr("{}","user.a: \\"b") failed: {} ({})'
LIST = "rsync: [generator] set_acl: sys_acl_set_file({}, ACL_TYPE_ACCESS): {} ({})"
LARGE = ("No space left on device", 28)
UNKNOWN = ("Operation not supported", 95)


@pytest.mark.parametrize("why", [LARGE, UNKNOWN])
@pytest.mark.parametrize(
    ("line", "path", "told"),
    [
        (ATTRIBUTE, "{target}/home/file", '"/home/file" was copied without user.a: \\"b: '),
        (ATTRIBUTE, "{target}/home/é", '"/home/é" was copied without user.a: \\"b: '),
        (LIST, "home/file", '"/home/file" was copied without ACL_TYPE_ACCESS: '),
        (
            ATTRIBUTE,
            "{target}/.cryptback-tmp/a.b.xYz012",
            'A file that is called "a.b" was copied ',
        ),
    ],
)
def test_an_attribute_that_the_filesystem_does_not_take_is_a_warning(
    job: Job, control: Control, line: str, path: str, told: str, why: tuple[str, int]
) -> None:
    """Of a full container the same is told, for which versions are given up."""
    job.target.mkdir()
    rsync = _Rsync(job, control, dry=False)
    rsync._err(line.format(path.format(target=job.target), *why).encode())
    assert rsync._fatal is None
    (warning,) = control.warnings
    assert warning.startswith(told)
    assert warning.endswith(f": {why[0]}.")


@pytest.mark.parametrize("line", [ATTRIBUTE, LIST])
def test_an_attribute_that_the_drive_does_not_take_is_no_warning(
    job: Job, control: Control, line: str
) -> None:
    job.target.mkdir()
    rsync = _Rsync(job, control, dry=False)
    rsync._err(line.format("/home/file", "Input/output error", 5).encode())
    assert isinstance(rsync._fatal, DriveFailed)
    assert not control.warnings


@pytest.mark.parametrize(
    ("contents", "changed", "known"),
    [(False, False, True), (False, True, True), (True, False, True), (True, True, False)],
)
def test_a_checksum_from_before_the_copy_is_not_taken_for_that_of_a_changed_file(
    job: Job, control: Control, contents: bool, changed: bool, known: bool
) -> None:
    copy = job.target / "home/file"
    copy.parent.mkdir(parents=True)
    copy.touch()
    os.utime(copy, (1, 1))
    os.utime(job.stage / "home/file", (2, 2) if changed else (1, 1))
    received: list[Received] = []
    rsync = _Rsync(
        attrs.evolve(job, contents=contents, received=received.append), control, dry=False
    )
    rsync._item(b">f+++++++++ " + b"1" * 32 + b" home/file")
    rsync._check_unchanged()
    assert [file.path for file in received] == [b"home/file"] * known
    assert len(control.warnings) == changed


@pytest.mark.parametrize("tell", [True, False])
def test_a_file_whose_content_is_the_same_is_told_of_if_that_was_asked_for(
    job: Job, control: Control, tell: bool
) -> None:
    copy = job.target / "home/file"
    copy.parent.mkdir(parents=True)
    for path in (copy, job.stage / "home/file"):
        path.touch()
        os.utime(path, (1, 1))
    received: list[Received] = []
    job = attrs.evolve(job, contents=True, tell_same=tell, received=received.append)
    rsync = _Rsync(job, control, dry=False)
    rsync._item(b".f          " + b"1" * 32 + b" home/file")
    rsync._item(b".f          " + b"2" * 32 + b" home/\xc3\xa9")  # which is not in the copy
    rsync._item(b".d          " + b" " * 32 + b" home/")
    assert [(file.path, file.xxh128) for file in received] == [(b"home/file", b"1" * 32)] * tell
    assert rsync.synced.changed_files == 0


def test_what_can_not_be_made_on_the_drive_is_named_as_at_home(job: Job, control: Control) -> None:
    rsync = _Rsync(job, control, dry=False)
    rsync._err(NOT_MADE % str(job.target).encode())
    assert control.warnings == [
        '"/home/file" could not be copied in full: Operation not permitted.'
    ]
    assert (control.doubts, job.failed) == ([], {b"home/file"})


def test_what_is_to_be_copied_is_counted_without_holes(job: Job, control: Control) -> None:
    holes = job.stage / "home/é"
    with holes.open("wb") as file:
        file.write(b"x" * 100_000)
        file.truncate(1 << 40)
    (job.stage / "home/file").write_bytes(b"y" * 10)
    dry = _Rsync(job, control, dry=True)
    for line in (
        rb"=>f+++++++++ 1099511627776 home/\#303\#251",
        b"=>f+++++++++ 10 home/file",
        b"=>f+++++++++ 7 home/gone",
        b"=.f..t...... 10 home/file",
    ):
        dry._out(line)
    assert dry._total == (1 << 40) + 17
    assert 10 <= dry._solid <= 200_010
