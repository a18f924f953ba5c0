"""``cryptback history``: the runs that were."""

from __future__ import annotations

import asyncio
import time

import click

from ..text import clock, count, size
from . import bus, output
from .bus import Values


@click.command()
@click.argument("name", required=False)
@click.option(
    "--limit",
    type=click.IntRange(1, 1000),
    default=20,
    show_default=True,
    help="How many runs, counted from the last.",
)
@output.json_option
def history(name: str | None, limit: int, as_json: bool) -> None:
    """List the last runs of all drives, or of the drive NAME."""
    output.finish(lambda: asyncio.run(_history(name, limit, as_json)), as_json)


async def _history(name: str | None, limit: int, as_json: bool) -> int:
    async with bus.connected(fds=False) as client:
        (runs,) = await client.call("GetHistory", "su", name or "", limit)
    if as_json:
        output.dump({"runs": runs})
    elif not runs:
        output.say("Nothing was run yet.")
    else:
        output.say_lines([line for run in runs for line in _lines(run)])
    return output.DONE


def _lines(run: Values) -> list[str]:
    begun = time.strftime("%Y-%m-%d %H:%M", time.localtime(run["started"]))
    head = f"{begun}  {run['name']}  {run['job']}  {run['outcome'] or 'goes on'}"
    if run["finished"]:
        head += f" in {clock(run['finished'] - run['started'])}"
    if run["version"]:
        head += (
            f": {count(run['files'], 'file')}, {size(run['size'])};"
            f" {count(run['changed_files'], 'file')} changed ({size(run['changed_bytes'])})"
        )
    elif run["sentence"]:
        head += f": {run['sentence']}"
    return [head, *(f"  warning: {warning}" for warning in run["warnings"])]
