"""``cryptback close``: end browsing, whatever is still open."""

from __future__ import annotations

import asyncio

import click

from ..errors import CryptbackError
from . import bus, follow, mount, output
from .bus import Values


@click.command(short_help="End the browsing of NAME, or of all drives.")
@click.argument("name", required=False)
@output.json_option
def close(name: str | None, as_json: bool) -> None:
    """Lock the drive NAME again that `browse` opened; without NAME, each that is open for you.

    Returns when it is locked. Programs that still have files of it open get errors.
    """
    output.finish(lambda: asyncio.run(_close(name, as_json)), as_json)


async def _close(name: str | None, as_json: bool) -> int:
    results: list[Values] = []
    failed: list[CryptbackError] = []
    try:
        async with bus.connected(fds=False) as client:
            await client.listen()
            for each in [name] if name is not None else await _mine(client):
                # One that was over in that moment keeps no other open.
                try:
                    (runs,) = await client.call("Close", "s", each)
                except CryptbackError as exc:
                    failed.append(exc)
                    continue
                ended = await follow.follow(client, each, runs, follow.display(as_json))
                results += ended.values()
    finally:
        for where in list(mount.dead()):
            mount.unmount(where)  # whoever was to do that was killed
    for result in results:
        if as_json:
            output.dump({"event": "result", **result})
        else:
            follow.tell(result)
    if failed:
        raise failed[0]
    if not results and not as_json:
        output.say("Nothing is open for browsing.")
    # To have stopped it is what was asked for: no failure.
    codes = [output.exit_code(r) for r in results if r["outcome"] != "cancelled"]
    return max(codes, default=output.DONE)


async def _mine(client: bus.Client) -> list[str]:
    (drives,) = await client.call("ListDrives")
    return [drive["name"] for drive in drives if drive["shown_to"] == mount.me()]
