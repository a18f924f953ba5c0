"""What a person is told on the desktop, and when."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptbackd.agent import desktop, news
from cryptbackd.agent.desktop import Desktop
from cryptbackd.agent.news import DAY, STEP, Notice, Urgency

NOW = 1_800_000_000.0

IDLE: dict[str, Any] = {
    "name": "home", "state": "idle", "phase": "", "done": 0, "total": 0, "run": "", "owner": "me",
    "job": "", "reminded": NOW - 3600, "last_success": NOW - 20 * DAY,
}  # fmt: skip
RESULT: dict[str, Any] = {
    "name": "home", "job": "backup", "outcome": "done", "error": "", "sentence": "", "hint": "",
    "warnings": [], "changed_files": 3, "safe": True, "powered_off": False,
}  # fmt: skip


def at(done: int, run: str = "r1") -> dict[str, Any]:
    copying = {"state": "running", "phase": "syncing", "run": run, "job": "backup"}
    return {**IDLE, **copying, "done": done, "total": 1000}


def test_a_begun_backup_is_told_once() -> None:
    begun = {**IDLE, "state": "running", "phase": "starting", "run": "r1", "job": "backup"}
    notice = news.changed(IDLE, begun)
    assert notice is not None
    assert (notice.summary, notice.urgency) == ("Backing up to home", Urgency.LOW)
    assert notice.passing
    assert not notice.update
    assert news.changed({**begun, "state": "queued"}, begun) == notice
    assert news.changed(begun, {**begun, "phase": "attaching"}) is None
    assert news.changed({**begun, "state": "not-answering"}, begun) is None
    assert news.changed({}, begun) is not None
    assert news.changed(begun, IDLE) is None


@pytest.mark.parametrize("job", ["passphrase", "adopt", "repair", "resize", ""])
def test_what_is_no_backup_is_none(job: str) -> None:
    assert news.changed(IDLE, {**at(0), "job": job}) is None


@given(st.lists(st.integers(0, 1000), max_size=200))
def test_progress_is_told_in_steps(steps: list[int]) -> None:
    before = at(0)
    told: list[int] = []
    for done in sorted(steps):
        notice = news.changed(before, at(done))
        before = at(done)
        if notice is not None:
            assert notice.update
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


@pytest.mark.parametrize(
    ("change", "summary", "body"),
    [
        ({"version": "v1"}, "You can unplug home now", "The backup is done: 3 files changed."),
        ({}, "You can unplug home now", "It is enrolled, and not yet backed up to."),
        (
            {"outcome": "warnings", "warnings": ["A."]},
            "You can unplug home now",
            "It is enrolled, and not yet backed up to, with 1 warning: A.",
        ),
        (
            {"safe": False},
            "home is enrolled, but don't unplug it yet",
            "It is enrolled, and not yet backed up to.",
        ),
    ],
)
def test_an_enrolment_is_a_backup_only_where_it_made_one(
    change: dict[str, Any], summary: str, body: str
) -> None:
    notice = news.finished({**RESULT, "job": "init", "version": "", **change})
    assert notice is not None
    assert (notice.summary, notice.body) == (summary, body)


@given(st.sampled_from(["done", "warnings", "cancelled", "failed"]), st.booleans(), st.booleans())
def test_unplug_is_said_only_when_it_was_proven(outcome: str, safe: bool, off: bool) -> None:
    result = {**RESULT, "outcome": outcome, "safe": safe, "powered_off": off}
    notice = news.finished(result)
    assert notice is not None
    said = "can unplug" in f"{notice.summary} {notice.body}"
    assert said == (safe or off)


@pytest.mark.parametrize(
    "change",
    [
        {"job": "survey"},
        {"job": "passphrase"},
        {"job": "release", "error": "DriveAbsent"},
        {"outcome": "skipped"},
    ],
)
def test_what_is_no_news(change: dict[str, Any]) -> None:
    assert news.finished({**RESULT, **change}) is None


@pytest.mark.parametrize(
    ("change", "summary", "body"),
    [
        ({}, "home has not been backed up for 20 days", "The drive is plugged in."),
        ({"state": "absent"}, "home has not been backed up for 20 days", "Plug the drive in."),
        (
            {"state": "not-answering", "phase": "syncing"},
            "home has not been backed up for 20 days",
            "The drive does not answer.",
        ),
        (
            {"state": "running", "phase": "browsing"},
            "home has not been backed up for 20 days",
            "It is open for browsing.",
        ),
        ({"last_success": 0}, "home has never been backed up", "The drive is plugged in."),
        ({"last_success": NOW - DAY / 2}, "home has not been backed up for some hours", ""),
        ({"last_success": NOW + DAY}, "home has not been backed up for some hours", ""),
    ],
)
def test_a_reminder(change: dict[str, Any], summary: str, body: str) -> None:
    notice = news.overdue({**IDLE, **change}, NOW)
    assert notice is not None
    assert notice.summary == summary
    assert notice.body.startswith(body)


@pytest.mark.parametrize("state", ["running", "queued", "bad"])
def test_nobody_is_reminded_of_what_goes_on(state: str) -> None:
    assert news.overdue({**IDLE, "state": state}, NOW) is None


@pytest.mark.parametrize(
    ("reminded", "shown", "missed"),
    [
        (NOW - 3600, 0.0, True),
        (NOW - 3600, NOW - 3601, True),
        (NOW - 3600, NOW - 3600, False),
        (NOW - 3600, NOW, False),
        (NOW - 3600, NOW + 9 * DAY, True),  # the clock was set back
        (0, 0.0, False),
    ],
)
def test_a_reminder_that_came_while_nobody_was_here(
    reminded: float, shown: float, missed: bool
) -> None:
    assert news.missed({**IDLE, "reminded": reminded}, NOW, shown) is missed


def test_a_reminder_is_shown_once_and_as_soon_as_there_is_a_desktop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desktop, "_AGAIN", 0.01)
    told: list[Notice] = []
    servers = iter([False, False, True, True])

    async def notified(_self: Desktop, notice: Notice) -> bool:
        there = next(servers)
        if there:
            told.append(notice)
        return there

    monkeypatch.setattr(Desktop, "_notified", notified)

    async def ask_for(_verb: str, _name: str) -> str:
        return ""

    async def scene() -> None:
        for remind_again in (False, False, True):
            shown = Desktop(ask_for, "me", str(tmp_path / "state" / "reminded.json"))
            shown.known(
                [IDLE | {"reminded": time.time() - 60}, {**IDLE, "name": "work", "reminded": 0}]
            )
            if remind_again:
                shown.reminder("home")
            await asyncio.sleep(0.2)
            await shown.close()

    asyncio.run(scene())
    assert [notice.name for notice in told] == ["home", "home"]


@pytest.mark.parametrize(
    ("change", "keys"),
    [
        ({}, []),
        ({"safe": False}, ["eject", "later"]),
        ({"outcome": "failed"}, ["run", "eject", "later"]),
        ({"outcome": "failed", "error": "DriveAbsent", "safe": False}, []),
        ({"outcome": "failed", "powered_off": True}, []),
    ],
)
def test_the_buttons_are_those_that_make_sense(change: dict[str, Any], keys: list[str]) -> None:
    notice = news.finished({**RESULT, **change})
    assert notice is not None
    assert [key for key, _word in notice.actions] == keys


def test_the_buttons_of_a_reminder() -> None:
    here, away = (news.overdue({**IDLE, "state": state}, NOW) for state in ("idle", "absent"))
    assert here is not None
    assert away is not None
    assert [word for _key, word in here.actions] == ["Back up now", "Eject", "Not now"]
    assert [word for _key, word in away.actions] == ["Not now"]


def test_an_eject_is_told() -> None:
    ejected = {**RESULT, "job": "release"}
    notice = news.finished(ejected)
    assert notice is not None
    assert notice.summary == "You can unplug home now"
    notice = news.finished({**ejected, "safe": False, "warnings": ["It is mounted."]})
    assert notice is not None
    assert (notice.summary, notice.body) == ("Don't unplug home yet", "It is mounted.")


def test_whose_news_they_are() -> None:
    assert news.is_ours(IDLE, "me")
    assert not news.is_ours(IDLE, "you")
    assert news.is_ours({**IDLE, "owner": ""}, "you")
    assert news.is_ours({}, "you")


def test_damage_is_told() -> None:
    damage = {"job": "verify", "outcome": "failed", "error": "Damaged"}
    words = {"sentence": "2 files are damaged.", "hint": "Copy.", "warnings": ['"/a" is.', "b"]}
    notice = news.finished({**RESULT, **damage, **words})
    assert notice is not None
    assert notice.summary == "The backup on home is damaged"
    assert notice.body == '2 files are damaged. Copy. "/a" is.'
    assert notice.urgency is Urgency.CRITICAL
    assert news.finished({**RESULT, "job": "verify"}) is None
