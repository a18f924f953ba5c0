"""What a person is told on the desktop, and when."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptbackd.agent import news
from cryptbackd.agent.news import DAY, STEP, Urgency

NOW = 1_800_000_000.0

IDLE: dict[str, Any] = {
    "name": "home", "state": "idle", "phase": "", "done": 0, "total": 0, "run": "", "owner": "me",
    "remind": 14 * 86_400, "last_success": NOW - 20 * DAY,
}  # fmt: skip
RESULT: dict[str, Any] = {
    "name": "home", "job": "backup", "outcome": "done", "error": "", "sentence": "", "hint": "",
    "warnings": [], "changed_files": 3, "safe": True, "powered_off": False,
}  # fmt: skip


def at(done: int, run: str = "r1") -> dict[str, Any]:
    return {**IDLE, "state": "running", "phase": "syncing", "run": run, "done": done, "total": 1000}


def test_a_begun_backup_is_told_once() -> None:
    begun = {**IDLE, "state": "running", "phase": "starting", "run": "r1"}
    notice = news.changed(IDLE, begun)
    assert notice is not None
    assert (notice.summary, notice.urgency) == ("Backing up to home", Urgency.LOW)
    assert news.changed(begun, {**begun, "phase": "attaching"}) is None
    assert news.changed({}, begun) is not None
    assert news.changed(begun, IDLE) is None


@given(st.lists(st.integers(0, 1000), max_size=200))
def test_progress_is_told_in_steps(steps: list[int]) -> None:
    before = at(0)
    told: list[int] = []
    for done in sorted(steps):
        notice = news.changed(before, at(done))
        before = at(done)
        if notice is not None:
            told.append(notice.progress or 0)
    assert len(told) <= 100 // STEP
    assert told == sorted(set(told))


@pytest.mark.parametrize(
    ("change", "summary", "body"),
    [
        ({}, "You can unplug home now", "The backup is done: 3 files changed."),
        (
            {"outcome": "warnings", "warnings": ["A.", "B."]},
            "You can unplug home now",
            "The backup is done, with 2 warnings: A.",
        ),
        ({"safe": False}, "home is backed up, but don't unplug it yet", "The backup is done: 3"),
        ({"outcome": "cancelled"}, "You can unplug home now", "The backup was stopped."),
        (
            {"outcome": "failed", "sentence": "It is full.", "hint": "Get another."},
            "The backup to home failed",
            "It is full. Get another. You can unplug it now.",
        ),
        (
            {"outcome": "failed", "sentence": "\x1b[31m", "safe": False},
            "The backup to home failed",
            "\\x1b[31m",
        ),
    ],
)
def test_the_end_is_told(change: dict[str, Any], summary: str, body: str) -> None:
    notice = news.finished({**RESULT, **change})
    assert notice is not None
    assert notice.summary == summary
    assert notice.body.startswith(body)


@given(st.sampled_from(["done", "warnings", "cancelled", "failed"]), st.booleans(), st.booleans())
def test_unplug_is_said_only_when_it_was_proven(outcome: str, safe: bool, off: bool) -> None:
    result = {**RESULT, "outcome": outcome, "safe": safe, "powered_off": off}
    notice = news.finished(result)
    assert notice is not None
    said = "can unplug" in f"{notice.summary} {notice.body}"
    assert said == (safe or off)


@pytest.mark.parametrize("change", [{"job": "survey"}, {"job": "release"}, {"outcome": "skipped"}])
def test_what_is_no_news(change: dict[str, Any]) -> None:
    assert news.finished({**RESULT, **change}) is None


@pytest.mark.parametrize(
    ("change", "told", "summary"),
    [
        ({}, 0.0, "home has not been backed up to for 20 days"),
        ({"last_success": 0}, 0.0, "home has never been backed up to"),
        ({"last_success": NOW - 13 * DAY}, 0.0, None),
        ({"remind": 0}, 0.0, None),
        ({}, NOW - DAY + 60, None),
        ({}, NOW - DAY, "home has not been backed up to for 20 days"),
        ({}, NOW + 9 * DAY, "home has not been backed up to for 20 days"),  # the clock was set back
        ({"state": "running"}, 0.0, None),
    ],
)
def test_a_reminder(change: dict[str, Any], told: float, summary: str | None) -> None:
    notice = news.overdue({**IDLE, **change}, NOW, told)
    assert (notice.summary if notice is not None else None) == summary


def test_whose_news_they_are() -> None:
    assert news.is_ours(IDLE, "me")
    assert not news.is_ours(IDLE, "you")
    assert news.is_ours({**IDLE, "owner": ""}, "you")
    assert news.is_ours({}, "you")
