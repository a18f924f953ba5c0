"""The history, and that it never stands in the way."""

import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import attrs
import pytest

from cryptbackd.daemon.history import History, Insertion, Run
from cryptbackd.daemon.policy import Past, Verdict, automatic
from cryptbackd.daemon.values import short_enough
from cryptbackd.model import JobKind, LedgerEntry, Outcome, RunResult

HERE = Insertion("boot-1", 7)
LEDGER = LedgerEntry(3, "2026-11-24T10:15:30Z", "nonce", "ab" * 32)


@pytest.fixture
def trouble() -> list[str]:
    return []


@pytest.fixture
def history(tmp_path: Path, trouble: list[str]) -> Iterator[History]:
    opened = History(tmp_path / "history.db", trouble.append)
    yield opened
    opened.close()


def again(tmp_path: Path, trouble: list[str]) -> History:
    return History(tmp_path / "history.db", trouble.append)


def run(name: str = "r1", entry: str = "home", started: float = 100.0) -> Run:
    return Run(name, entry, JobKind.BACKUP, started)


DONE = RunResult(
    Outcome.WARNINGS,
    "All went well.",
    hint="h",
    safe=True,
    warnings=["eins", "zwei"],
    version="v1",
    files=412,
    size=2**40,
    changed_files=3,
    changed_bytes=99,
)


def test_a_run_is_kept_as_it_ended(history: History, tmp_path: Path, trouble: list[str]) -> None:
    history.begin(run(), HERE)
    assert history.runs() == [run()]
    history.finish("r1", DONE, False, 160.0)
    history.close()
    other = again(tmp_path, trouble)
    (kept,) = other.runs("home")
    other.close()
    assert kept == Run(
        "r1", "home", JobKind.BACKUP, 100.0, 160.0, Outcome.WARNINGS, False, "",
        "All went well.", "h", ("eins", "zwei"), "v1", 412, 2**40, 3, 99, True, False,
    )  # fmt: skip
    assert trouble == []


def test_the_file_is_roots_alone(history: History, tmp_path: Path) -> None:
    assert stat.S_IMODE(os.stat(tmp_path / "history.db").st_mode) == 0o600


def test_runs_come_youngest_first(history: History) -> None:
    for number in range(5):
        history.begin(run(f"r{number}", "home" if number % 2 else "work", 100.0 + number), HERE)
    assert [r.id for r in history.runs(limit=3)] == ["r4", "r3", "r2"]
    assert [r.id for r in history.runs("home")] == ["r3", "r1"]


def test_what_the_policy_is_told(history: History) -> None:
    history.begin(run("r1"), HERE)
    history.begin(run("r2"), Insertion("boot-1", 8))
    history.begin(run("r3"), Insertion("boot-2", 7))
    history.begin(run("r4", "work"), HERE)
    assert history.past("home", HERE) == [Past(None)]
    history.finish("r1", DONE, True, 160.0)
    assert history.past("home", HERE) == [Past(Outcome.WARNINGS, True)]


def test_a_change_of_passphrases_is_no_backup(history: History) -> None:
    history.begin(run(), HERE)
    history.finish("r1", DONE, False, 160.0)
    history.begin(Run("r2", "home", JobKind.PASSPHRASE, 200.0), HERE)
    history.finish("r2", RunResult(Outcome.FAILED, "It died."), True, 210.0)
    assert history.past("home", HERE) == [Past(Outcome.WARNINGS)]
    assert history.last_attempt("home") == 160.0


def test_a_killed_daemon_leaves_interrupted_runs(
    history: History, tmp_path: Path, trouble: list[str]
) -> None:
    history.begin(run("r1"), HERE)
    history.finish("r1", DONE, False, 110.0)
    history.begin(run("r2"), HERE)
    history.close()
    other = again(tmp_path, trouble)
    (killed,) = other.interrupted_by_death("It was killed.", 200.0)
    assert (killed.id, killed.outcome, killed.interrupted) == ("r2", Outcome.FAILED, True)
    assert other.interrupted_by_death("It was killed.", 201.0) == []
    assert other.past("home", HERE) == [Past(Outcome.WARNINGS), Past(Outcome.FAILED, True)]
    other.close()


def test_a_killed_daemon_interrupts_nothing_that_does_not_begin_again(history: History) -> None:
    history.begin(Run("r1", "home", JobKind.VERIFY, 100.0), HERE)
    (killed,) = history.interrupted_by_death("It was killed.", 200.0)
    assert (killed.outcome, killed.interrupted) == (Outcome.FAILED, False)
    assert history.runs() == [killed]


def test_the_last_success_made_a_version(history: History) -> None:
    assert history.last_success("home") == 0
    history.begin(run("r1"), HERE)
    history.finish("r1", DONE, False, 110.0)
    history.begin(run("r2"), HERE)
    history.finish("r2", RunResult(Outcome.FAILED, "no"), False, 120.0)
    assert history.last_success("home") == 110.0
    last = history.last("home")
    assert last is not None
    assert last.id == "r2"


def test_the_last_run_on_a_disk_is_of_any_entry_but_one_that_touched_nothing(
    history: History,
) -> None:
    assert history.last_on(HERE) is None
    history.begin(run("r1", "work"), HERE)
    history.finish("r1", DONE, False, 110.0)
    history.begin(run("r2"), HERE)
    history.finish("r2", RunResult(Outcome.SKIPPED, "too soon", touched=False), False, 120.0)
    last = history.last_on(HERE)
    assert last is not None
    assert last.id == "r1"


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_history_of_an_earlier_version_is_taken_over(
    tmp_path: Path, trouble: list[str], version: int
) -> None:
    history = again(tmp_path, trouble)
    history.begin(run("r1"), HERE)
    history.finish("r1", DONE, False, 110.0)
    history.begin(run("r2"), HERE)
    skipped = RunResult(Outcome.SKIPPED, "too soon", touched=version == 1)
    history.finish("r2", skipped, False, 120.0)
    history.close()
    with closing(sqlite3.connect(tmp_path / "history.db")) as old:
        old.executescript("DROP TRIGGER proven_anew; ALTER TABLE ejected DROP COLUMN safe;")
        if version == 1:
            old.execute("ALTER TABLE runs DROP COLUMN touched")
        if version <= 2:
            old.execute("DROP TABLE moments")
        old.execute(f"PRAGMA user_version = {version}")
    newer = again(tmp_path, trouble)
    last = newer.last_on(HERE)
    assert last is not None
    assert (last.id, len(newer.runs()), trouble) == ("r1", 2, [])
    assert newer.moment("home", "reminded") is None
    assert newer.is_safe(HERE)
    newer.eject(HERE)
    newer.proven(HERE, False)
    assert not newer.is_safe(HERE)
    newer.close()


def test_ejected_insertions(history: History) -> None:
    assert not history.ejected(HERE)
    history.eject(HERE)
    history.eject(HERE)
    assert history.ejected(HERE)
    assert not history.ejected(Insertion("boot-1", 8))
    history.eject(Insertion("boot-2", 1))
    assert not history.ejected(HERE)


@pytest.mark.parametrize("safe", [True, False])
def test_what_was_proven_last_counts(
    history: History, tmp_path: Path, trouble: list[str], safe: bool
) -> None:
    """By a run, or when the disk was let go of; also for a daemon that is started anew."""
    other_disk = Insertion("boot-1", 8)
    assert not history.is_safe(HERE)
    history.begin(run("r1"), HERE)
    history.finish("r1", attrs.evolve(DONE, safe=not safe), False, 110.0)
    assert history.is_safe(HERE) is not safe
    for insertion in (HERE, other_disk):
        history.eject(insertion)
    assert history.is_safe(HERE) is not safe
    history.proven(HERE, safe)
    assert history.is_safe(HERE) is safe
    assert not history.is_safe(other_disk)
    history.begin(run("r2"), HERE)
    history.finish("r2", RunResult(Outcome.SKIPPED, "no", touched=False), False, 120.0)
    history.eject(HERE)
    history.begin(run("r3"), HERE)
    assert history.is_safe(HERE) is safe
    history.close()
    other = again(tmp_path, trouble)
    other.interrupted_by_death("It was killed.", 130.0)
    assert not other.is_safe(HERE)
    other.begin(run("r4"), HERE)
    other.finish("r4", DONE, False, 140.0)
    assert other.is_safe(HERE)
    other.close()
    assert trouble == []


def test_the_ledger(history: History) -> None:
    assert history.ledger("home") is None
    history.set_ledger("home", LEDGER)
    history.set_ledger("work", LEDGER)
    newer = LedgerEntry(4, "v", "n", "cd" * 32)
    history.set_ledger("home", newer)
    assert history.ledger("home") == newer
    history.set_ledger("home", None)
    assert history.ledger("home") is None
    assert history.ledger("work") == LEDGER


@pytest.mark.parametrize(
    "content", [b"not a database at all" * 100, b"SQLite format 3\0garbage" * 99]
)
def test_an_unreadable_database_is_moved_aside(
    tmp_path: Path, trouble: list[str], content: bytes
) -> None:
    (tmp_path / "history.db").write_bytes(content)
    history = again(tmp_path, trouble)
    history.begin(run(), HERE)
    assert len(history.runs()) == 1
    history.close()
    assert (tmp_path / "history.db.unreadable").read_bytes() == content
    assert len(trouble) == 1
    assert "moved to" in trouble[0]


def test_a_schema_from_the_future_is_moved_aside(tmp_path: Path, trouble: list[str]) -> None:
    db = sqlite3.connect(tmp_path / "history.db")
    db.execute("PRAGMA user_version = 99")
    db.close()
    again(tmp_path, trouble).close()
    assert "version 99" in trouble[0]


def test_without_a_place_it_remembers_in_memory(tmp_path: Path, trouble: list[str]) -> None:
    history = History(tmp_path / "nowhere" / "history.db", trouble.append)
    history.begin(run(), HERE)
    assert len(history.runs()) == 1
    history.close()
    assert "only until the service stops" in trouble[0]


def test_a_fault_while_writing_does_not_lose_what_comes(
    history: History, tmp_path: Path, trouble: list[str]
) -> None:
    other = sqlite3.connect(tmp_path / "history.db")
    other.execute("DROP TABLE runs")
    other.close()
    history.begin(run(), HERE)
    assert history.past("home", HERE) == [Past(None)]
    assert len(trouble) == 1


def test_the_last_verification_is_one_that_came_to_a_result(history: History) -> None:
    assert history.last_verification("home") is None
    ends = [
        RunResult(Outcome.DONE, "All is well."),
        RunResult(Outcome.FAILED, "2 files are damaged.", error="Damaged"),
        RunResult(Outcome.CANCELLED, "It was cancelled.", error="Cancelled"),
        RunResult(Outcome.FAILED, "It was pulled.", error="DriveAbsent"),
    ]
    for number, end in enumerate(ends):
        history.begin(Run(f"v{number}", "home", JobKind.VERIFY, 100.0 + number), HERE)
        history.finish(f"v{number}", end, False, 200.0 + number)
        found = history.last_verification("home")
        assert found is not None
        assert found.sentence == ends[min(number, 1)].sentence
    assert history.last_success("home") == 0
    assert history.past("home", HERE) == []


def test_one_answer_has_room_for_the_youngest_runs() -> None:
    """A run with more than fits is told all the same, if it is the youngest."""
    many = tuple("ä" * 500 for _ in range(600))  # 600 kB of UTF-8
    runs = [attrs.evolve(run(f"r{number}"), warnings=many) for number in range(5)]
    assert short_enough(runs) == runs[:3]
    short = [run("quiet")] * 900
    assert short_enough(short) == short
    assert short_enough([attrs.evolve(run("r"), warnings=many * 5), *short]) != []
    assert short_enough([]) == []


def test_the_oldest_runs_go(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that runs for years; what was last stays known, however long ago it was."""
    monkeypatch.setattr("cryptbackd.daemon.history._MOST", 5)
    failed = RunResult(Outcome.FAILED, "No.", error="DriveFailed")

    def done(name: str, result: RunResult, kind: JobKind = JobKind.BACKUP, seq: int = 1) -> None:
        history.begin(attrs.evolve(run(name), job=kind), Insertion("boot-1", seq))
        history.finish(name, result, False, 160.0)

    done("success", DONE)
    done("verified", attrs.evolve(DONE, version=""), JobKind.VERIFY)
    history.begin(run("going on"), Insertion("boot-1", 2))
    history.begin(run("other", "work"), Insertion("boot-1", 2))
    history.finish("other", DONE, False, 160.0)
    for number in range(20):
        done(f"f{number}", failed, seq=number + 10)
    kept = [each.id for each in history.runs("home")]
    assert kept == ["f19", "f18", "f17", "f16", "f15", "going on", "verified", "success"]
    assert [each.id for each in history.runs("work")] == ["other"]
    assert history.last_success("home") == 160.0
    verified = history.last_verification("home")
    assert verified is not None
    assert verified.id == "verified"


def test_a_drive_that_stays_in_for_years_is_no_new_one(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cryptbackd.daemon.history._MOST", 5)
    for number in range(20):
        history.begin(run(f"r{number}"), HERE)
        history.finish(f"r{number}", DONE, False, 160.0)
    for number in range(20):
        history.begin(attrs.evolve(run(f"b{number}"), job=JobKind.BROWSE), HERE)
        history.finish(f"b{number}", attrs.evolve(DONE, version=""), False, 170.0)
    assert automatic(history.past("home", HERE)) is Verdict.FINISHED
    assert history.last_attempt("home") == 160.0
    assert len(history.runs("home")) == 6
