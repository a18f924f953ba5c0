"""``cryptback forget``: this computer knows a drive no more.  The drive itself is not touched."""

from __future__ import annotations

import asyncio
import json

import click

from ..config import check_name
from . import adopt, bus, credential, output
from .bus import Values


@click.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Don't ask; for scripts.")
@output.json_option
def forget(name: str, yes: bool, as_json: bool) -> None:
    """Forget the drive NAME: its entry, its history, and the passphrase stored for it.

    The drive is not touched, and may be enrolled again by `init --adopt`. Its LUKS header stays
    on this computer, unless a recovery kit has it.
    """
    output.finish(lambda: _forget(name, yes, as_json), as_json)


def _forget(name: str, yes: bool, as_json: bool) -> int:
    output.want_root()
    check_name(name)
    asyncio.run(_known(name))
    adopt.tell(as_json, f"This computer will forget {name}: its entry, its history, what it knows")
    adopt.tell(
        as_json, "of the files on it, and the passphrase stored for it. What is on the drive"
    )
    adopt.tell(as_json, "stays as it is.")
    adopt.want_agreement(yes, as_json)
    done = asyncio.run(_ask(name))
    done["removed"] += credential.remove(name)
    if as_json:
        output.dump({"event": "forgotten", "name": name, **done})
        return output.DONE
    output.say_lines(f"Removed: {path}" for path in done["removed"])
    output.say_lines(f"Kept: {path}" for path in done["kept"])
    output.say(done["why"])
    return output.DONE


async def _known(name: str) -> None:
    """Raise UnknownDrive before anybody is asked."""
    async with bus.connected(fds=False) as client:
        await client.call("GetDrive", "s", name)


async def _ask(name: str) -> Values:
    async with bus.connected(fds=False) as client:
        (answer,) = await client.call("Forget", "s", name)
    done: Values = json.loads(answer)
    return done
