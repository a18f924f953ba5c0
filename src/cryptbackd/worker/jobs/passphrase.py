"""Passphrases, tokens and recovery keys: first in the stored header, then in the drive's own.

The change is made in a copy of the stored header, held against what it should have done, and
put in its place in one step.  Until then nothing is changed, whatever happens; from then on it
is, and what the drive still lacks of it a later plug brings (``worker.own_header``).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import attrs

from ... import config, kits, protocol
from ...errors import DriveFailed, Refused
from ...luks2 import RECOVERY
from ...model import Outcome, Phase, RunResult
from ...secret import kept
from .. import header as headers
from .. import keyslots, own_header, whitelist, workspace
from ..control import Control
from ..keyslots import KINDS, Keyslots
from ..whitelist import Header
from .backup import proven_free

ACTIONS = ("add", "change", "remove", "enroll-tpm2", "enroll-fido2", "recovery-key")


@attrs.frozen
class Options:
    """What was asked for.

    ``what``: what is removed, a ``passphrase`` or a kind of token.  ``pin``: the token that is
    enrolled is to ask for one.  ``pbkdf_memory`` in KiB.
    """

    action: str
    what: str = "passphrase"
    pin: bool = False
    pbkdf_memory: int | None = None
    pbkdf_iterations: int | None = None

    @staticmethod
    def from_message(raw: dict[str, Any]) -> Options:
        """The options in a ``Start``; raises Refused."""
        known = {field.name for field in attrs.fields(Options)}
        options = Options(**{key: value for key, value in raw.items() if key in known})
        if options.action not in ACTIONS:
            raise Refused(f"There is no such change of passphrases: {options.action}.")
        if options.what != "passphrase" and options.what not in KINDS:
            raise Refused(f"{options.what} can't be removed.")
        return options


@attrs.frozen
class _Change:
    """What was done to the copy: how many keyslots are new, which are gone, and a sentence."""

    sentence: str
    added: int = 0
    gone: frozenset[int] = frozenset()


def passphrase(start: protocol.Start, control: Control) -> RunResult:
    """Change how the drive of the entry ``start.name`` is opened; see :class:`Options`."""
    options = Options.from_message(start.options)
    entry = config.parse(start.entry, start.name)
    stored = headers.load(start.name)
    if options.action == "enroll-tpm2":
        keyslots.want_one_tpm2(stored)
    if options.action.startswith("enroll-"):
        keyslots.want_tools(KINDS[options.action.removeprefix("enroll-")], pin=options.pin)
    place = workspace.make(start.name)
    control.phase(Phase.ATTACHING)
    with (
        proven_free(start.device, control),
        own_header.on_drive(entry, start.device, place) as drive,
    ):
        own_header.settle(start.name, stored, drive, control)
        _want_same(start.name, stored, drive)
        control.phase(Phase.CHANGING)
        with headers.copied(start.name) as copy:
            change = _change(options, stored, copy, place, control)
            fresh = whitelist.parse(copy.read_bytes(), stored=True)
            keyslots.judge(stored, fresh, added=change.added, gone=set(change.gone))
            # The last moment to stop: from here on it is done to its end.
            control.check()
            headers.replace(start.name, copy)
        next_ = "there is no other" if stored.detached else "the drive's own is next"
        control.say(f"the stored LUKS header is changed; {next_}.")
        bring(start.name, fresh, drive)
    control.phase(Phase.FINISHED)
    return RunResult(
        Outcome.WARNINGS if control.warnings else Outcome.DONE,
        change.sentence + _about_kit(start.name),
        safe=control.safe,
        warnings=control.warnings.told,
    )


def _about_kit(name: str) -> str:
    if not kits.noted(name):
        return ""
    return " The recovery kit has the header from before: write a new one, and destroy the old."


def _want_same(name: str, stored: Header, drive: int) -> None:
    difference = headers.difference(stored, drive)
    if difference:
        raise Refused(
            "The LUKS header on the drive is not the one that this computer stored."
            f" {difference} Nothing was changed.",
            f"`cryptback passphrase {name} --adopt` takes over a passphrase that was changed"
            f" elsewhere; `cryptback doctor --repair {name}` puts the stored header back.",
        )


def bring(name: str, stored: Header, drive: int) -> None:
    """Write the stored header to the opened *drive*; raises DriveFailed."""
    try:
        own_header.put(stored, drive)
    except DriveFailed as exc:
        raise DriveFailed(
            f"{exc.sentence} The stored header has the change, the drive's own has not.",
            "The next plug tries again. If the drive is failing, enrol another one.",
        ) from exc
    headers.settled(name)


@contextmanager
def given(control: Control, purpose: str) -> Iterator[int]:
    """The passphrase that whoever asked gives for *purpose*, unread; see ``secret.kept``."""
    _key, fd = control.key(purpose)
    with ExitStack() as stack:
        stack.callback(os.close, fd)
        yield stack.enter_context(kept(fd, interrupt=control.interrupt))


def _change(options: Options, stored: Header, copy: Path, place: Path, control: Control) -> _Change:
    slots = Keyslots(str(copy), control, options.pbkdf_memory, options.pbkdf_iterations)
    with given(control, "current") as current:
        slot = slots.opened_by(current)
        match options.action:
            case "add":
                with given(control, "new") as new:
                    slots.add(current, new)
                    slots.opened_by(new)
                return _Change("A passphrase was added.", added=1)
            case "change":
                if slot not in _passphrases(stored):
                    raise Refused(
                        "That is the recovery key, which is not changed but replaced.",
                        "`remove --what recovery-key`, and then `recovery-key` again.",
                    )
                with given(control, "new") as new:
                    slots.change(current, new)
                    changed = slots.opened_by(new)
                    gone = slots.remove_rest(current, changed)
                return _Change("The passphrase was changed.", gone=frozenset(gone))
            case "remove" if options.what == "passphrase":
                return _remove(stored, slots, slot, current)
            case "remove":
                return _remove_tokens(stored, slots, slot, current, KINDS[options.what])
            case "recovery-key":
                _key, out = control.key("recovery-key")
                try:
                    slots.recovery_key(current, out)
                finally:
                    os.close(out)
                return _Change("A recovery key was made.", added=1)
            case _:
                kind = KINDS[options.action.removeprefix("enroll-")]
                return _enroll(stored, slots, current, kind, options.pin, place, control)


def _passphrases(header: Header) -> set[int]:
    return set(header.keyslots) - {n for token in header.tokens for n in token.keyslots}


def _remove(stored: Header, slots: Keyslots, slot: int, current: int) -> _Change:
    if slot not in _passphrases(stored):
        raise Refused(
            "That is the recovery key, not a passphrase; nothing was changed.",
            "`remove --what recovery-key` removes it, and asks for a passphrase that stays.",
        )
    gone = slots.remove_all(current, slot, stored)
    return _Change("The passphrase was removed.", gone=frozenset(gone))


def _remove_tokens(stored: Header, slots: Keyslots, slot: int, current: int, kind: str) -> _Change:
    found = [token for token in stored.tokens if token.kind == kind]
    gone = {n for token in found for n in token.keyslots}
    if not found:
        raise Refused("The drive has none of that; nothing was changed.")
    keyslots.want_left(stored, gone)
    if slot in gone:
        raise Refused(
            "That is what would be removed; nothing was changed.",
            "Give a passphrase that stays.",
        )
    slots.remove_tokens(current, found)
    what = "The recovery key was removed." if kind == RECOVERY else "The token was removed."
    return _Change(what, gone=frozenset(gone & stored.keyslots))


def _enroll(
    stored: Header,
    slots: Keyslots,
    current: int,
    kind: str,
    pin: bool,
    place: Path,
    control: Control,
) -> _Change:
    with ExitStack() as stack:
        fd = stack.enter_context(given(control, "pin")) if pin else None
        slots.enroll(kind, current, fd, place)
        known = {token.number for token in stored.tokens}
        after = whitelist.parse(Path(slots.node).read_bytes(), stored=True)
        fresh = [token for token in after.tokens if token.number not in known]
        if pin and not all(token.pin for token in fresh):
            # systemd-cryptenroll takes that lightly, and anybody who has the token could open it.
            raise Refused(
                "The token has no PIN; nothing was changed.",
                "Give it one first, or enrol it without --pin.",
            )
        if len(fresh) == 1 and fresh[0].kind == KINDS["tpm2"]:
            slots.try_token(fresh[0], fd)
    return _Change(_ENROLLED[kind], added=1)


_ENROLLED = {
    KINDS["tpm2"]: "The TPM2 of this computer opens the drive from now on.",
    KINDS["fido2"]: "The FIDO2 token opens the drive from now on.",
}
