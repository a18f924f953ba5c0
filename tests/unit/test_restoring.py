"""A restore's two sides, with the real rsync between them."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptbackd import protocol, restoring
from cryptbackd.cli import passes, target, writing
from cryptbackd.cli.passes import Told
from cryptbackd.cli.target import groups
from cryptbackd.cli.writing import Wish, Writer
from cryptbackd.errors import Cancelled, CryptbackError, Refused
from cryptbackd.model import StopReason
from cryptbackd.restoring import NotUnderstood, Over, reader_options
from cryptbackd.worker.control import Control
from cryptbackd.worker.jobs import restore
from cryptbackd.worker.reading import Identity, Wanted
from cryptbackd.worker.said import Said
from cryptbackd.worker.versions import record
from cryptbackd.worker.versions.tree import remove_tree

OLD = 1_000_000_000
NEW = 2_000_000_000


class Version:
    """A tree as a worker would have it read, by an rsync without its sandbox."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.over: Over | None = None
        self.passes: list[bool] = []
        self.more = 0

    def serve(self, peer: socket.socket) -> None:
        restoring.send(peer, {"version": "v"})
        while (received := restoring.receive(peer)) is not None:
            values, _fd = received
            if "over" in values:
                self.over = Over.from_packet(values)
                return
            if "read" in values:
                self._read(peer, Wanted.from_packet(values))

    def _read(self, peer: socket.socket, wanted: Wanted) -> None:
        self.passes.append(wanted.dry)
        ours, theirs = socket.socketpair()
        options = reader_options(
            dry=wanted.dry, contents=wanted.contents, devices=wanted.devices and os.geteuid() == 0
        )
        argv = ["/usr/bin/rsync", *options, *(f"{self.root}{path}" for path in wanted.paths)]
        end = theirs.fileno()
        with (
            ours,
            subprocess.Popen(argv, stdin=end, stdout=end, stderr=subprocess.PIPE) as rsync,
        ):
            theirs.close()
            restoring.send(peer, {"reading": True}, ours.fileno())
            ours.close()
            assert rsync.stderr is not None
            said = rsync.stderr.read().replace(os.fsencode(self.root), b"/source")
        while select_readable(peer):
            received = restoring.receive(peer)
            assert received is not None
            assert "done" in received[0]
        ended = {"ended": rsync.returncode, "said": said.decode("utf-8", "surrogateescape")}
        restoring.send(peer, {**ended, "more": self.more})


def select_readable(peer: socket.socket) -> bool:
    try:
        peer.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    return True


@pytest.fixture
def version(tmp_path: Path) -> Version:
    root = tmp_path / "version"
    root.mkdir()
    return Version(root)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    where = tmp_path / "here"
    where.mkdir()
    return where


def put(path: Path, text: str, when: int = OLD, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    os.utime(path, (when, when))


def write(version: Version, paths: list[str], to: Path | None, **wish: Any) -> Told:
    """Restore, as `cryptback restore` does."""
    wakes, wake = os.pipe()
    asked = Wish(
        groups(paths, None if to is None else str(to)),
        **{"overwrite": False, "dry": False, "privileges": False, **wish},
    )
    with ExitStack() as stack:
        for fd in (wakes, wake):
            stack.callback(os.close, fd)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        writer = Writer(ours, asked, wakes)
        writing = threading.Thread(target=_run, args=(writer, ours))
        writing.start()
        with theirs:
            version.serve(theirs)
        writing.join()
        return writer.told


def _run(writer: Writer, peer: socket.socket) -> None:
    with peer:
        writer.run()


def faults(version: Version, paths: list[str], to: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The words in which a restore ends that is broken off."""
    told: list[CryptbackError] = []

    def run(writer: Writer, peer: socket.socket) -> None:
        with peer, pytest.raises(CryptbackError) as caught:
            writer.run()
        told.append(caught.value)

    monkeypatch.setattr(sys.modules[__name__], "_run", run)
    assert write(version, paths, to).over.broken
    return told[0].sentence


def test_files_go_below_the_directory(version: Version, here: Path) -> None:
    put(version.root / "home/me/docs/a", "a")
    put(version.root / "home/me/docs/sub/*", "star")
    put(version.root / "home/me/docs/sub/x", "x")
    put(version.root / "home/me/other", "other")
    put(version.root / "home/me/docs/sub/large", "x" * 20_000_000)
    told = write(version, ["/home/me/docs", "/home/me/docs/sub/*"], here / "to")
    found = sorted(str(path.relative_to(here)) for path in here.rglob("*"))
    assert found == ["to", "to/*", "to/docs", "to/docs/a", "to/docs/sub", "to/docs/sub/*",
                     "to/docs/sub/large", "to/docs/sub/x"]  # fmt: skip
    assert (here / "to/docs/a").stat().st_mtime == OLD
    assert told.over == Over(files=5, size=1 + 4 + 1 + 4 + 20_000_000)
    assert version.over == told.over
    assert not told.failed


def test_files_go_back_to_where_they_were(version: Version, here: Path) -> None:
    """With what is missing on the way, as it was."""
    root = Path(f"{version.root}{here}")
    put(root / "gone/deep/a", "a")
    put(root / "gone/deep/b", "b")
    (root / "gone/deep").chmod(0o710)
    put(root / "stays/c", "c")
    put(here / "stays/d", "d")
    (here / "stays").chmod(0o700)
    write(version, [f"{here}/gone/deep/a", f"{here}/stays/c"], None)
    assert (here / "gone/deep/a").read_text() == "a"
    assert not (here / "gone/deep/b").exists()
    assert stat.S_IMODE((here / "gone/deep").stat().st_mode) == 0o710
    assert stat.S_IMODE((here / "stays").stat().st_mode) == 0o700
    assert (here / "stays/c").read_text() == "c"
    assert (here / "stays/d").read_text() == "d"


def test_what_is_newer_stays(version: Version, here: Path) -> None:
    """Files, links, and what is of another kind; also where names are linked to each other."""
    docs = version.root / "docs"
    for name in ("older", "newer", "one", "missing"):
        put(docs / name, "then")
    for name in ("linked", "linked too"):
        os.link(docs / "one", docs / name)
    for name in ("link", "old link"):
        (docs / name).symlink_to("then")
        os.utime(docs / name, (OLD, OLD), follow_symlinks=False)
    put(docs / "[dir]/inside", "then")
    put(docs / "now a directory", "then")
    there = here / "docs"
    put(there / "older", "now", OLD - 1)
    put(there / "newer", "now", NEW)
    put(there / "linked too", "now", NEW)
    (there / "link").symlink_to("now")
    (there / "old link").symlink_to("now")
    os.utime(there / "old link", (OLD - 1, OLD - 1), follow_symlinks=False)
    put(there / "[dir]", "now a file", NEW)
    put(there / "now a directory/inside", "now")

    plan = write(version, ["/docs"], here, dry=True)
    assert not (there / "missing").exists()
    told = write(version, ["/docs"], here)
    left = {b"newer", b"linked too", b"link", b"[dir]"}
    assert set(told.left) == {os.fsencode(there / os.fsdecode(name)) for name in left}
    assert set(plan.left) == set(told.left)
    # A directory with something in it is never replaced by a file.
    in_the_way = {os.fsencode(there / "now a directory")}
    assert set(told.failed) == in_the_way
    assert {os.path.basename(item.path) for item in plan.items if item.what == "new"} == {
        b"missing", b"one", b"linked"
    }  # fmt: skip
    shown = {path.name: path.read_text() for path in there.iterdir() if path.is_file()}
    assert shown == {
        "older": "then", "newer": "now", "one": "then", "linked": "then", "linked too": "now",
        "missing": "then", "[dir]": "now a file",
    }  # fmt: skip
    assert (there / "link").readlink() == Path("now")
    assert (there / "old link").readlink() == Path("then")
    assert (there / "one").stat().st_ino == (there / "linked").stat().st_ino

    told = write(version, ["/docs"], here, overwrite=True)
    assert not told.left
    assert (there / "newer").read_text() == "then"
    assert (there / "link").readlink() == Path("then")
    assert (there / "[dir]/inside").read_text() == "then"
    assert (there / "linked too").stat().st_ino == (there / "one").stat().st_ino
    assert (there / "now a directory/inside").read_text() == "now"
    assert set(told.failed) == in_the_way


def test_content_with_the_same_size_and_time_is_overwritten(version: Version, here: Path) -> None:
    put(version.root / "a", "then")
    put(here / "a", "rott")
    write(version, ["/a"], here)
    assert (here / "a").read_text() == "rott"
    write(version, ["/a"], here, overwrite=True)
    assert (here / "a").read_text() == "then"


def test_setuid_bits_are_restored_on_demand_alone(version: Version, here: Path) -> None:
    put(version.root / "program", "p", mode=0o6755)
    (version.root / "shared").mkdir()
    (version.root / "shared").chmod(0o2770)
    write(version, ["/program", "/shared"], here)
    assert stat.S_IMODE((here / "program").stat().st_mode) == 0o755
    assert stat.S_IMODE((here / "shared").stat().st_mode) == 0o2770
    write(version, ["/program"], here, privileges=True)
    assert stat.S_IMODE((here / "program").stat().st_mode) == 0o6755


def test_devices_are_restored_on_demand_alone_and_named(version: Version, here: Path) -> None:
    version.root.joinpath("dev").mkdir()
    os.mknod(version.root / "dev/disk", 0o666 | stat.S_IFBLK, os.makedev(254, 0))
    put(version.root / "dev/file", "f")
    told = write(version, ["/dev"], here)
    assert os.listdir(here / "dev") == ["file"]
    assert told.failed == {
        os.fsencode(here / "dev/disk"): "a device comes back with --setuid alone"
    }
    told = write(version, ["/dev"], here, privileges=True)
    assert stat.S_ISBLK((here / "dev/disk").stat().st_mode)
    assert not told.failed


def test_odd_names(version: Version, here: Path) -> None:
    names = [b"new\nline", b"\xff\xfe", b"\\#012", b"-leading", b" ", b"*", b"a" * 255, b"\x1b[1m"]
    root = os.fsencode(version.root)
    for name in names:
        with open(os.path.join(root, name), "wb") as file:
            file.write(name)
    paths = [os.fsdecode(b"/" + name) for name in names]
    plan = write(version, paths, here, dry=True)
    assert {os.path.basename(item.path) for item in plan.items} == set(names)
    told = write(version, paths, here)
    assert not told.failed
    assert set(os.listdir(os.fsencode(here))) == set(names)
    for name in names:
        put(Path(os.fsdecode(os.path.join(os.fsencode(here), name))), "newer", NEW)
    told = write(version, paths, here)
    assert {os.path.basename(path) for path in told.left} == set(names)


def test_a_time_beyond_all_calendars_ends_no_restore(here: Path) -> None:
    """Some filesystems keep one, and whoever has a file can give it one."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as root:
        version = Version(Path(root))
        for name, when in (("ahead", 1 << 38), ("beyond", 1 << 60), ("before", -(1 << 60))):
            put(version.root / name, "from the version", when)
            put(here / name, "here", OLD)
        put(version.root / "other", "other")
        told = write(version, ["/ahead", "/beyond", "/before", "/other"], here)
    assert not told.over.broken
    assert {os.path.basename(path) for path in told.left} == {b"beyond", b"before"}
    assert (here / "ahead").read_text() == "from the version"
    assert (here / "before").read_text() == "here"
    assert (here / "other").read_text() == "other"


def test_what_is_not_in_the_version_is_named(version: Version, here: Path) -> None:
    put(version.root / "home/a", "a")
    told = write(version, ["/home/nope", "/home/a", "/home/me/nope too"], here / "x")
    assert told.failed == {
        b"/home/nope": "it is not in that version",
        b"/home/me": "it is not in that version",
    }
    assert (told.over.files, told.over.failed) == (1, 2)
    assert version.passes == [True, False]


def test_what_has_too_long_a_path_is_no_success(version: Version, here: Path) -> None:
    """It is left out by rsync, in words that tell of no error of the system."""
    put(version.root / "home/a", "a")
    at = os.open(version.root / "home", os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(21):
        os.mkdir("d" * 200, dir_fd=at)
        below = os.open("d" * 200, os.O_RDONLY | os.O_DIRECTORY, dir_fd=at)
        os.close(at)
        at = below
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=at))
    os.close(at)
    for dry in (True, False):
        told = write(version, ["/home"], here, dry=dry)
        assert (told.over.files, told.over.failed) == (1, 1)
        (why,) = told.failed.values()
        assert list(told.failed) == [os.fsencode(here)]
        assert why.startswith("not all that it is to hold could be: ")
        assert "home/ddd" in why
    for tree in (version.root, here):
        remove_tree(tree)


def test_a_directory_that_is_not_there_is_made_but_not_by_looking(
    version: Version, here: Path
) -> None:
    put(version.root / "a", "a")
    told = write(version, ["/a"], here / "to", dry=True)
    assert [item.what for item in told.items] == ["new"]
    assert told.over == Over(files=1, size=1, dry=True)
    assert version.passes == [True]
    assert list(here.iterdir()) == []
    write(version, ["/a"], here / "to")
    assert (here / "to/a").read_text() == "a"


def test_two_that_would_go_to_the_same_place() -> None:
    with pytest.raises(Refused, match="/etc/docs and /home/docs would go to the same place"):
        groups(["/etc/docs", "/home/docs"], "/tmp")
    assert len(groups(["/etc/docs", "/etc/docs"], "/tmp")) == 1


def test_a_target_that_is_no_directory(here: Path) -> None:
    put(here / "file", "x")
    with pytest.raises(Refused, match="can't be restored to: Not a directory"):
        groups(["/etc/docs"], str(here / "file"))


def test_many_paths_come_in_parts() -> None:
    paths = [f"/home/{'x' * 200}{number}" for number in range(1000)]
    parts = groups(paths, "/tmp")
    assert len(parts) > 10
    assert [path for part in parts for path in part.paths] == [
        path.replace("/home/", "/home/./") for path in paths
    ]


@given(st.dictionaries(st.sampled_from(["files", "size", "errno", "dry", "stopped"]), st.one_of(
    st.integers(), st.booleans(), st.text(), st.none(), st.floats(), st.lists(st.integers())
)))  # fmt: skip
def test_what_a_stranger_says_of_the_end(raw: dict[str, Any]) -> None:
    try:
        over = Over.from_packet(raw)
    except NotUnderstood:
        return
    for key, value in raw.items():
        assert getattr(over, key) == value
        assert type(value) in (int, bool)
        assert value >= 0


@pytest.mark.parametrize(
    "paths", [None, [], "x", [1], ["relative"], ["/a/../../etc"], ["/.."], ["/a\0b"], [["/"]]]
)
def test_what_is_no_path_is_refused(paths: object) -> None:
    with pytest.raises(Refused):
        Wanted.from_packet({"read": paths})


def test_what_no_fat_takes_is_named_and_the_rest_comes_back(
    version: Version, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "large", "x"):
        put(version.root / "docs" / name, name)
    (version.root / "docs/again").hardlink_to(version.root / "docs/large")
    monkeypatch.setattr(passes, "FAT_LIMIT", 5)
    monkeypatch.setattr(passes, "is_on_fat", lambda path: b"/docs/" in path)
    for dry in (True, False):
        told = write(version, ["/docs"], here, dry=dry)
        large = [os.fsencode(here / "docs" / name) for name in ("again", "large")]
        assert told.failed == dict.fromkeys(large, "on FAT32 no file has 4 GiB")
        assert (told.over.files, told.over.failed) == (2, 2)
    assert sorted(os.listdir(here / "docs")) == ["a", "x"]


def test_a_fat_is_known_by_where_it_is_mounted(here: Path) -> None:
    device = os.stat(here).st_dev
    mounted = f"7 1 {os.major(device)}:{os.minor(device)} / / rw shared:1 - {{}} /dev/x rw\n"
    table = here / "mountinfo"
    for kind, is_fat in (("vfat", True), ("msdos", True), ("ext4", False)):
        table.write_text("8 1 0:0 / /proc rw - proc proc rw\n" + mounted.format(kind))
        for path in (here, here / "not/there/yet", table / "no directory"):
            assert target.is_on_fat(os.fsencode(path), str(table)) is is_fat
    assert not target.is_on_fat(os.fsencode(here))


def test_what_ends_a_restore_is_told_with_the_file(
    version: Version, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(version.root / "docs/large", "x" * 20_000)
    program = here / "rsync"
    program.write_text("#!/bin/sh\ntrap '' XFSZ\nulimit -f 8\nexec /usr/bin/rsync \"$@\"\n")
    program.chmod(0o755)
    monkeypatch.setattr(writing, "RSYNC", str(program))
    said = faults(version, ["/docs"], here / "to", monkeypatch)
    assert said == f"The restore by rsync failed: {here}/to/docs/large: File too large."


def test_a_reader_says_the_first_of_much_and_how_much_it_was() -> None:
    line = b'rsync: [sender] send_files failed to open "/source/%d": Permission denied (13)\n'
    words = Said()
    whole = b"".join(line % number for number in range(1000)) + b"rsync error: code 23\n"
    for begin in range(0, len(whole), 777):
        words.hear(whole[begin : begin + 777])
    words.hear(b"")
    *named, last = words.text.split("\n")
    assert last == "rsync error: code 23"
    assert [each + "\n" for each in named] == [
        (line % number).decode() for number in range(len(named))
    ]
    assert 100 < len(named) < 1000
    assert words.more == 1000 - len(named)
    few = Said()
    few.hear(b"a word\nand ano")
    few.hear(b"ther")
    few.hear(b"")
    assert (few.text, few.more) == ("a word\nand another", 0)


def test_failures_that_are_not_named_are_counted_once(version: Version, here: Path) -> None:
    put(version.root / "docs/a", "a")
    version.more = 70
    for dry in (True, False):
        told = write(version, ["/docs", "/nope"], here, dry=dry)
        assert told.failed == {b"/nope": "it is not in that version"}
        assert (told.unnamed, told.over.failed) == (70, 71)


def test_only_files_are_said_not_to_be_restored() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(Refused) as caught:
        restore._result(Over(failed=3), "v", Control(ours))
    assert caught.value.sentence == "No file of the version v was restored: 3 files could not be."


def say_without_end(reading: restore._Reading) -> None:
    while True:
        reading._send({"said": "x" * 16_000})


def test_a_stop_is_heeded_while_whoever_asked_reads_nothing() -> None:
    """They may fill the socket, and then leave it so."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    worker, daemon = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    version = record.Version(Path("/v"), {"sequence": 1}, "")
    with ours, theirs, worker, daemon:
        control = Control(worker)
        reading = restore._Reading(ours, version, Identity(0, (0,)), control)
        stop = threading.Timer(0.5, protocol.send, (daemon, protocol.Stop(StopReason.EJECT)))
        stop.start()
        with pytest.raises(Cancelled, match="ejected"):
            say_without_end(reading)
        stop.join()
        theirs.close()
        with pytest.raises(restore._Left):
            restore._Reading(ours, version, Identity(0, (0,)), Control(worker))._send({})
