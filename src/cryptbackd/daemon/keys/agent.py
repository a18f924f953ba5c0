"""The agents of login sessions, which look into a keyring or ask the person in front of them.

They are asked again after a wrong answer, with the word that it was wrong; what they did not
answer once they are not asked again in the same run.  An instance lives as long as a run.
"""

from __future__ import annotations

import attrs

from ...errors import CryptbackError
from ..agents import Agents
from . import Key, Request, SourceFailed


@attrs.define
class Agent:
    """Whoever is logged in, by way of ``cryptback-agent``; see ``daemon.agents``."""

    agents: Agents
    name: str = "agent"
    asks_again: bool = True
    _nobody: bool = False
    """It was dismissed, or stood until its time was over."""

    async def key(self, request: Request) -> Key | None:
        """The answer, unread in a pipe; None when nobody may be asked, or nobody answered."""
        if request.entry is None or self._nobody:
            return None
        try:
            who = await self.agents.for_entry(request.entry)
        except CryptbackError as exc:
            raise SourceFailed(f"No agent could be asked: {exc.sentence}", exc.hint) from exc
        self.agents.note(request.name, who)
        if not who:
            return None
        answer = await self.agents.ask(
            who,
            {
                "name": request.name,
                # A keyring has passphrases: it is not to be looked into for a PIN.
                "uuid": request.luks_uuid if request.purpose == "open" else "",
                "purpose": request.purpose,
                "attempt": request.attempt,
                "wrong": self.name in request.refused,
            },
        )
        if answer is None:
            self._nobody = True
            return None
        return Key(
            self.name,
            answer.fd,
            told=lambda opened: self.agents.tell(answer, opened=opened),
        )
