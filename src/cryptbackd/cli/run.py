"""``cryptback run``: a backup now, and the wait for its end."""

from __future__ import annotations

import asyncio

import click

from . import bus, follow, output


@click.command()
@click.argument("name")
@click.option("--full", is_flag=True, help="Compare both sides in full.")
@click.option(
    "--accept-changes",
    is_flag=True,
    help="Go on although the drive, or a source, is not as it was left.",
)
@click.option("--no-wait", is_flag=True, help="Return as soon as it has begun.")
@output.json_option
def run(name: str, full: bool, accept_changes: bool, no_wait: bool, as_json: bool) -> None:
    """Back up to the drive NAME now.

    Waits for the end and shows how far it is; Ctrl-C cancels in order.
    """
    output.finish(lambda: asyncio.run(_run(name, full, accept_changes, no_wait, as_json)), as_json)


async def _run(name: str, full: bool, accept: bool, no_wait: bool, as_json: bool) -> int:
    async with bus.connected(fds=False) as client:
        await client.listen()
        (run_id,) = await client.call("Run", "sa{sv}", name, bus.options(full=full, accept=accept))
        if as_json:
            output.dump({"event": "begun", "name": name, "run": run_id})
        if no_wait:
            if not as_json:
                output.say(f"{name}: begun; `cryptback status {name}` shows how far it is.")
            return output.DONE
        results = await follow.follow(client, name, [run_id], follow.display(as_json))
    result = results[run_id]
    if as_json:
        output.dump({"event": "result", **result})
    else:
        follow.tell(result)
    return output.exit_code(result)
