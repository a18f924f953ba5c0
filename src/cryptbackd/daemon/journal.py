"""What the journal is told, and under which message id.

The ids are those of the catalog ``cryptbackd.catalog``, which explains each to a person
(``journalctl -x``).  Foreign text (labels, file names, what tools print) is made printable
here, once, for every line.
"""

from __future__ import annotations

import traceback
from enum import IntEnum

from ..model import Outcome, Phase
from ..text import printable

MESSAGES = {
    "run_begun": "ad1af77e5a2446e3ba86ff8b136ebf57",
    "enrolled": "bd3f3d6c871c409087794fd28db220a5",
    "run_done": "b774334500ae42e48dd52c963ce067f8",
    "run_warnings": "9bd20f32472b4c93bc583241779b601d",
    "run_failed": "0b363182484a4165ab047e79af66b43e",
    "run_cancelled": "01dc1bdc252f45f799596c97eb1d15d0",
    "run_interrupted": "25078d642bf94b1d98ec2748a38bc78b",
    "may_unplug": "fa8e5e39471540ecb244f8f258a4e3c6",
    "drive_older": "813ec19d881c44f4bc2e74073e339abd",
    "header_differs": "cae90d00eab945d8b0e4603747d2ef9d",
    "header_finished": "2679d1b714d949749b3705baf2ad5b6e",
    "damaged": "ce9da7cdfe534cf6bd725b765f802039",
    "kit_written": "bb08d4f99be24dd38846f5ffdbf67245",
    "forgotten": "8b58851a9b3e463e9ff81103d8de1ab8",
    "resize_settled": "0be6edfb028e4532836a1dd587b15eca",
    "not_answering": "5d409ce5663740278e827298e79144bb",
    "config_bad": "745a3c79c2d643a99c08a627f21a98b2",
    "key_source_failed": "4c481d29ba874ab8bd38cd50f796a885",
    "swept": "d851e190cd2648039ceacb72031451c0",
    "comparing_full": "5b0e2c1f6a3d4e0d9b7c86f1d2a4937e",
    "comparing_quick": "c8f4d7130be94a5f8e61a29b05d37c42",
    "version_made": "4684bb2c061b4bba8a2abd616e8ead9d",
    "version_removed": "dc21daf7fafd4d718a3d81c05c57ec2d",
    "reminder": "21ce669715294c57896c9f19a187dd4a",
    "browsing": "e1f4bd0a6f5b4ba1a2a8f1b54b3c0c57",
    "slept_unlocked": "c2cf488b45784c0e8a982cd3f87aa832",
}
"""Message names, as the worker and the daemon use them, and their MESSAGE_ID."""


class Priority(IntEnum):
    """The levels of syslog(3) that are used here."""

    ERROR = 3
    WARNING = 4
    INFO = 6


_TOLD = 60
"""Lines of a traceback; the last ones tell most."""


def mistake(what: str, exc: BaseException | None, *, drive: str = "", run: str = "") -> None:
    """Tell all of a mistake of ours, a line of the traceback an entry."""
    log(f"cryptbackd made a mistake: {what}", Priority.ERROR, drive=drive, run=run)
    lines = "".join(traceback.format_exception(exc)).splitlines() if exc is not None else []
    for line in lines[-_TOLD:]:
        log(line, Priority.ERROR, drive=drive, run=run)


def log(
    text: str,
    priority: int = Priority.INFO,
    *,
    message: str = "",
    drive: str = "",
    run: str = "",
    phase: Phase | None = None,
    outcome: Outcome | None = None,
) -> None:
    """Write one entry.

    *message* is a key of :data:`MESSAGES`; a name that is not known is left out.
    *outcome* only with the last line of a run, when everything is locked.
    """
    from systemd.journal import send  # late: a program that only plans lines needs none

    fields = {
        "PRIORITY": str(int(priority)),
        "SYSLOG_IDENTIFIER": "cryptbackd",
        "MESSAGE_ID": MESSAGES.get(message, ""),
        "CRYPTBACK_DRIVE": printable(drive, 64),
        "CRYPTBACK_RUN": run,
        "CRYPTBACK_PHASE": phase.value if phase is not None else "",
        "CRYPTBACK_OUTCOME": outcome.value if outcome is not None else "",
    }
    send(printable(text, 1000), **{key: value for key, value in fields.items() if value})
