"""Keyslots and tokens of a header file: what each change is, and what it must have done.

The file is a copy of the stored header that nobody uses yet.  Every passphrase is a
descriptor, as ``secret.kept`` makes it, given to cryptsetup or systemd-cryptenroll unread.  A
passphrase that is a key file counts to its last byte, and one on standard input only to the
end of its line (cryptsetup(8), "Notes on passphrase processing"): there must be no newline.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from .. import luks2
from ..errors import Refused, ToolFailed, WrongPassphrase
from ..hidraw import fido2_tokens
from ..luks2 import FIDO2, RECOVERY, TPM2
from ..run import ENVIRONMENT, Ended, run
from ..secret import name
from .control import Control
from .layers.luks import CRYPTSETUP, KDF_DEADLINE, WRONG_KEY, cost
from .whitelist import Header

CRYPTENROLL = "/usr/bin/systemd-cryptenroll"
TPMS = Path("/sys/class/tpmrm")
ROOT = Path("/")
_PINS_SINCE = 256
"""The version of systemd from which on it takes a new PIN from a descriptor."""
_PIN_CREDENTIALS = {TPM2: "cryptenroll.new-tpm2-pin", FIDO2: "cryptenroll.fido2-pin"}
_PACKAGES = "Debian 13 has what it takes in the packages systemd-cryptsetup and libtss2-*."
_HIDDEN = "The service may open none unless you let it: see cryptbackd(8), FIDO2 tokens."
_ABOUT_FIDO2 = (
    "A token that has a PIN is enrolled with --pin. After three wrong ones it wants to be pulled"
    " out and plugged in again. Debian 13 has what it takes in the packages systemd-cryptsetup and"
    " libfido2-1."
)
KINDS = {"tpm2": TPM2, "fido2": FIDO2, "recovery-key": RECOVERY}
"""What a person calls the tokens."""


@attrs.frozen
class Keyslots:
    """The header file *node*, and what a new keyslot of it is to cost (see ``luks.cost``)."""

    node: str
    control: Control
    pbkdf_memory: int | None = None
    pbkdf_iterations: int | None = None

    def opened_by(self, passphrase: int) -> int:
        """The number of the keyslot that *passphrase* opens; raises WrongPassphrase."""
        ended = self._cryptsetup("open", "--test-passphrase", "--verbose", stdin=passphrase)
        found = re.search(rb"slot (\d+) unlocked", ended.out)
        if found is None:
            raise ToolFailed(f"cryptsetup did not say which keyslot it opened: {ended.complaint}")
        return int(found[1])

    def add(self, current: int, new: int) -> None:
        """Add a passphrase."""
        self._cryptsetup("luksAddKey", *self._cost, about=name(new), stdin=current, fd=new)

    def change(self, current: int, new: int) -> None:
        """Change a passphrase; its keyslot keeps its number."""
        self._cryptsetup("luksChangeKey", *self._cost, about=name(new), stdin=current, fd=new)

    def remove(self, passphrase: int) -> None:
        """Remove the keyslot that *passphrase* opens."""
        self._cryptsetup("luksRemoveKey", stdin=passphrase)

    def remove_rest(self, passphrase: int, keep: int) -> set[int]:
        """After a change: remove what *passphrase* still opens, but for the keyslot *keep*."""
        gone: set[int] = set()
        while True:
            try:
                slot = self.opened_by(passphrase)
            except WrongPassphrase:
                return gone
            if slot == keep:  # it was changed to itself
                return gone
            self.remove(passphrase)
            gone.add(slot)

    def remove_all(self, passphrase: int, slot: int, stored: Header) -> set[int]:
        """Remove every keyslot that *passphrase* opens, *slot* first; which these were."""
        gone = set()
        while True:
            gone.add(slot)
            want_left(stored, gone)
            self.remove(passphrase)
            try:
                slot = self.opened_by(passphrase)
            except WrongPassphrase:
                return gone

    def remove_tokens(self, current: int, tokens: list[luks2.Token]) -> None:
        """Remove tokens with their keyslots; *current* opens one that stays."""
        for token in tokens:
            for slot in token.keyslots:
                words = ("--key-file", name(current))
                self._cryptsetup("luksKillSlot", *words, about=str(slot), fd=current)
            run([CRYPTSETUP, "token", "remove", "--token-id", str(token.number), self.node])

    def recovery_key(self, current: int, out: int) -> None:
        """Make a recovery key, which goes to *out*: the only thing printed there."""
        self._cryptenroll("--recovery-key", current=current, stdout=out)

    def enroll(self, kind: str, current: int, pin: int | None, place: Path) -> None:
        """Have the TPM2 or a FIDO2 token open the volume, with a PIN or without."""
        asked = "no" if pin is None else "yes"
        words = {
            TPM2: ["--tpm2-device=auto", f"--tpm2-with-pin={asked}"],
            FIDO2: ["--fido2-device=auto", f"--fido2-with-client-pin={asked}"],
        }[kind]
        with _credential(place, _PIN_CREDENTIALS[kind], pin) as directory:
            environment = {"CREDENTIALS_DIRECTORY": str(directory)}
            fds = [] if pin is None else [pin]
            self._cryptenroll(*words, current=current, fds=fds, environment=environment)

    def try_token(self, token: luks2.Token, pin: int | None) -> None:
        """Open the volume key with *token*, as a plug will do it; raises Refused."""
        if pin is not None:
            os.lseek(pin, 0, os.SEEK_SET)
        words = ["--test-passphrase", "--token-only", "--token-id", str(token.number)]
        ended = run(
            [CRYPTSETUP, "open", "--type", "luks2", *words, self.node],
            stdin=pin,
            deadline=KDF_DEADLINE,
            ok=None,
            interrupt=self.control.interrupt,
        )
        if ended.status != 0:
            raise Refused(
                f"What was enrolled does not open the volume: {ended.complaint}; nothing was"
                " changed.",
                _PACKAGES,
            )

    @property
    def _cost(self) -> list[str]:
        return ["--pbkdf", "argon2id", *cost(self.pbkdf_memory, self.pbkdf_iterations)]

    def _cryptsetup(
        self,
        action: str,
        *words: str,
        about: str | None = None,
        stdin: int | None = None,
        fd: int | None = None,
    ) -> Ended:
        """Run an action; *about* is what it names after the header, *fd* a key file of it."""
        plain = ["--batch-mode", "--disable-external-tokens", "--type", "luks2"]
        if stdin is not None:
            os.lseek(stdin, 0, os.SEEK_SET)
        ended = run(
            [CRYPTSETUP, action, *plain, *words, self.node, *([about] if about else [])],
            stdin=stdin,
            pass_fds=[fd] if fd is not None else [],
            deadline=KDF_DEADLINE,
            ok=None,
            interrupt=self.control.interrupt,
        )
        if ended.status == WRONG_KEY:
            raise WrongPassphrase("That passphrase does not open the drive; nothing was changed.")
        if ended.status != 0:
            raise ToolFailed(f"cryptsetup {action} failed: {ended.complaint}")
        return ended

    def _cryptenroll(
        self,
        *words: str,
        current: int,
        stdout: int | None = None,
        fds: list[int] | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        ended = run(
            [CRYPTENROLL, f"--unlock-key-file={name(current)}", *words, self.node],
            stdout=stdout,
            pass_fds=[current, *(fds or [])],
            environment={**ENVIRONMENT, **(environment or {})},
            deadline=KDF_DEADLINE,
            ok=None,
            interrupt=self.control.interrupt,
        )
        if ended.status != 0:
            hint = _ABOUT_FIDO2 if "--fido2-device=auto" in words else _PACKAGES
            told = ended.complaint.rstrip(".")
            raise Refused(f"systemd-cryptenroll: {told}; nothing was changed.", hint)


@contextmanager
def _credential(place: Path, credential: str, fd: int | None) -> Iterator[Path]:
    """A directory of credentials with just this one: a name for the descriptor, no file.

    Without a descriptor the name is that of a directory, which can't be read: where there was
    nothing, systemd-cryptenroll would ask whoever is there, and wait for them for ever.
    """
    directory = place / "credentials"
    directory.mkdir(mode=0o700)
    link = directory / credential
    link.symlink_to(directory if fd is None else name(fd))
    try:
        yield directory
    finally:
        link.unlink()
        directory.rmdir()


def want_tools(kind: str, *, pin: bool) -> None:
    """Raise Refused where a token of this *kind* can't be made here, before anything is done."""
    if not os.path.exists(CRYPTENROLL):
        raise Refused(
            "The program systemd-cryptenroll is not installed; nothing was changed.",
            "apt install systemd-cryptsetup",
        )
    if kind == TPM2 and not any(TPMS.glob("*")):
        raise Refused(
            "This computer has no TPM2 that the kernel knows of; nothing was changed.",
            "It may be switched off in the firmware's settings.",
        )
    if kind == FIDO2:
        _want_fido2(fido2_tokens(ROOT))
    if pin and _version() < _PINS_SINCE:
        raise Refused(
            f"A PIN can be set from systemd {_PINS_SINCE} on, and this one is older; nothing was"
            " changed.",
            "Enrol it without --pin.",
        )


def _want_fido2(tokens: list[Path]) -> None:
    if not tokens:
        raise Refused(
            "There is no FIDO2 token to be seen; nothing was changed.",
            "Plug it in beside the drive.",
        )
    if not any(map(_opens, tokens)):
        raise Refused("The FIDO2 token can't be opened; nothing was changed.", _HIDDEN)


def _opens(node: Path) -> bool:
    try:
        os.close(os.open(node, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _version() -> int:
    words = run([CRYPTENROLL, "--version"]).out.split()
    return int(words[1]) if len(words) > 1 and words[1].isdigit() else 0


def want_one_tpm2(header: Header) -> None:
    """Raise Refused where the TPM2 is enrolled: a second token would open it past a PIN."""
    if any(token.kind == TPM2 for token in header.tokens):
        raise Refused(
            "A TPM2 is enrolled already; nothing was changed.",
            "`remove --what tpm2` removes it.",
        )


def want_left(header: Header, gone: set[int]) -> None:
    """Raise Refused when, with the keyslots *gone*, nothing opens the drive anywhere else."""
    if not header.typed - gone:
        raise Refused(
            "That is the last passphrase of the drive; nothing was changed.",
            "Add another one, or a recovery key, first. A TPM2 or FIDO2 token alone would leave"
            " nothing to open the drive with when this computer, or the token, is gone.",
        )


def judge(before: Header, after: Header, *, added: int = 0, gone: set[int] | None = None) -> None:
    """Raise ToolFailed unless *after* is *before* with just this change."""
    gone = gone or set()
    fresh = after.keyslots - before.keyslots
    conditions: list[tuple[Callable[[], bool], str]] = [
        (lambda: after.same_volume(before), "it is another volume's"),
        (lambda: after.seqid > before.seqid, "it was not changed"),
        (lambda: before.keyslots - after.keyslots == gone, "other keyslots are gone"),
        (lambda: len(fresh) == added, "other keyslots are new"),
        (lambda: bool(after.typed), "no passphrase is left"),
    ]
    for holds, what in conditions:
        if not holds():
            raise ToolFailed(
                f"The changed header is not as it should be: {what}. The old one stays."
            )
