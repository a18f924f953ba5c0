"""Taking over the header on a drive: ``passphrase NAME --adopt`` and ``init --adopt``."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from io import BytesIO

import attrs
import click

from .. import luks2
from ..errors import ForgedDrive, Refused
from ..text import printable
from . import ask, bus, follow, output
from .bus import Values
from .init import Plan

_LONGEST = 16 << 20
"""Bytes of a header as cryptsetup makes it."""


@attrs.frozen
class Choice:
    """What was said on the command line about a change of the header."""

    name: str
    passphrase_fd: int | None
    yes: bool
    as_json: bool


def adopt(choice: Choice) -> int:
    """Store the header on the drive, if it is the same volume's; the exit code."""
    name = choice.name
    found = asyncio.run(look(name))
    if not found["difference"]:
        raise Refused("The header on the drive is the stored one: there is nothing to adopt.")
    tell(choice.as_json, f"The header on {name} is not the stored one. {found['difference']}")
    if found["fingerprint"] != found["stored"]:
        raise ForgedDrive(
            "It can't be adopted; the stored one stays.",
            f"`cryptback doctor --repair {name}` puts the stored header back.",
        )
    tell(choice.as_json, "It is of the same volume key, so it may be adopted.")
    want_agreement(choice.yes, choice.as_json)
    passphrase = ask.current("A passphrase that it has now", choice.passphrase_fd)
    result = asyncio.run(_adopt(choice, passphrase))
    return finish(result, choice.as_json)


def enrol_again(plan: Plan) -> int:
    """Enrol the drive by the header that is on it; the exit code."""
    header = b"" if plan.header is None else _header(plan.header)
    found = asyncio.run(_survey(plan)) if plan.header is None else _given(plan, header)
    where = found["container"] or found["device"]
    tell(plan.as_json, f"{where} has an encrypted container with the fingerprint")
    tell(plan.as_json, f"  {found['fingerprint']}")
    tell(plan.as_json, "This computer knows nothing of it yet, and will believe what it has now:")
    tell(plan.as_json, "go on only if you know where the drive has been.")
    if plan.as_json:
        output.dump({"event": "survey", **found})
    want_agreement(plan.yes, plan.as_json)
    passphrase = ask.current("Its passphrase", plan.passphrase_fd)
    result = asyncio.run(_enrol_again(plan, found["fingerprint"], passphrase, header))
    return finish(result, plan.as_json)


async def look(name: str) -> Values:
    """What the daemon finds about the header on the drive *name*."""
    async with bus.connected() as client:
        (answer,) = await client.call("Header", "s", name)
    found: Values = json.loads(answer)
    return found


def tell(as_json: bool, text: str) -> None:
    """A line, where a person reads."""
    if not as_json:
        output.say(text)


def want_agreement(yes: bool, as_json: bool) -> None:
    """Ask whether to go on; raises Refused unless somebody says so."""
    if yes:
        return
    output.want_somebody(as_json)
    if not click.confirm("Go on?"):
        raise Refused("Nothing was changed.")


def finish(result: Values, as_json: bool) -> int:
    """Tell how it ended; the exit code."""
    if as_json:
        output.dump({"event": "result", **result})
    else:
        follow.tell(result)
    return output.exit_code(result)


async def _adopt(choice: Choice, passphrase: bytes) -> Values:
    async with bus.connected() as client:
        await client.listen()
        (run,) = await client.call("Adopt", "s", choice.name)
        output.begun(choice.name, run, choice.as_json)
        await ask.hand_over(client, run, {"current": passphrase})
        shown = follow.display(choice.as_json)
        return (await follow.follow(client, choice.name, [run], shown))[run]


async def _survey(plan: Plan) -> Values:
    async with bus.connected() as client:
        (answer,) = await client.call("Survey", "sa{sv}", plan.device, plan.options())
    found: Values = json.loads(answer)
    return found


def _header(path: str) -> bytes:
    """The file of a recovery kit; raises Refused."""
    try:
        with open(path, "rb") as file:
            return file.read(_LONGEST)
    except OSError as exc:
        raise Refused(f"{printable(path)} can't be read: {exc.strerror}.") from exc


def _given(plan: Plan, header: bytes) -> Values:
    """What is known of the volume of a header that is handed over, as a survey tells it."""
    fingerprint = luks2.first(BytesIO(header)).fingerprint
    container = plan.container or "backup.luks"
    return {"container": container, "device": plan.device, "fingerprint": fingerprint}


async def _enrol_again(plan: Plan, fingerprint: str, passphrase: bytes, header: bytes) -> Values:
    options = {**plan.options(), **bus.options(fingerprint=fingerprint)}
    async with bus.connected() as client:
        await client.listen()
        shown = follow.display(plan.as_json)
        (run,) = await client.call("Init", "sa{sv}", plan.device, options)
        output.begun(plan.name, run, plan.as_json)
        if header:
            await _hand_over(client, run, header)
        await ask.hand_over(client, run, {"current": passphrase})
        result = (await follow.follow(client, plan.name, [run], shown))[run]
        if not plan.run or result["outcome"] not in ("done", "warnings"):
            return result
        finish(result, plan.as_json)
        shown = follow.display(plan.as_json)
        (run,) = await client.call("Run", "sa{sv}", plan.name, {})
        output.begun(plan.name, run, plan.as_json)
        return (await follow.follow(client, plan.name, [run], shown))[run]


async def _hand_over(client: bus.Client, run: str, header: bytes) -> None:
    """Give the worker the *header* as soon as it takes it."""
    fd = await client.call_for_fd("HandOver", "ss", run, "stored-header")

    def write() -> None:
        with contextlib.suppress(BrokenPipeError), os.fdopen(fd, "wb") as pipe:
            pipe.write(header)

    asyncio.get_running_loop().run_in_executor(None, write)
