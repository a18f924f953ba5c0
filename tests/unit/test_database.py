"""What is known stays known while the history's file can't be used, and gets back into it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cryptbackd.daemon.history import History, Insertion, Run
from cryptbackd.daemon.policy import Past
from cryptbackd.daemon.schedule import Moment
from cryptbackd.model import JobKind, LedgerEntry, Outcome, RunResult

HERE = Insertion("boot-1", 7)
LEDGER = LedgerEntry(3, "2026-11-24T10:15:30Z", "nonce", "ab" * 32)
NEWER = LedgerEntry(4, "2026-11-25T10:15:30Z", "other", "cd" * 32)
DONE = RunResult(Outcome.DONE, "All went well.", version="v1")


def run(name: str) -> Run:
    return Run(name, "home", JobKind.BACKUP, 100.0)


class Place:
    """A history in which something is known, and its file."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "history.db"
        self.trouble: list[str] = []
        self.history = self.again()
        self.history.begin(run("r1"), HERE)
        self.history.finish("r1", DONE, False, 110.0)
        self.history.set_ledger("home", LEDGER)
        self.history.eject(HERE)
        self.history.keep_moment("home", "reminded", Moment(1.0, 2.0))

    def again(self) -> History:
        return History(self.file, self.trouble.append)

    def fill(self) -> None:
        """Have no more room in the file (SQLITE_FULL)."""
        db = self.history._db._db
        pages = db.execute("PRAGMA page_count").fetchone()[0]
        db.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(sqlite3.OperationalError, match="full"):
            db.execute("INSERT INTO ejected (boot_id, diskseq) VALUES (?, 1)", ("x" * 100_000,))

    def knows(self, history: History, runs: int, ledger: LedgerEntry) -> None:
        """All is known that there was, and what came after."""
        assert [each.id for each in history.runs()] == [f"r{n}" for n in range(runs, 0, -1)]
        assert history.last_success("home") == 110.0
        assert history.ledger("home") == ledger
        assert history.ejected(HERE)
        assert history.moment("home", "reminded") == Moment(1.0, 2.0)
        assert not history.has_forgotten("home")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.history.close()


def test_without_room_all_goes_on_in_memory_and_back_into_the_file(place: Place) -> None:
    place.fill()
    place.history.finish("r1", RunResult(Outcome.DONE, "x" * 100_000, version="v1"), False, 110.0)
    assert len(place.trouble) == 1
    assert "can't be used (database or disk is full)" in place.trouble[0]
    place.knows(place.history, 1, LEDGER)
    place.history.set_ledger("home", NEWER)
    place.history.forget("work")
    place.knows(place.history, 1, NEWER)
    with closing(place.again()) as file:
        assert file.ledger("home") == LEDGER

    place.history.begin(run("r2"), HERE)
    assert len(place.trouble) == 2
    assert "can be used again" in place.trouble[1]
    with closing(place.again()) as file:
        place.knows(file, 2, NEWER)
    assert place.history.past("home", HERE) == [Past(Outcome.DONE), Past(None)]


def test_what_is_forgotten_meanwhile_stays_so(place: Place) -> None:
    place.fill()
    place.history.finish("r1", RunResult(Outcome.DONE, "x" * 100_000), False, 110.0)
    place.history.forget("home")
    place.history.begin(run("r2"), HERE)
    with closing(place.again()) as file:
        assert [each.id for each in file.runs()] == ["r2"]
        assert file.ledger("home") is None


def test_while_another_program_writes_all_is_known(place: Place) -> None:
    place.history._db._db.execute("PRAGMA busy_timeout = 0")
    with closing(sqlite3.connect(place.file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        place.history.set_ledger("home", NEWER)
        assert "locked" in place.trouble[0]
        place.knows(place.history, 1, NEWER)
        other.execute("ROLLBACK")
    place.history.begin(run("r2"), HERE)
    with closing(place.again()) as file:
        place.knows(file, 2, NEWER)


def test_what_can_not_even_be_read_is_forgotten_until_it_can_be(place: Place) -> None:
    place.history._db._db.execute("PRAGMA busy_timeout = 0")
    with closing(sqlite3.connect(place.file, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert place.history.ledger("home") is None
        assert place.history.has_forgotten("home")
        place.history.set_ledger("work", LEDGER)
        assert not place.history.has_forgotten("work")
        other.execute("ROLLBACK")
    place.history.begin(run("r2"), HERE)
    place.knows(place.history, 2, LEDGER)
    assert place.history.ledger("work") == LEDGER
    with closing(place.again()) as file:
        place.knows(file, 2, LEDGER)


def test_a_file_that_is_locked_at_the_start_is_not_moved_aside(place: Place) -> None:
    place.history.close()
    with closing(sqlite3.connect(place.file, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        place.history = place.again()
        assert place.history.has_forgotten("home")
        other.execute("ROLLBACK")
    place.history.begin(run("r2"), HERE)
    place.knows(place.history, 2, LEDGER)
    assert [path.name for path in place.file.parent.iterdir()] == ["history.db"]


def test_what_was_in_a_file_that_was_moved_aside_is_forgotten(place: Place) -> None:
    place.history.close()
    place.file.write_bytes(b"no database" * 999)
    place.history = place.again()
    assert place.history.has_forgotten("home")
    place.history.close()
    place.history = place.again()
    assert place.history.has_forgotten("home")
    place.history.set_ledger("home", NEWER)
    assert not place.history.has_forgotten("home")


def test_a_new_history_has_forgotten_nothing(tmp_path: Path) -> None:
    with closing(History(tmp_path / "history.db", lambda _sentence: None)) as new:
        assert not new.has_forgotten("home")
