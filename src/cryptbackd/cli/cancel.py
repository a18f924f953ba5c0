"""``cryptback cancel``: stop what is being done, and wait until everything is locked."""

from __future__ import annotations

import asyncio

import click

from . import bus, follow, output


@click.command()
@click.argument("name")
@output.json_option
def cancel(name: str, as_json: bool) -> None:
    """Stop what is being done with the drive NAME.

    Returns when everything is locked again; no version is made.
    """
    output.finish(lambda: asyncio.run(_cancel(name, as_json)), as_json)


async def _cancel(name: str, as_json: bool) -> int:
    async with bus.connected(fds=False) as client:
        await client.listen()
        (runs,) = await client.call("Cancel", "s", name)
        results = await follow.follow(client, name, runs, follow.display(as_json))
    for result in results.values():
        if as_json:
            output.dump({"event": "result", **result})
        elif result["outcome"] == "cancelled":
            output.say(f"{name}: {result['sentence']} Everything is locked.")
        else:
            follow.tell(result)
    # To have cancelled is what was asked for: no failure.
    codes = [output.exit_code(r) for r in results.values() if r["outcome"] != "cancelled"]
    return max(codes, default=output.DONE)
