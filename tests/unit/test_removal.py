"""Removing versions: which, in what order, and what an interruption leaves."""

from __future__ import annotations

import json
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cryptbackd import protocol
from cryptbackd.config import Count, Keep
from cryptbackd.errors import ToolFailed
from cryptbackd.model import StopReason
from cryptbackd.worker.control import Control
from cryptbackd.worker.versions import record, removal
from cryptbackd.worker.versions.hardlinks import HardLinkStore

DAY = 86_400


class Fails(HardLinkStore):
    """Its first removal fails."""

    fails = True

    def remove(self, tree: Path, interrupt: tuple[int, Callable[[], None]]) -> None:
        if self.fails:
            self.fails = False
            raise ToolFailed("It is stuck.")
        super().remove(tree, interrupt)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def control(ends: tuple[socket.socket, socket.socket]) -> Control:
    return Control(ends[1])


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Four versions, of today and the three days before."""
    for number in range(1, 5):
        tree = tmp_path / f"2026-11-2{number}T00:00:00Z"
        (tree / "home").mkdir(parents=True)
        (tree / "home" / "file").write_text(str(number))
        finished = time.time() - (4 - number) * DAY
        told = {"sequence": number, "nonce": "n", "finished": finished}
        tree.with_name(f"{tree.name}.json").write_text(json.dumps(told))
    return tmp_path


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def both(*days: int) -> list[str]:
    return [f"2026-11-2{day}T00:00:00Z{end}" for day in days for end in ("", ".json")]


def test_what_no_rule_holds_goes_with_its_record(directory: Path, control: Control) -> None:
    store = HardLinkStore(directory / "current")
    removal.thin(record.versions(directory), Keep(daily=Count(2)), store, control)
    assert names(directory) == both(3, 4)


def test_without_rules_nothing_goes(directory: Path, control: Control) -> None:
    store = HardLinkStore(directory / "current")
    removal.thin(record.versions(directory), Keep(), store, control)
    assert names(directory) == both(1, 2, 3, 4)


def test_what_could_not_be_deleted_goes_in_the_next_run(directory: Path, control: Control) -> None:
    store = Fails(directory / "current")
    removal.thin(record.versions(directory), Keep(last=Count(2)), store, control)
    assert names(directory) == [".2026-11-21T00:00:00Z.gone", *both(3, 4)]
    assert len(control.warnings) == 1
    assert len(record.versions(directory)) == 2
    record.tidy(directory)
    removal.finish(directory, store, control)
    assert names(directory) == both(3, 4)


def test_who_stops_the_run_only_puts_the_removal_off(
    directory: Path, control: Control, ends: tuple[socket.socket, socket.socket]
) -> None:
    protocol.send(ends[0], protocol.Stop(StopReason.EJECT))
    store = HardLinkStore(directory / "current")
    removal.thin(record.versions(directory), Keep(last=Count(1)), store, control)
    assert names(directory) == both(1, 2, 3, 4)


def test_one_that_does_not_say_when_it_was_made_stays(directory: Path, control: Control) -> None:
    place = directory / "2026-11-21T00:00:00Z.json"
    place.write_text(json.dumps({"sequence": 1, "nonce": "n", "finished": "yesterday"}))
    store = HardLinkStore(directory / "current")
    removal.thin(record.versions(directory), Keep(last=Count(1)), store, control)
    assert "2026-11-21T00:00:00Z" in names(directory)


def test_a_link_in_the_place_of_a_leftover_is_not_followed(
    directory: Path, control: Control, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "precious").touch()
    (directory / ".x.gone").symlink_to(other)
    removal.finish(directory, HardLinkStore(directory / "current"), control)
    assert (other / "precious").exists()
    shutil.rmtree(other)
