"""What was done: runs, ended insertions, and the ledger of each drive.

It lives as long as its ``database``, which is never a reason not to back up.  Which run was the
last is known from the order in which they were recorded: a clock may be set back between two of
them.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs

from ..model import JobKind, LedgerEntry, Outcome, RunResult
from .database import Database
from .policy import Past
from .schedule import Moment

_BACKUPS = (JobKind.BACKUP.value, JobKind.INIT.value)
"""The jobs that one insertion is one of."""
_MOST = 1000
"""Runs of an entry that are kept: one of each hour would else become gigabytes in some years."""
_MADE_VERSION = "version != '' AND outcome IN ('done', 'warnings')"
_ATTEMPTED = "finished IS NOT NULL AND job IN (?, ?) AND outcome != 'skipped'"
_VERIFIED = "job = ? AND (outcome IN ('done', 'warnings') OR error = 'Damaged')"


@attrs.frozen
class Insertion:
    """The time from a disk's plugging to its pulling."""

    boot_id: str
    diskseq: int


@attrs.frozen
class Run:
    """One run, as it is kept.  Times are Unix times; ``finished`` 0 and ``outcome`` None while
    it goes on.
    """

    id: str
    entry: str
    job: JobKind
    started: float
    finished: float = 0.0
    outcome: Outcome | None = None
    interrupted: bool = False
    error: str = ""
    sentence: str = ""
    hint: str = ""
    warnings: tuple[str, ...] = ()
    version: str = ""
    files: int = 0
    size: int = 0
    changed_files: int = 0
    changed_bytes: int = 0
    safe: bool = False
    powered_off: bool = False
    touched: bool = True


_COLUMNS = ", ".join(field.name for field in attrs.fields(Run))


def _run(row: Sequence[object]) -> Run:
    values = dict(zip((field.name for field in attrs.fields(Run)), row, strict=True))
    values["job"] = JobKind(str(values["job"]))
    values["finished"] = values["finished"] or 0.0
    values["outcome"] = Outcome(str(values["outcome"])) if values["outcome"] else None
    values["warnings"] = tuple(json.loads(str(values["warnings"])))
    for name in ("interrupted", "safe", "powered_off", "touched"):
        values[name] = bool(values[name])
    return Run(**values)  # type: ignore[arg-type]


class History:
    """The open history.  *trouble* is told, in a sentence, what went wrong with it."""

    def __init__(self, path: Path, trouble: Callable[[str], None]) -> None:
        self._db = Database(path, trouble)

    def close(self) -> None:
        """Close the database; nothing can be asked or recorded any more."""
        self._db.close()

    def interrupted_by_death(self, sentence: str, now: float) -> list[Run]:
        """End the runs that the daemon didn't live to end, as failed with this *sentence*; call
        it once, after the sweep.  Backups count as interrupted: they begin again by themselves.
        """
        unfinished = [_run(row) for row in self._ask("WHERE finished IS NULL", ())]
        self._db.execute(
            "UPDATE runs SET finished = ?, outcome = ?, interrupted = job IN (?, ?), sentence = ?"
            " WHERE finished IS NULL",
            (now, Outcome.FAILED.value, *_BACKUPS, sentence),
        )
        return [
            attrs.evolve(
                run,
                finished=now,
                outcome=Outcome.FAILED,
                interrupted=run.job.value in _BACKUPS,
                sentence=sentence,
            )
            for run in unfinished
        ]

    def begin(self, run: Run, insertion: Insertion) -> None:
        """Record that *run* has begun; in the file, if that can be written to again.

        The oldest runs of its entry go, but for those that :meth:`last_success`,
        :meth:`last_attempt` and :meth:`last_verification` tell of.
        """
        self._db.return_to_file()
        self._db.execute(
            "INSERT OR REPLACE INTO runs (id, entry, job, boot_id, diskseq, started)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (
                run.id, run.entry, run.job.value,
                insertion.boot_id, insertion.diskseq, run.started,
            ),
        )  # fmt: skip
        self._thin_out(run.entry)

    def _thin_out(self, entry: str) -> None:
        oldest = "SELECT rowid FROM runs WHERE entry = ? ORDER BY rowid DESC LIMIT 1 OFFSET ?"
        values: list[object] = [entry, entry, _MOST]
        kept = ""
        for condition, words in (
            (_MADE_VERSION, ()), (_ATTEMPTED, _BACKUPS), (_VERIFIED, (JobKind.VERIFY.value,))
        ):  # fmt: skip
            last = f"SELECT max(rowid) FROM runs WHERE entry = ? AND {condition}"  # noqa: S608
            kept += f" AND rowid IS NOT ({last})"
            values += [entry, *words]
        self._db.execute(
            "DELETE FROM runs WHERE entry = ? AND finished IS NOT NULL"  # noqa: S608
            f" AND rowid <= ({oldest}){kept}",
            values,
        )

    def finish(self, run_id: str, result: RunResult, interrupted: bool, now: float) -> None:
        """Record how the run ended."""
        self._db.execute(
            "UPDATE runs SET finished = ?, outcome = ?, interrupted = ?, error = ?, sentence = ?,"
            " hint = ?, warnings = ?, version = ?, files = ?, size = ?, changed_files = ?,"
            " changed_bytes = ?, safe = ?, powered_off = ?, touched = ? WHERE id = ?",
            (
                now, result.outcome.value, interrupted, result.error, result.sentence,
                result.hint, json.dumps(result.warnings), result.version, result.files,
                result.size, result.changed_files, result.changed_bytes, result.safe,
                result.powered_off, result.touched, run_id,
            ),
        )  # fmt: skip

    def runs(self, entry: str | None = None, limit: int = 100) -> list[Run]:
        """The last runs, youngest first; of all entries when *entry* is None."""
        where = "" if entry is None else "WHERE entry = ? "
        rows = self._ask(
            f"{where}ORDER BY started DESC, rowid DESC LIMIT ?",
            (limit,) if entry is None else (entry, limit),
        )
        return [_run(row) for row in rows]

    def last(self, entry: str) -> Run | None:
        """The last run of *entry* that has ended."""
        rows = self._ask(
            "WHERE entry = ? AND finished IS NOT NULL ORDER BY rowid DESC LIMIT 1",
            (entry,),
        )
        return _run(rows[0]) if rows else None

    def last_verification(self, entry: str) -> Run | None:
        """The last verification of *entry* that came to a result."""
        rows = self._ask(
            f"WHERE entry = ? AND {_VERIFIED} ORDER BY rowid DESC LIMIT 1",
            (entry, JobKind.VERIFY.value),
        )
        return _run(rows[0]) if rows else None

    def last_attempt(self, entry: str) -> float:
        """When the last backup of *entry* ended that was not skipped (Unix time; 0: never)."""
        rows = self._db.execute(
            f"SELECT finished FROM runs WHERE entry = ? AND {_ATTEMPTED}"  # noqa: S608
            " ORDER BY rowid DESC LIMIT 1",
            (entry, *_BACKUPS),
        )
        return float(rows[0][0]) if rows else 0.0

    def last_success(self, entry: str) -> float:
        """When the last run of *entry* that made a version ended (Unix time; 0: never)."""
        rows = self._db.execute(
            f"SELECT finished FROM runs WHERE entry = ? AND {_MADE_VERSION}"  # noqa: S608
            " ORDER BY rowid DESC LIMIT 1",
            (entry,),
        )
        return float(rows[0][0]) if rows else 0.0

    def moment(self, entry: str, what: str) -> Moment | None:
        """A moment of *entry* that is kept (see ``schedule``)."""
        rows = self._db.execute(
            "SELECT said, counts FROM moments WHERE entry = ? AND what = ?", (entry, what)
        )
        return Moment(*rows[0]) if rows else None

    def keep_moment(self, entry: str, what: str, moment: Moment) -> None:
        """Keep a moment, in the place of the one before."""
        self._db.execute(
            "INSERT OR REPLACE INTO moments VALUES (?, ?, ?, ?)",
            (entry, what, moment.said, moment.counts),
        )

    def past(self, entry: str, insertion: Insertion) -> list[Past]:
        """The backups of *entry* in this insertion, as the policy wants to know them."""
        rows = self._db.execute(
            "SELECT outcome, interrupted FROM runs WHERE entry = ? AND boot_id = ? AND diskseq = ?"
            " AND job IN (?, ?) ORDER BY rowid",
            (entry, insertion.boot_id, insertion.diskseq, *_BACKUPS),
        )
        return [Past(Outcome(row[0]) if row[0] else None, bool(row[1])) for row in rows]

    def last_on(self, insertion: Insertion) -> Run | None:
        """The last run in this insertion, of any entry, that touched the drive and has ended."""
        rows = self._ask(
            "WHERE boot_id = ? AND diskseq = ? AND finished IS NOT NULL AND touched"
            " ORDER BY rowid DESC LIMIT 1",
            (insertion.boot_id, insertion.diskseq),
        )
        return _run(rows[0]) if rows else None

    def proven(self, insertion: Insertion, safe: bool) -> None:
        """Whether it was proven of an ejected disk, without a run, that it may be pulled."""
        self._db.execute(
            "UPDATE ejected SET safe = ? WHERE boot_id = ? AND diskseq = ?",
            (safe, insertion.boot_id, insertion.diskseq),
        )

    def is_safe(self, insertion: Insertion) -> bool:
        """Whether the disk was proven to be safe to pull when it was last touched, or let go of."""
        rows = self._db.execute(
            "SELECT safe FROM ejected WHERE boot_id = ? AND diskseq = ? AND safe IS NOT NULL",
            (insertion.boot_id, insertion.diskseq),
        )
        if rows:
            return bool(rows[0][0])
        last = self.last_on(insertion)
        return last is not None and last.safe

    def eject(self, insertion: Insertion) -> None:
        """Somebody asked for this disk to be let go: the insertion is over for every entry."""
        self._db.execute("DELETE FROM ejected WHERE boot_id != ?", (insertion.boot_id,))
        self._db.execute(
            "INSERT OR IGNORE INTO ejected (boot_id, diskseq) VALUES (?, ?)",
            (insertion.boot_id, insertion.diskseq),
        )

    def ejected(self, insertion: Insertion) -> bool:
        """Whether :meth:`eject` was said of this insertion."""
        return bool(
            self._db.execute(
                "SELECT 1 FROM ejected WHERE boot_id = ? AND diskseq = ?",
                (insertion.boot_id, insertion.diskseq),
            )
        )

    def ledger(self, entry: str) -> LedgerEntry | None:
        """What is remembered of the last proven version of *entry*."""
        rows = self._db.execute(
            "SELECT sequence, version, nonce, record_sha256 FROM ledger WHERE entry = ?", (entry,)
        )
        return LedgerEntry(*rows[0]) if rows else None

    def has_forgotten(self, entry: str) -> bool:
        """Whether :meth:`ledger` knows nothing of *entry*, but may have known something."""
        return self._db.forgetful and self.ledger(entry) is None

    def set_ledger(self, entry: str, ledger: LedgerEntry | None) -> None:
        """Remember *ledger* for *entry*; None forgets it (a new container holds nothing)."""
        if ledger is None:
            self._db.execute("DELETE FROM ledger WHERE entry = ?", (entry,))
            return
        self._db.execute(
            "INSERT OR REPLACE INTO ledger VALUES (?, ?, ?, ?, ?)", (entry, *attrs.astuple(ledger))
        )

    def forget(self, entry: str) -> None:
        """Forget all of *entry*."""
        for table in ("runs", "moments", "ledger"):
            self._db.execute(f"DELETE FROM {table} WHERE entry = ?", (entry,))  # noqa: S608

    def _ask(self, rest: str, values: Sequence[object]) -> list[sqlite3.Row]:
        # What is put together here are column names and clauses of ours, never a value.
        return self._db.execute(f"SELECT {_COLUMNS} FROM runs {rest}", values)  # noqa: S608
