"""``python3 -m cryptbackd.lookup UUID``: writes a passphrase from the keyring to standard output.

A process of its own, since a living one would keep copies of the passphrase, and since a
locked collection can block for ever: whoever starts it kills it then.  Its standard output is
a pipe that nobody reads but cryptsetup.  ``--check`` in the place of the UUID only says
whether there is a keyring.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from .secret import secretive
from .text import printable

SERVICE = "cryptback"
"""Under which passphrases are kept; the user is the UUID of the LUKS volume."""
COMMAND = ("/usr/bin/python3", "-I", "-m", "cryptbackd.lookup")

FOUND = 0
NOTHING = 10
"""A keyring, but no such entry in it."""
UNUSABLE = 11
"""No keyring, or it can't be used; the last line of standard error says why."""


class NoKeyring(Exception):
    """The keyring can't be used; says why in a sentence."""


def keyring() -> Any:
    """The backend that the library chose, or that the user did; raises NoKeyring."""
    try:
        import keyring as library
        import keyring.backends.fail  # in Debian 12 it isn't imported by itself
    except ImportError as exc:
        raise NoKeyring("The library keyring is not installed (python3-keyring).") from exc
    try:
        backend = library.get_keyring()
    except Exception as exc:
        raise NoKeyring(f"The keyring can't be used: {printable(str(exc))}.") from exc
    if isinstance(backend, library.backends.fail.Keyring):
        raise NoKeyring("There is no keyring that the library keyring could use.")
    return backend


def reason(exc: Exception) -> str:
    """Why a keyring failed, in a sentence."""
    if type(exc).__name__ == "KeyringLocked":
        return "The keyring is locked."
    return f"The keyring failed: {printable(str(exc) or type(exc).__name__).rstrip('.')}."


def find(uuid: str) -> str | None:
    """The passphrase of the volume *uuid*; raises NoKeyring."""
    backend = keyring()
    try:
        found = backend.get_password(SERVICE, uuid)
    except Exception as exc:
        raise NoKeyring(reason(exc)) from exc
    return None if found is None else str(found)


def main() -> int:
    """Look it up; the exit status."""
    secretive()
    # Whatever a backend prints must not get into the pipe.
    answer = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    try:
        if sys.argv[1:] == ["--check"]:
            print(f"This keyring is used: {keyring().name}.", file=sys.stderr)
            return FOUND
        found = find(sys.argv[1])
    except NoKeyring as exc:
        print(exc, file=sys.stderr)
        return UNUSABLE
    if not found:
        return NOTHING
    try:
        secret = found.encode()
    except UnicodeEncodeError:  # whose text has a piece of it
        print("What the keyring has can't be a passphrase.", file=sys.stderr)
        return UNUSABLE
    os.write(answer, secret)
    return FOUND


if __name__ == "__main__":
    sys.exit(main())
