"""What a person is told on the desktop, and when.  Pure: from what the daemon says to words."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any

import attrs

from ..text import count, printable

Values = Mapping[str, Any]
"""A drive or a result, by the names that they have on the bus."""

_BACKUPS = ("backup", "init")
_BEGUN = ("running", "not-answering")

STEP = 10
"""Percent between two updates of the same notification."""
DAY = 86_400.0

RUN = ("run", "Back up now")
EJECT = ("eject", "Eject")
LATER = ("later", "Not now")


class Urgency(IntEnum):
    """As the Desktop Notifications Specification has it."""

    LOW = 0
    NORMAL = 1
    CRITICAL = 2


@attrs.frozen
class Notice:
    """One notification; that of the same drive before it is replaced."""

    name: str
    summary: str
    body: str = ""
    urgency: Urgency = Urgency.NORMAL
    progress: int | None = None
    """Percent."""
    actions: tuple[tuple[str, str], ...] = ()
    """Pairs of a key and what the button says."""
    passing: bool = False
    """Stays for as long as that lasts what it tells of, and no longer."""
    update: bool = False
    """Worth telling on the notification that is there already, but not another one."""


def is_ours(drive: Values, user: str) -> bool:
    """Whether the *user* is to hear of the *drive*."""
    return not drive.get("owner") or drive["owner"] == user


def changed(before: Values, now: Values) -> Notice | None:
    """What the change of a drive from *before* (empty: not known) to *now* is worth."""
    name = str(now["name"])
    if now["state"] != "running" or now["job"] not in _BACKUPS:
        return None
    new = before.get("run") != now["run"] or before.get("state") not in _BEGUN
    share = _share(now)
    if not new and (share is None or (_share(before) or 0) // STEP == share // STEP):
        return None
    body = "Please don't unplug it." if not share else f"{share} % done. Please don't unplug it."
    return Notice(
        name, f"Backing up to {name}", body, Urgency.LOW, share or 0, (EJECT,),
        passing=True, update=not new,
    )  # fmt: skip


def _share(drive: Values) -> int | None:
    total = int(drive.get("total") or 0)
    if drive.get("phase") != "syncing" or total <= 0:
        return None
    return min(100, 100 * int(drive["done"]) // total)


def finished(result: Values) -> Notice | None:
    """What the end of a job is worth."""
    name, outcome = str(result["name"]), result["outcome"]
    free = f"You can unplug {name} now"
    away = bool(result["safe"] or result["powered_off"])
    why = printable(f"{result['sentence']} {result['hint']}".strip(), 400)
    warnings = [printable(str(warning), 200) for warning in result["warnings"]]
    if result["job"] == "release" and result["error"] != "DriveAbsent":
        if away:
            return Notice(name, free, "It was ejected.")
        why = " ".join([why, *warnings[:1]]).strip()
        return Notice(name, f"Don't unplug {name} yet", why, Urgency.CRITICAL)
    if result["error"] == "Damaged":
        why = " ".join([why, *warnings[:1]])
        return Notice(name, f"The backup on {name} is damaged", why, Urgency.CRITICAL)
    if result["job"] not in _BACKUPS or outcome == "skipped":
        return None
    if outcome in ("done", "warnings"):
        # An enrolment makes a version only where that was asked for.
        backed_up = result["job"] != "init" or bool(result["version"])
        become = "backed up" if backed_up else "enrolled"
        what = "The backup is done" if backed_up else "It is enrolled, and not yet backed up to"
        body = f"{what}."
        if warnings:
            body = f"{what}, with {count(len(warnings), 'warning')}: {warnings[0]}"
        elif backed_up:
            body = f"{what}: {count(int(result['changed_files']), 'file')} changed."
        summary = free if away else f"{name} is {become}, but don't unplug it yet"
        if away:
            return Notice(name, summary, body)
        return Notice(name, summary, body, Urgency.CRITICAL, actions=(EJECT, LATER))
    if outcome == "cancelled":
        summary = free if away else f"The backup to {name} was stopped"
        return Notice(name, summary, why or "The backup was stopped.")
    if away:
        why = f"{why} You can unplug it now."
    gone = result["powered_off"] or result["error"] == "DriveAbsent"
    again = () if gone else (RUN, EJECT, LATER)
    return Notice(name, f"The backup to {name} failed", why, Urgency.CRITICAL, actions=again)


def refused(verb: str, name: str, why: str) -> Notice:
    """What a button says that could not be done."""
    what = "ejected" if verb == EJECT[0] else "backed up to now"
    return Notice(name, f"{name} can't be {what}", printable(why, 400))


def missed(drive: Values, now: float, shown: float) -> bool:
    """Whether the daemon's last reminder is still to be shown; *shown* is when one last was.

    It comes when nobody is logged in, too.  (One that was shown in the future was not.)
    """
    reminded = float(drive.get("reminded") or 0)
    return bool(reminded) and not reminded <= shown <= now


def overdue(drive: Values, now: float) -> Notice | None:
    """The daemon's reminder that the last backup is too old."""
    hangs, is_open = drive["state"] == "not-answering", drive.get("phase") == "browsing"
    if drive["state"] not in ("absent", "idle") and not hangs and not is_open:
        return None
    name, last = str(drive["name"]), float(drive.get("last_success") or 0)
    summary = f"{name} has never been backed up"
    if last:
        days = max(0, int((now - last) // DAY))
        long = count(days, "day") if days else "some hours"
        summary = f"{name} has not been backed up for {long}"
    if drive["state"] == "idle":
        return Notice(name, summary, "The drive is plugged in.", actions=(RUN, EJECT, LATER))
    if hangs:
        return Notice(name, summary, "The drive does not answer.", actions=(EJECT, LATER))
    if is_open:
        return Notice(name, summary, "It is open for browsing.", actions=(EJECT, LATER))
    return Notice(name, summary, "Plug the drive in.", actions=(LATER,))
