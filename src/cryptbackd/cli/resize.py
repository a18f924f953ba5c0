"""``cryptback resize``: a longer or shorter container."""

from __future__ import annotations

import asyncio

import click

from .. import sizes
from . import bus, follow, output


def _size(_context: click.Context, _argument: click.Parameter, value: str) -> str:
    try:
        sizes.parse(value)
    except ValueError as exc:
        raise click.BadParameter(str(exc)) from exc
    return value


@click.command()
@click.argument("name")
@click.argument("size", callback=_size)
@output.json_option
def resize(name: str, size: str, as_json: bool) -> None:
    """Make the container on the drive NAME longer or shorter.

    SIZE is the size that it is to have (8G), by how much it is to grow (+512M), or max: all
    that is free on the drive, but for a small reserve. The drive must be plugged in; it is
    unlocked before anything is changed. Whatever interrupts it, the change is finished or
    undone when the drive is opened next.
    """
    output.finish(lambda: asyncio.run(_resize(name, size, as_json)), as_json)


async def _resize(name: str, size: str, as_json: bool) -> int:
    async with bus.connected(fds=False) as client:
        await client.listen()
        (run_id,) = await client.call("Resize", "ss", name, size)
        output.begun(name, run_id, as_json)
        results = await follow.follow(client, name, [run_id], follow.display(as_json))
    result = results[run_id]
    if as_json:
        output.dump({"event": "result", **result})
    else:
        follow.tell(result)
    return output.exit_code(result)
