"""``cryptback verify``: reads files back from the drive, and names what is damaged."""

from __future__ import annotations

import asyncio
import json

import click

from . import bus, follow, output


def _share(_context: click.Context, _option: click.Parameter, text: str | None) -> float | None:
    """A fraction, written as ``5%``."""
    if text is None:
        return None
    try:
        share = float(text.removesuffix("%")) / 100
    except ValueError:
        share = 0.0
    if not text.endswith("%") or not 0 < share <= 1:
        raise click.BadParameter(f'{text} is not a share such as "5%".')
    return share


@click.command(short_help="Read files back from a drive, and name what is damaged.")
@click.argument("name")
@click.option("--sample", callback=_share, metavar="5%", help="Read a random sample of that size.")
@click.option(
    "--full", is_flag=True, help="Read every file of every version; on btrfs, scrub it, too."
)
@click.option(
    "--at", metavar="WHEN", help='Another version than the newest: "yesterday", "2026-11-20", …'
)
@output.json_option
def verify(name: str, sample: float | None, full: bool, at: str | None, as_json: bool) -> None:
    """Read back what is on the drive NAME, and compare it with what was backed up.

    Without an option all files of the newest version. Each damaged file is named, with the
    versions that hold a good copy. Nothing on the drive is changed; Ctrl-C ends it in order.
    """
    output.finish(lambda: asyncio.run(_verify(name, sample, full, at, as_json)), as_json)


async def _verify(
    name: str, sample: float | None, full: bool, at: str | None, as_json: bool
) -> int:
    options = bus.options(sample=sample, full=full, at=at)
    async with bus.connected(fds=False) as client:
        await client.listen()
        (run,) = await client.call("Verify", "sa{sv}", name, options)
        output.begun(name, run, as_json)
        result = (await follow.follow(client, name, [run], follow.display(as_json)))[run]
    if as_json:
        output.dump({"event": "result", **result, "data": json.loads(result["data"])})
    else:
        follow.tell(result)
    return output.exit_code(result)
