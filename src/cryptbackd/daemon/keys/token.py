"""Tokens of the stored header: the TPM2 of this computer, or a FIDO2 token that is plugged in.

A key of these is the number of a token, by which ``cryptsetup open`` gets the passphrase from
the device itself; with a PIN, also a descriptor that a person's answer comes out of, unread.
A token whose device isn't here is passed over; one that does not open the volume is not tried
again in a run, but for a PIN that was mistyped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import attrs

from ... import luks2, paths
from ...errors import ForgedDrive
from ...hidraw import fido2_tokens
from ...luks2 import FIDO2, TPM2, Token
from . import Key, Request, Source, SourceFailed

_PLUGINS = Path("/usr/lib")
_PINS = 2
"""How often a PIN is asked for in a run: a TPM2 locks itself after too many wrong ones."""


@attrs.frozen
class _Kind:
    """What a person calls the token; its devices below a root; what a question for its PIN is."""

    source: str
    devices: Callable[[Path], Sequence[Path]]
    purpose: str


def _tpm2s(root: Path) -> list[Path]:
    return list(root.glob("sys/class/tpmrm/*"))


_KINDS = {
    TPM2: _Kind("TPM2", _tpm2s, "tpm2-pin"),
    FIDO2: _Kind("FIDO2 token", fido2_tokens, "fido2-pin"),
}


@attrs.define
class Tokens:
    """The tokens in ``/var/lib/cryptbackd/headers/NAME``; *askers* get at a PIN, in order."""

    askers: Sequence[Source]
    directory: Path = attrs.field(factory=lambda: paths.HEADERS)
    root: Path = Path("/")
    plugins: Path = _PLUGINS
    name: str = "token"
    asks_again: bool = True
    _tried: dict[int, int] = attrs.field(factory=dict)

    async def key(self, request: Request) -> Key | None:
        """The next token that may open the volume."""
        for token in self._tokens(request.name):
            kind = _KINDS.get(token.kind)
            tried = self._tried.get(token.number, 0)
            if kind is None or tried >= (_PINS if token.pin else 1):
                continue
            if not kind.devices(self.root):
                continue
            self._want_plugin(token.kind)
            self._tried[token.number] = tried + 1
            if not token.pin:
                return Key(kind.source, token=token.number)
            pin = await self._pin(request, kind, again=tried > 0)
            if pin is not None:
                return Key(kind.source, pin.fd, token.number, pin.told)
            self._tried[token.number] = _PINS
        return None

    async def _pin(self, request: Request, kind: _Kind, *, again: bool) -> Key | None:
        for asker in self.askers:
            refused = frozenset({asker.name}) if again else frozenset[str]()
            key = await asker.key(attrs.evolve(request, purpose=kind.purpose, refused=refused))
            if key is not None:
                return key
        return None

    def _tokens(self, name: str) -> tuple[Token, ...]:
        file = self.directory / name
        try:
            with file.open("rb") as header:
                return luks2.first(header).tokens
        except FileNotFoundError:
            return ()
        except (OSError, ForgedDrive) as exc:
            raise SourceFailed(f"The stored header {file} can't be read: {exc}") from exc

    def _want_plugin(self, kind: str) -> None:
        if not any(self.plugins.glob(f"*/cryptsetup/libcryptsetup-token-{kind}.so")):
            raise SourceFailed(
                f"cryptsetup lacks its plugin for the {_KINDS[kind].source}.",
                "apt install systemd-cryptsetup",
            )
