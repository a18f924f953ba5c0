"""Versions on a filesystem without snapshots: what the ledger says of them, and how they go."""

from __future__ import annotations

import itertools
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from cryptbackd import protocol
from cryptbackd.config import Count, Keep
from cryptbackd.errors import Cancelled, DriveFull, ForgedDrive
from cryptbackd.model import LedgerEntry, StopReason
from cryptbackd.worker.control import Control
from cryptbackd.worker.jobs import backup
from cryptbackd.worker.layers.mounted import Mounted
from cryptbackd.worker.lists import Asked, Group
from cryptbackd.worker.sources import Plan, Source
from cryptbackd.worker.versions import VERSIONS, record, removal, store
from cryptbackd.worker.versions.hardlinks import HardLinkStore

DAY = 86_400


class Daemon:
    """The other end of a worker's conversation."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        sock.setblocking(False)

    def told(self) -> list[str]:
        """What the worker said and warned of since the last call, and its phases."""
        found: list[str] = []
        while True:
            try:
                received = protocol.receive(self._sock)
            except BlockingIOError:
                return found
            assert received is not None
            match received[0]:
                case protocol.Said(text) | protocol.Warned(text):
                    found.append(text)
                case protocol.PhaseChanged(phase):
                    found.append(f"({phase})")

    def stop(self) -> None:
        protocol.send(self._sock, protocol.Stop(StopReason.EJECT))


@attrs.frozen
class Container:
    """A container's tree, with versions of hard links."""

    tree: Mounted
    control: Control
    daemon: Daemon

    @property
    def directory(self) -> Path:
        return self.tree.path / VERSIONS

    @property
    def keeper(self) -> HardLinkStore:
        kept = store(self.tree)
        assert isinstance(kept, HardLinkStore)
        return kept

    def make(self, sequence: int, ledger: LedgerEntry | None = None) -> record.Version:
        """A version with a file that all have, and one of its own."""
        fields = {
            "sequence": sequence,
            "finished": 1_700_000_000 + sequence * DAY,
            "ledger": attrs.asdict(ledger) if ledger else None,
        }
        version = record.write(self.directory, f"v{sequence}", fields)
        version.path.mkdir()
        (version.path / "own").write_text(str(sequence))
        (version.path / "etc").symlink_to("/etc")
        common = self.directory / f"v{sequence - 1}" / "common"
        if common.exists():
            (version.path / "common").hardlink_to(common)
        else:
            (version.path / "common").write_text("of all")
        return version

    def names(self) -> list[str]:
        return sorted(os.listdir(self.directory))

    def by_rules(self, last: int) -> list[str]:
        """Apply the rules, and what was told of it."""
        removal.by_rules(self.keeper, self.tree, Keep(last=Count(last)), self.control)
        return self.daemon.told()


@pytest.fixture
def container(tmp_path: Path) -> Iterator[Container]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    with ours, theirs:
        found = Container(
            Mounted(tmp_path, fd, "ext4", "The filesystem"), Control(ours), Daemon(theirs)
        )
        assert found.keeper.target == tmp_path / "current"
        yield found
    os.close(fd)


def test_what_no_rule_holds_goes_oldest_first_and_is_told(container: Container) -> None:
    for sequence in range(1, 5):
        container.make(sequence)
    assert container.by_rules(2) == [
        "(removing)",
        "version v1 removed: no rule of [keep] holds it.",
        "version v2 removed: no rule of [keep] holds it.",
    ]
    assert container.names() == ["v3", "v3.json", "v4", "v4.json"]
    assert (container.directory / "v3" / "common").read_text() == "of all"
    assert os.stat(container.directory / "v3" / "common").st_nlink == 2
    assert Path("/etc/passwd").exists()
    assert container.by_rules(2) == []


def test_without_rules_nothing_goes(container: Container) -> None:
    container.make(1)
    container.make(2)
    assert container.by_rules(0) == []
    assert container.names() == ["v1", "v1.json", "v2", "v2.json"]


def test_what_has_no_record_or_one_of_another_version_stays(container: Container) -> None:
    for sequence in (1, 2, 3):
        container.make(sequence)
    (container.directory / "v1.json").unlink()
    (container.directory / "copy").mkdir()
    (container.directory / "copy.json").write_bytes((container.directory / "v2.json").read_bytes())
    assert container.by_rules(1)[1:] == ["version v2 removed: no rule of [keep] holds it."]
    assert container.names() == ["copy", "copy.json", "v1", "v3", "v3.json"]


ODD = {
    "..": {"sequence": 9, "nonce": "0"},
    ".": {"sequence": 9, "nonce": "0"},
    "high": {"sequence": 10**60, "nonce": "0"},
    "endless": {"sequence": float("inf"), "nonce": "0"},
    "half": {"sequence": 1.5, "nonce": "0"},
    "true": {"sequence": True, "nonce": "0"},
    "text": {"sequence": "9", "nonce": "0"},
    "unmarked": {"sequence": 9, "nonce": 0},
    "list": [9],
}


def test_a_record_that_none_of_ours_could_be_is_not_counted(container: Container) -> None:
    """Whoever has the key can write them, and "...json" would be that of the directory above."""
    container.make(1)
    for name, text in ODD.items():
        (container.directory / name).mkdir(exist_ok=True)
        (container.directory / f"{name}.json").write_text(json.dumps(text))
    (container.directory / "deep").mkdir()
    (container.directory / "deep.json").write_text("[" * 100_000)
    (container.directory / "folder.json").mkdir()
    (container.directory / ".folder.manifest.new").mkdir()
    assert [version.path.name for version in record.versions(container.directory)] == ["v1"]
    record.tidy(container.directory)
    assert {"v1", "v1.json", "folder.json"} <= set(container.names())


def test_what_only_looks_like_an_interrupted_run_is_left_alone(container: Container) -> None:
    root = container.tree.path
    (root / ".interrupted-evil").mkdir()
    (root / ".interrupted-7").symlink_to("/etc")
    (root / "current").mkdir()
    version = container.make(1)
    container.keeper.begin(version.path)
    (root / "current").rmdir()
    (root / "current").mkdir()
    keeper = container.keeper
    keeper.begin(version.path)
    assert keeper.link_dest == (root / ".interrupted-2", root / ".interrupted-1", version.path)
    keeper.keep(container.directory / "v2")
    left = {path.name for path in root.glob(".interrupted-*")}
    assert left == {".interrupted-evil", ".interrupted-7"}


def test_a_removal_that_was_interrupted_is_finished(container: Container) -> None:
    container.make(1)
    container.make(2)
    (container.directory / "v1").rename(container.directory / ".removed-v1")
    assert [version.sequence for version in record.versions(container.directory)] == [2]
    record.tidy(container.directory)
    removal.finish(container.keeper, container.directory, container.control)
    assert container.names() == ["v2", "v2.json"]
    assert container.daemon.told() == ["(removing)"]
    removal.finish(container.keeper, container.directory, container.control)
    assert container.daemon.told() == []


def test_when_it_is_to_stop_the_rest_is_left_to_the_next_run(container: Container) -> None:
    for sequence in (1, 2, 3):
        container.make(sequence)
    container.daemon.stop()
    assert container.by_rules(1) == ["(removing)"]
    assert len(container.names()) == 6


def test_what_cannot_be_removed_is_a_warning(container: Container) -> None:
    for sequence in (1, 2, 3):
        container.make(sequence)
    in_the_way = container.directory / ".removed-v1" / "something"
    in_the_way.mkdir(parents=True)
    assert container.by_rules(1)[1:] == [
        "version v1 could not be removed; the next run tries again. Directory not empty."
    ]
    assert len(container.names()) == 7
    assert len(container.control.warnings) == 1


def test_for_room_the_oldest_go_that_no_rule_holds_and_never_the_newest(
    container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    for sequence in range(1, 7):
        container.make(sequence)

    def make_room(bytes_each: int, inodes_each: int, last: int = 0) -> list[str]:
        """What goes when each version gives back so much, by what is told."""
        gone = itertools.count()
        room = ((number * bytes_each, number * inodes_each) for number in gone)
        monkeypatch.setattr(removal, "_room", lambda _tree: next(room))
        rules = Keep(last=Count(last))
        went = removal.make_room(container.keeper, container.tree, rules, container.control)
        told = container.daemon.told()
        assert went == bool(told)
        return told

    why = "removed: the container is full, and no rule of [keep] holds it."
    assert make_room(1 << 20, 0, last=6) == []
    assert make_room(1 << 20, 0, last=5) == ["(removing)", f"version v1 {why}"]
    assert make_room(1 << 20, 1) == ["(removing)", f"version v2 {why}"]
    assert make_room(4096, 100) == ["(removing)", f"version v3 {why}"]
    assert make_room(4096, 1) == ["(removing)", f"version v4 {why}", f"version v5 {why}"]
    assert container.names() == ["v6", "v6.json"]
    assert make_room(4096, 1) == []
    container.make(7)
    container.daemon.stop()
    with pytest.raises(Cancelled):
        make_room(4096, 1)
    assert len(container.names()) == 4


def test_the_last_state_of_all_is_kept_as_that_of_any_source(container: Container) -> None:
    """So where the root is on another filesystem than before, and /home is a source, too."""
    last = container.make(1)
    keeper = container.keeper
    keeper.begin(last.path)
    keeper.retain("/")
    keeper.retain("/own")
    assert sorted(os.listdir(keeper.target)) == ["common", "etc", "own"]
    assert (keeper.target / "own").samefile(last.path / "own")


def test_what_is_read_in_a_source_that_is_kept_is_no_file_of_the_last_version(
    container: Container,
) -> None:
    """Where nothing but its mode has changed, rsync would change it in that version, too."""
    last = container.make(1)
    for name in ("read/file", "read/kept/file", "read-not", "link"):
        (last.path / "home" / name).parent.mkdir(parents=True, exist_ok=True)
        (last.path / "home" / name).write_text("as it was")
    keeper = container.keeper
    keeper.begin(last.path)
    named = (Source("/home/read/kept", ""), Source("/home", ""))
    kept = Plan((), named, (), recursive=False)
    read = Plan((Source("/home/read", ""), Source("/home/etc/x", "")), (), (), recursive=False)
    asked = Asked((Group(None, kept), Group(None, read)), {})
    (last.path / "home/etc").symlink_to(container.tree.path / "elsewhere")
    (container.tree.path / "elsewhere/x").mkdir(parents=True)
    backup._retain(keeper, asked, container.control)
    assert sorted(os.listdir(keeper.target / "home")) == ["etc", "link", "read", "read-not"]
    assert os.listdir(keeper.target / "home/read") == ["kept"]
    for name in ("link", "read/kept/file"):
        assert (keeper.target / "home" / name).samefile(last.path / "home" / name)
    assert (last.path / "home/read/file").exists()
    assert (container.tree.path / "elsewhere/x").exists()


def test_versions_that_are_no_directory_are_refused(tmp_path: Path) -> None:
    (tmp_path / VERSIONS).symlink_to("/etc")
    with pytest.raises(ForgedDrive):
        store(Mounted(tmp_path, -1, "ext4", "The filesystem"))


def test_the_ledgers_version_may_have_been_let_go_by_a_run_that_was_not_recorded(
    container: Container,
) -> None:
    first = container.make(1)
    made = container.make(2, first.ledger)
    other = container.make(3, made.ledger)
    everything = record.versions(container.directory)
    assert record.judge(everything, first.ledger) == ""
    assert record.judge([made], first.ledger) == ""
    assert record.judge([made, other], first.ledger) == ""
    assert "is not on it any more" in record.judge([other], first.ledger)
    altered = attrs.evolve(first.ledger, nonce="other")
    assert "is not on it any more" in record.judge([made], altered)
    assert "older than this computer remembers" in record.judge([first], made.ledger)


def test_a_drive_of_which_all_was_forgotten_is_in_doubt(container: Container) -> None:
    assert record.doubt([], None, forgotten=True) == ""
    first = container.make(1)
    assert record.doubt([first], None, forgotten=False) == ""
    assert "is lost: it may be a copy" in record.doubt([first], None, forgotten=True)
    assert record.doubt([first], first.ledger, forgotten=False) == ""
    other = attrs.evolve(first.ledger, sequence=2)
    assert record.doubt([first], other, forgotten=False).startswith("The drive is not as")


def test_no_version_is_given_up_for_what_has_no_room_without_them_either(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    status = os.fstatvfs(fd)
    holds = status.f_blocks * status.f_frsize
    for fstype, denser in (("ext4", 1), ("xfs", 1), ("btrfs", 4)):
        tree = Mounted(tmp_path, fd, fstype, "The filesystem")
        full = DriveFull("There is no room left in the container.")
        for times, hopeless in ((0, False), (denser, False), (2 * denser, True)):
            full.solid = times * holds
            assert removal.is_hopeless(full.solid, tree) is hopeless
            told = backup._too_small(full, tree).sentence
            assert ("No version was given up for it" in told) is hopeless
    os.close(fd)
