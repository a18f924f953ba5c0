"""``cryptback eject``: let go of a drive, and say when it may be unplugged."""

from __future__ import annotations

import asyncio

import click

from ..errors import CryptbackError
from . import bus, follow, output


@click.command(short_help="Lock the drive NAME, whatever goes on; it may be pulled then.")
@click.argument("name")
@output.json_option
def eject(name: str, as_json: bool) -> None:
    """Stop what is being done with the drive NAME and lock everything.

    Returns when the drive may be unplugged; until it was, nothing is begun on it again.
    """
    output.finish(lambda: asyncio.run(_eject(name, as_json)), as_json)


async def _eject(name: str, as_json: bool) -> int:
    async with bus.connected(fds=False) as client:
        await client.listen()
        (runs,) = await client.call("Eject", "s", name)
        results = await follow.follow(client, name, runs, follow.display(as_json))
        (drive,) = await client.call("GetDrive", "s", name)
    # A drive that was powered off, or pulled after all was locked, isn't here any more.
    told = [r["safe"] for r in results.values() if r["touched"]]
    safe = all(told) if told else drive["safe"]
    if as_json:
        for result in results.values():
            output.dump({"event": "result", **result})
        output.dump({"event": "ejected", "name": name, "safe": safe})
    failed = [r for r in results.values() if r["outcome"] == "failed"]
    for result in failed:
        output.complain(CryptbackError(f"{name}: {result['sentence']}", result["hint"]))
    if safe:
        if not as_json:
            output.say(f"You may unplug {name} now.")
        return output.DONE
    if failed:
        return output.exit_code(failed[0])
    output.complain(
        CryptbackError(
            f"It was not proven that {name} may be unplugged.",
            f"`cryptback status {name}` and `journalctl -u cryptbackd` tell more.",
        )
    )
    return 1
