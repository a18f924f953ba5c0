"""``python3 -m cryptbackd.agent.ask NAME UUID``: asks for a passphrase, and may remember it.

One process for one question, since a living one would keep copies of the answer.  The answer
goes to standard output, which is the daemon's pipe and is closed then.  Standard input says
afterwards whether it opened the volume: only then the person is asked whether the keyring is
to remember it.  It ends with the agent, and takes the question back when it is terminated.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys

from .. import kernel, lookup, secret
from . import pinentry
from .log import Priority, say

WRONG = {
    "": "",
    "keyring": "The passphrase in the keyring is wrong.",
    "answer": "That passphrase was wrong.",
}
"""What the answer before this one was."""
WANTED = {
    "open": ("passphrase", "Passphrase:"),
    "tpm2-pin": ("PIN for this computer's TPM2", "PIN:"),
    "fido2-pin": ("PIN for the FIDO2 token", "PIN:"),
}
"""What is asked for, by the purpose: in a sentence, and before what is typed."""
_VERDICT = 900
"""Seconds after which no verdict is waited for: deriving a key has taken minutes, not more."""
_REMEMBER = 60
"""Seconds for a keyring to take the passphrase in, and for the person to agree to that."""


def main() -> int:
    """Ask; the exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=120)
    parser.add_argument("--wrong", choices=WRONG, default="")
    parser.add_argument("--purpose", choices=WANTED, default="open")
    parser.add_argument("name")
    parser.add_argument("uuid")
    asked = parser.parse_args()
    secret.secretive()
    kernel.die_with_parent(signal.SIGTERM)
    try:
        question = _question(asked.name, asked.purpose, asked.wrong)
        answer = pinentry.ask(os.environ, question, asked.seconds)
    except pinentry.Unanswered as exc:
        say(f"{asked.name}: {exc}")
        return 0
    os.write(1, answer)
    # The pipe is whole when nobody holds it any more; nothing else is to get into it either.
    os.dup2(2, 1)
    signal.alarm(_VERDICT)
    if os.read(0, 16) == b"opened\n" and asked.uuid:
        signal.alarm(2 * _REMEMBER)
        _remember(asked.name, asked.uuid, answer)
    return 0


def _question(name: str, purpose: str, wrong: str) -> list[tuple[str, str]]:
    what, prompt = WANTED[purpose]
    texts = [
        ("SETTITLE", "Backup"),
        (
            "SETDESC",
            f"The backup drive {name} was plugged in, and its {what} is needed to open it.",
        ),
        ("SETPROMPT", prompt),
        ("SETOK", "Open"),
        ("SETCANCEL", "Cancel"),
    ]
    if wrong:
        error = WRONG[wrong] if purpose == "open" else "That PIN was wrong."
        texts.append(("SETERROR", error))
    return texts


def _remember(name: str, uuid: str, answer: bytes) -> None:
    """Offer to keep *answer* in the keyring, if there is one."""
    try:
        backend = lookup.keyring()
        passphrase = answer.decode("utf-8")
    except UnicodeDecodeError:  # whose text has a piece of the passphrase
        say(f"{name}: the passphrase can't be remembered: it is not in UTF-8.")
        return
    except lookup.NoKeyring as exc:
        say(f"{name}: the passphrase can't be remembered: {exc}")
        return
    texts = [
        ("SETTITLE", "Backup"),
        (
            "SETDESC",
            f"The backup drive {name} is open. Shall your keyring remember the passphrase, so that"
            " you are not asked again?",
        ),
        ("SETOK", "Remember"),
        ("SETCANCEL", "Not now"),
    ]
    try:
        if not pinentry.confirm(os.environ, texts, _REMEMBER):
            return
        backend.set_password(lookup.SERVICE, uuid, passphrase)
    except pinentry.Unanswered as exc:
        say(f"{name}: nobody could be asked whether to remember the passphrase: {exc}")
    except Exception as exc:  # whatever a backend raises
        why = lookup.reason(exc)
        say(f"{name}: the passphrase was not remembered: {why}", Priority.WARNING)
    else:
        say(f"{name}: the keyring remembers the passphrase.")


if __name__ == "__main__":
    sys.exit(main())
