"""The file that the history lies in, and what takes its place when that can't be used.

One SQLite file below the state directory, written with ``synchronous=FULL``, so that what was
recorded survives a loss of power.  One that is damaged is moved aside; while nothing can be read
or written (no room, an error of the disk, another program's lock) all that was in it goes on in
memory, and back into the file as soon as that works again.  Either is told to the journal.  A
:class:`Database` lives until it is closed.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from ..text import printable

_VERSION = 4
_MOMENTS = """
CREATE TABLE moments (
    entry TEXT NOT NULL,
    what TEXT NOT NULL,
    said REAL NOT NULL,
    counts REAL NOT NULL,
    PRIMARY KEY (entry, what)
);
"""
_PROVEN = """
ALTER TABLE ejected ADD COLUMN safe INTEGER;
CREATE TRIGGER proven_anew AFTER UPDATE OF finished ON runs WHEN NEW.touched BEGIN
    UPDATE ejected SET safe = NULL WHERE boot_id = NEW.boot_id AND diskseq = NEW.diskseq;
END;
"""
"""What was proven when a disk was let go of, until a run touches it (``History.proven``)."""
_SCHEMA = """
CREATE TABLE runs (
    id TEXT PRIMARY KEY,
    entry TEXT NOT NULL,
    job TEXT NOT NULL,
    boot_id TEXT NOT NULL,
    diskseq INTEGER NOT NULL,
    started REAL NOT NULL,
    finished REAL,
    outcome TEXT,
    interrupted INTEGER NOT NULL DEFAULT 0,
    error TEXT NOT NULL DEFAULT '',
    sentence TEXT NOT NULL DEFAULT '',
    hint TEXT NOT NULL DEFAULT '',
    warnings TEXT NOT NULL DEFAULT '[]',
    version TEXT NOT NULL DEFAULT '',
    files INTEGER NOT NULL DEFAULT 0,
    size INTEGER NOT NULL DEFAULT 0,
    changed_files INTEGER NOT NULL DEFAULT 0,
    changed_bytes INTEGER NOT NULL DEFAULT 0,
    safe INTEGER NOT NULL DEFAULT 0,
    powered_off INTEGER NOT NULL DEFAULT 0,
    touched INTEGER NOT NULL DEFAULT 1
);
CREATE INDEX runs_by_entry ON runs (entry, started);
CREATE INDEX runs_by_insertion ON runs (boot_id, diskseq);
CREATE TABLE ejected (
    boot_id TEXT NOT NULL,
    diskseq INTEGER NOT NULL,
    PRIMARY KEY (boot_id, diskseq)
);
CREATE TABLE ledger (
    entry TEXT PRIMARY KEY,
    sequence INTEGER NOT NULL,
    version TEXT NOT NULL,
    nonce TEXT NOT NULL,
    record_sha256 TEXT NOT NULL
);
"""

_STEPS = {
    1: """
ALTER TABLE runs ADD COLUMN touched INTEGER NOT NULL DEFAULT 1;
UPDATE runs SET touched = 0 WHERE outcome = 'skipped';
""",
    2: _MOMENTS,
    3: _PROVEN,
}
"""What makes a schema of this version one of the next."""

_TABLES = ("runs", "ejected", "ledger", "moments")
_PASSING = {
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_NOMEM,
}  # fmt: skip
"""Faults that say nothing of what is in the file (sqlite.org/rescode.html, primary codes)."""
_IN_THE_WAY = (errno.ELOOP, errno.EISDIR)
"""Something else has the file's name (open(2), O_NOFOLLOW)."""


class Database:
    """The open tables.  *trouble* is told, in a sentence, what went wrong with the file."""

    def __init__(self, path: Path, trouble: Callable[[str], None]) -> None:
        self._path = path
        self._aside = path.with_name(f"{path.name}.unreadable")
        self._trouble = trouble
        self._in_memory = False
        self._missing: set[str] = set()
        """Tables of which the file may have more than the memory."""
        try:
            self._db = self._open_or_begin_anew()
        except (sqlite3.DatabaseError, OSError) as exc:
            self._db = self._remember_only(exc, None)

    def close(self) -> None:
        """Close it; nothing can be asked or recorded any more."""
        self._db.close()

    @property
    def forgetful(self) -> bool:
        """Whether ledgers may be missing that there were.

        So they are as long as a file that was moved aside lies there.
        """
        return "ledger" in self._missing or os.path.lexists(self._aside)

    def execute(self, statement: str, values: Sequence[object] = ()) -> list[sqlite3.Row]:
        """The rows that *statement* gives; it is durable then, where the file can be used."""
        try:
            return self._db.execute(statement, values).fetchall()
        except sqlite3.DatabaseError as exc:
            with closing(self._db) as broken:
                self._db = self._remember_only(exc, broken)
            return self._db.execute(statement, values).fetchall()

    def return_to_file(self) -> None:
        """If it goes on in memory, write all of that into the file, where that works again."""
        if not self._in_memory:
            return
        try:
            db = self._open_or_begin_anew()
            try:
                db.execute("BEGIN IMMEDIATE")
                for table in _TABLES:
                    if table not in self._missing:
                        db.execute(f"DELETE FROM {table}")  # noqa: S608
                    _copy(table, self._db, db)
                db.execute("COMMIT")
            except BaseException:
                db.close()
                raise
        except (sqlite3.DatabaseError, OSError):
            return
        self._db.close()
        self._db, self._in_memory, self._missing = db, False, set()
        self._trouble(f"The history {self._path} can be used again, and has all that is known.")

    def _open_or_begin_anew(self) -> sqlite3.Connection:
        """The file; another one where it is damaged.  Raises what passes, perhaps."""
        try:
            return self._open()
        except (sqlite3.DatabaseError, OSError, _UnknownVersion) as exc:
            if _passes(exc):
                raise
            os.replace(self._path, self._aside)
            db = self._open()
            self._trouble(
                f"The history {self._path} can't be read ({printable(str(exc))});"
                f" it was moved to {self._aside}, and a new one begun."
            )
            return db

    def _open(self) -> sqlite3.Connection:
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        db = sqlite3.connect(self._path, isolation_level=None)
        try:
            db.execute("PRAGMA synchronous = FULL")
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                _create(db)
            elif version in _STEPS:
                steps = "".join(_STEPS[step] for step in range(version, _VERSION))
                _change(db, steps)
            elif version != _VERSION:
                raise _UnknownVersion(f"its schema has version {version}")
            elif db.execute("PRAGMA quick_check").fetchone()[0] != "ok":
                raise sqlite3.DatabaseError("it is damaged")
        except BaseException:
            db.close()
            raise
        return db

    def _remember_only(
        self, fault: Exception, broken: sqlite3.Connection | None
    ) -> sqlite3.Connection:
        """A database in memory with all that can still be read of the *broken* one."""
        db = sqlite3.connect(":memory:", isolation_level=None)
        _create(db)
        for table in _TABLES:
            try:
                if broken is None:
                    raise fault
                # It was waited for once already.
                broken.execute("PRAGMA busy_timeout = 0")
                _copy(table, broken, db)
            except (sqlite3.DatabaseError, OSError):
                self._missing.add(table)
        self._in_memory = True
        self._trouble(
            f"The history {self._path} can't be used ({printable(str(fault))});"
            " until it can be, what happens is remembered only until the service stops."
        )
        return db


class _UnknownVersion(Exception):
    """A schema that this program does not know."""


def _passes(fault: Exception) -> bool:
    if isinstance(fault, OSError):
        return fault.errno not in _IN_THE_WAY
    # The code in the lowest byte is the primary one.
    return getattr(fault, "sqlite_errorcode", 0) & 0xFF in _PASSING


def _copy(table: str, source: sqlite3.Connection, target: sqlite3.Connection) -> None:
    """Have *target* have the rows that *source* has, in their order, after those of its own."""
    found = source.execute(f"SELECT * FROM {table} ORDER BY rowid")  # noqa: S608
    columns = [each[0] for each in found.description]
    target.executemany(
        f"INSERT OR REPLACE INTO {table} ({', '.join(columns)})"  # noqa: S608
        f" VALUES ({', '.join('?' * len(columns))})",
        found,
    )


def _create(db: sqlite3.Connection) -> None:
    _change(db, _SCHEMA + _MOMENTS + _PROVEN)


def _change(db: sqlite3.Connection, steps: str) -> None:
    db.executescript(f"BEGIN; {steps} PRAGMA user_version = {_VERSION}; COMMIT;")
