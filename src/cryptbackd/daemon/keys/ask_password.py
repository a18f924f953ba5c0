"""Asking whoever is there: ``systemd-ask-password``.

It reaches the console, plymouth and every agent of systemd's protocol (a terminal's, a
desktop's).  The answer goes into a pipe whose other end is the key.  The question ends with
the daemon (``setpriv --pdeathsig``), and when nobody waits for the answer any more.
"""

from __future__ import annotations

import os
import signal

import attrs

from ...errors import ToolFailed
from .. import children
from . import Key, Request, SourceFailed

_PATIENCE = 120
"""Seconds that a question stands."""
_WANTED = {"tpm2-pin": "PIN of this computer's TPM2", "fido2-pin": "PIN of the FIDO2 token"}


@attrs.define
class AskPassword:
    """A question to a person; the only source that may be asked again after a wrong answer."""

    name: str = "prompt"
    asks_again: bool = True

    async def key(self, request: Request) -> Key | None:
        """The answer, unread in a pipe; None when nobody answered."""
        what = _WANTED.get(request.purpose, "Passphrase")
        question = f"{what} for the backup drive {request.name}:"
        if self.name in request.refused:
            question = f"That was wrong. {question}"
        reading, writing = os.pipe2(os.O_CLOEXEC)
        answered = False
        try:
            try:
                ended = await children.output(
                    [
                        "/usr/bin/setpriv", "--pdeathsig", "TERM", "--",
                        "/usr/bin/systemd-ask-password", "--no-tty", f"--timeout={_PATIENCE}",
                        f"--id=cryptback:{request.name}", "--icon=drive-removable-media",
                        question,
                    ],
                    deadline=_PATIENCE + 30.0,
                    stdout=writing,
                    on_cancel=signal.SIGTERM,  # so that it takes its question back
                )  # fmt: skip
            finally:
                os.close(writing)
            answered = ended.status == 0
        except ToolFailed as exc:
            raise SourceFailed(f"Nobody could be asked: {exc.sentence}", exc.hint) from exc
        finally:
            if not answered:
                os.close(reading)
        return Key(self.name, reading) if answered else None
