"""``cryptback doctor``: what is wrong with a drive, and putting it right."""

from __future__ import annotations

import asyncio

import click

from . import adopt, bus, follow, output
from .bus import Values


@click.command(short_help="Put the stored LUKS header back onto a drive.")
@click.option(
    "--repair", "name", required=True, metavar="NAME", help="Put the stored LUKS header back."
)
@click.option(
    "--device",
    metavar="DEVICE",
    help="The encrypted partition, when its header is so damaged that it isn't known any more.",
)
@click.option("--yes", is_flag=True, help="Don't ask; for scripts.")
@output.json_option
def doctor(name: str, device: str | None, yes: bool, as_json: bool) -> None:
    """Repair the drive NAME, whose own LUKS header is lost, damaged or forged.

    Shows what is wrong with it, and asks before anything is written. What is there now is
    kept on this computer.
    """
    output.finish(lambda: _doctor(name, device, yes, as_json), as_json)


def _doctor(name: str, device: str | None, yes: bool, as_json: bool) -> int:
    if device is None:
        found = asyncio.run(adopt.look(name))
        if as_json:
            output.dump({"event": "header", **found})
        if found["detached"]:
            adopt.tell(as_json, f"{name} has no header of its own, as was asked for.")
            return output.DONE
        if not found["difference"]:
            adopt.tell(as_json, f"The header on {name} is the stored one: nothing is wrong.")
            return output.DONE
        adopt.tell(as_json, f"The header on {name} is not the stored one. {found['difference']}")
        if found["fingerprint"] == found["stored"] and not found["older"]:
            adopt.tell(as_json, "If you changed the passphrase elsewhere, this takes it back:")
            adopt.tell(as_json, f"`cryptback passphrase {name} --adopt` takes it over instead.")
    else:
        adopt.tell(as_json, f"The beginning of {device} WILL BE OVERWRITTEN by the header")
        adopt.tell(as_json, f"that this computer has stored for {name}.")
    adopt.want_agreement(yes, as_json)
    return adopt.finish(asyncio.run(_repair(name, device, as_json)), as_json)


async def _repair(name: str, device: str | None, as_json: bool) -> Values:
    async with bus.connected(fds=False) as client:
        await client.listen()
        (run,) = await client.call("Repair", "sa{sv}", name, bus.options(device=device))
        output.begun(name, run, as_json)
        return (await follow.follow(client, name, [run], follow.display(as_json)))[run]
