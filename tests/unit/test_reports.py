"""What the journal says of a run."""

from typing import Any

import pytest

from cryptbackd.daemon import reports
from cryptbackd.daemon.journal import Priority
from cryptbackd.daemon.reports import Line
from cryptbackd.model import JobKind, Outcome, RunResult


def ended(result: RunResult, **change: Any) -> list[Line]:
    facts: dict[str, Any] = {
        "seconds": 42.0,
        "interrupted": False,
        "present": True,
        **change,
    }
    return reports.ended("home", result, **facts)


def test_the_first_line() -> None:
    line = reports.begun("home", JobKind.BACKUP, "/dev/sda1", "SanDisk Ultra")
    assert line.text == "home: backup begun on /dev/sda1 (SanDisk Ultra)."
    assert reports.begun("home", JobKind.INIT, "/dev/sda1", "").text == (
        "home: enrolment begun on /dev/sda1."
    )


def result(outcome: Outcome, sentence: str = "", **more: Any) -> RunResult:
    numbers: dict[str, Any] = {"files": 412, "size": int(2.1 * 2**30), "changed_files": 3}
    return RunResult(outcome, sentence, changed_bytes=int(1.2 * 2**20), **numbers, **more)


def test_done_and_proven() -> None:
    assert ended(result(Outcome.DONE, safe=True, version="v")) == [
        Line("You may unplug home now.", message="may_unplug"),
        Line(
            "home: finished: 412 files, 2.1 GiB; 3 files changed (1.2 MiB) in 0:42.",
            message="run_done",
            outcome=Outcome.DONE,
        ),
    ]


def test_with_warnings() -> None:
    warnings = ["One.", "Two.", "Three.", "Four."]
    last = ended(result(Outcome.WARNINGS, safe=True, version="v", warnings=warnings))[-1]
    assert last.text == (
        "home: finished with 4 warnings: 412 files, 2.1 GiB; 3 files changed (1.2 MiB) in 0:42."
        " One. Two. Three. (1 more)"
    )
    assert last.priority is Priority.WARNING
    assert last.outcome is Outcome.WARNINGS


@pytest.mark.parametrize("outcome", list(Outcome))
def test_unplugging_is_offered_only_when_it_was_proven(outcome: Outcome) -> None:
    end = result(outcome, "It ended.", safe=False, touched=outcome is not Outcome.SKIPPED)
    texts = [line.text for line in ended(end)]
    assert not any("You may unplug" in text for text in texts)
    unproven = "It was not proven that home may be unplugged."
    # A run that was skipped never touched the drive: there is nothing to be said about it.
    assert (unproven in texts) is (outcome is not Outcome.SKIPPED)


@pytest.mark.parametrize("outcome", list(Outcome))
@pytest.mark.parametrize("interrupted", [True, False])
@pytest.mark.parametrize("safe", [True, False])
def test_the_last_line_and_only_it_has_the_outcome(
    outcome: Outcome, interrupted: bool, safe: bool
) -> None:
    lines = ended(result(outcome, "It ended.", safe=safe), interrupted=interrupted)
    assert [line.outcome for line in lines] == [None] * (len(lines) - 1) + [outcome]


def test_what_is_not_locked_has_no_outcome() -> None:
    lines = ended(result(Outcome.FAILED, "It died."), stuck=("The mapping is in use.",))
    assert all(line.outcome is None for line in lines)
    assert lines[0] == Line("home: The mapping is in use.", Priority.ERROR, "not_answering")


@pytest.mark.parametrize(
    ("error", "priority"),
    [
        ("DriveAbsent", Priority.WARNING),
        ("WrongPassphrase", Priority.WARNING),
        ("DriveFull", Priority.WARNING),
        ("ForgedDrive", Priority.ERROR),
        ("DriveFailed", Priority.ERROR),
        ("ToolFailed", Priority.ERROR),
        ("", Priority.ERROR),
    ],
)
def test_only_what_somebody_must_look_at_is_an_error(error: str, priority: Priority) -> None:
    last = ended(result(Outcome.FAILED, "No.", error=error, hint="Do this."))[-1]
    assert last.priority is priority
    assert last.text == "home: failed: No. Do this."


def test_a_pulled_drive_is_an_interrupted_run_without_advice_on_unplugging() -> None:
    (line,) = ended(
        result(Outcome.FAILED, "Pulled.", error="DriveAbsent"), interrupted=True, present=False
    )
    assert line.message == "run_interrupted"
    assert line.priority is Priority.WARNING


def test_a_stop_of_the_service() -> None:
    last = ended(result(Outcome.CANCELLED, "x", safe=True), interrupted=True)[-1]
    assert last.message == "run_interrupted"
    assert last.outcome is Outcome.CANCELLED


def test_powered_off() -> None:
    first = ended(result(Outcome.DONE, safe=True, powered_off=True, version="v"))[0]
    assert first == Line("home is powered off. You may unplug it now.", message="may_unplug")


def test_damage_is_an_error_with_an_explanation() -> None:
    assert reports.begun("home", JobKind.VERIFY, "/dev/sda1", "").text == (
        "home: verification begun on /dev/sda1."
    )
    end = result(Outcome.FAILED, "2 files are damaged.", error="Damaged", safe=True)
    free, last = ended(end)
    assert free.message == "may_unplug"
    assert last == Line(
        "home: damaged: 2 files are damaged.", Priority.ERROR, "damaged", Outcome.FAILED
    )
