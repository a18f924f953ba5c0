"""Answers that the daemon has given into a pipe, a line of JSON at a time.

The pipe is closed when all lines were read, or whoever reads them stops.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from typing import Any

from ..errors import BY_NAME, CryptbackError
from . import bus
from .bus import Values


def ask(member: str, signature: str, *body: Any) -> Iterator[Values]:
    """The lines of the answer to a question; raises CryptbackError, also when it isn't whole."""

    async def call() -> int:
        async with bus.connected() as client:
            return await client.call_for_fd(member, signature, *body)

    with os.fdopen(asyncio.run(call()), encoding="utf-8") as lines:
        for line in lines:
            values: Values = json.loads(line)
            if "error" in values:
                error = BY_NAME.get(values["error"], CryptbackError)
                raise error(values["sentence"], values["hint"])
            if "end" in values:
                return
            yield values
    raise CryptbackError(
        "The answer broke off in the middle.", "The journal may say why: journalctl -u cryptbackd"
    )


def dump(values: Values) -> str:
    """A document for a program; bytes of names that are no UTF-8 are escaped."""
    return json.dumps(values)
