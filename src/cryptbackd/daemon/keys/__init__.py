"""Where passphrases come from: a source a file, asked in order, none of them read by us.

A source yields a :class:`Key`, which owns a descriptor (what ``cryptsetup`` will read) or
names a token of the stored header.  A :class:`Chain` lives as long as one run and knows what
was refused in it.  To add a source: write one file, and put it into :func:`sources`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Protocol

import attrs

from ...config import Entry
from ...errors import CryptbackError
from ..agents import Agents

MAX_TRIES = 3
"""Keys that are tried in one run."""


class SourceFailed(CryptbackError):
    """A source that should have a key could not yield it; the next one is asked."""


@attrs.frozen
class Request:
    """What a source is told.  ``entry`` is None while the drive is being enrolled.

    ``purpose`` is ``open``, for a passphrase, or of whoever is there a PIN is wanted:
    ``tpm2-pin``, ``fido2-pin`` (see ``keys.token``).
    """

    name: str
    entry: Entry | None
    purpose: str
    attempt: int
    """1 for the first key of this run."""
    refused: frozenset[str]
    """The names of the sources whose key was wrong in this run."""
    luks_uuid: str = ""
    """Of the volume, where it is known."""


def _not_told(_opened: bool) -> None:
    """Nobody wants to know what became of the key."""


@attrs.define
class Key:
    """A key: ``fd`` (owned, until it is closed) or ``token``; both: ``fd`` has its PIN."""

    source: str
    fd: int | None = None
    token: int = -1
    told: Callable[[bool], None] = _not_told
    """Called once: whether it opened the volume."""

    def close(self) -> None:
        """Close the descriptor; the worker has its own by then, or will get none."""
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None


class Source(Protocol):
    """One place that keys come from."""

    name: str
    """As a person would call it: it stands in the journal."""
    asks_again: bool
    """Whether it may have another key after one was refused."""

    async def key(self, request: Request) -> Key | None:
        """A key, or None where there is nothing; raises SourceFailed.

        Cancelled, it leaves nothing behind: nobody waits for the key any more.
        """
        ...


@attrs.define
class NoKey:
    """No source has a key (any more); ``why`` says it in a sentence."""

    why: str


@attrs.define
class Chain:
    """The sources of one run.  *failed* is told of each source that failed."""

    sources: Sequence[Source]
    name: str
    entry: Entry | None
    failed: Callable[[str, SourceFailed], None]
    luks_uuid: str = ""
    _given: Key | None = None
    """The last one, until it is known what became of it."""
    _refused: set[str] = attrs.field(factory=set)
    _broken: set[str] = attrs.field(factory=set)
    _tries: int = 0

    async def next(self, purpose: str, refused: str = "") -> Key | NoKey:
        """The next key to try; *refused* names the source whose key was wrong just now."""
        if refused:
            self._refused.add(refused)
        self.over(opened=False)
        if self._tries >= MAX_TRIES:
            return NoKey(f"{MAX_TRIES} passphrases were tried, and none was right.")
        for source in self.sources:
            if source.name in self._broken:
                continue
            if source.name in self._refused and not source.asks_again:
                continue
            request = Request(
                self.name,
                self.entry,
                purpose,
                self._tries + 1,
                frozenset(self._refused),
                self.luks_uuid,
            )
            try:
                key = await source.key(request)
            except SourceFailed as exc:
                self._broken.add(source.name)
                self.failed(source.name, exc)
                continue
            if key is not None:
                self._tries += int(key.token < 0)
                self._given = key
                return key
        if self._refused:
            return NoKey("The passphrase was wrong, and no other was given.")
        return NoKey("No passphrase was found, and nobody answered the question for it.")

    def over(self, *, opened: bool) -> None:
        """The last key *opened* the volume, or did not (and never will)."""
        if self._given is not None:
            key, self._given = self._given, None
            key.told(opened)


def sources(agents: Agents) -> list[Source]:
    """Every source, in the order in which they are asked (docs/keys.md says why)."""
    from .agent import Agent
    from .ask_password import AskPassword
    from .credential import EncryptedCredential, PlainCredential
    from .root_keyring import RootKeyring
    from .token import Tokens

    return [
        # Who does not know the PIN may know a passphrase: for that another one asks.
        Tokens([Agent(agents), AskPassword()]),
        EncryptedCredential(),
        PlainCredential(),
        Agent(agents),
        RootKeyring(),
        AskPassword(),
    ]
