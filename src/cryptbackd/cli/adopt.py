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
from ..errors import BY_NAME, CryptbackError, ForgedDrive, Refused
from ..text import printable
from . import ask, bus, follow, output, recovered
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


@attrs.frozen
class _Trusted:
    """What somebody has agreed to, and what proves it: of which volume, and how it is opened.

    ``header`` is that of a kit, where the drive has none.
    """

    fingerprint: str
    passphrase: bytes = attrs.field(repr=False)
    header: bytes = b""


def adopt(choice: Choice) -> int:
    """Store the header on the drive, if it is the same volume's; the exit code."""
    name = choice.name
    found = asyncio.run(look(name))
    if not found["difference"]:
        raise Refused("The header on the drive is the stored one: there is nothing to adopt.")
    tell(choice.as_json, f"The header on {name} is not the stored one. {found['difference']}")
    if found["fingerprint"] != found["stored"] or found["older"]:
        raise ForgedDrive(
            "It can't be adopted; the stored one stays.",
            f"`cryptback doctor --repair {name}` puts the stored header back.",
        )
    tell(choice.as_json, "It is of the same volume key, so it may be adopted. Whatever opens it")
    tell(choice.as_json, "opens the drive from then on, also what was removed on this computer.")
    want_agreement(choice.yes, choice.as_json)
    passphrase = ask.current("A passphrase that it has now", choice.passphrase_fd)
    result = asyncio.run(_adopt(choice, passphrase))
    return finish(result, choice.as_json)


def enrol_again(plan: Plan) -> int:
    """Enrol the drive by the header that is on it; the exit code."""
    header = b"" if plan.header is None else _header(plan.header)
    found = asyncio.run(_survey(plan)) if plan.header is None else _given(plan, header)
    if plan.as_json:
        output.dump({"event": "survey", **found})
    if found["copy_of"]:
        return _move(plan, found)
    tell(plan.as_json, f"{_where(found)} has an encrypted container with the fingerprint")
    tell(plan.as_json, f"  {found['fingerprint']}")
    tell(plan.as_json, "This computer knows nothing of it yet, and will believe what it has now:")
    tell(plan.as_json, "go on only if you know where the drive has been.")
    want_agreement(plan.yes, plan.as_json)
    passphrase = ask.current("Its passphrase", plan.passphrase_fd)
    trusted = _Trusted(found["fingerprint"], passphrase, header)
    if plan.name and (plan.include or plan.include_from):
        return finish(asyncio.run(_enrol_again(plan, trusted)), plan.as_json)
    told = asyncio.run(_recovered(plan, trusted))
    name, settings = recovered.chosen(plan, told)
    recovered.show(plan, told, name, settings)
    want_agreement(plan.yes, plan.as_json)
    plan = attrs.evolve(plan, name=name, run=False)
    result = asyncio.run(_enrol_again(plan, trusted, settings))
    code = finish(result, plan.as_json)
    if result["outcome"] in ("done", "warnings"):
        for line in recovered.afterwards(name, settings):
            tell(plan.as_json, line)
    return code


def _move(plan: Plan, found: Values) -> int:
    """Have an entry be this drive, on which there is a copy of its container."""
    name = str(found["copy_of"])
    if plan.name not in ("", name):
        raise Refused(
            f"This is a copy of the container of {name}, which this computer knows.",
            f"Leave out --name, to have {name} be this drive from now on.",
        )
    if plan.include or plan.include_from or plan.exclude or plan.owner:
        raise Refused(
            f"This is a copy of the container of {name}, which keeps its settings.",
            f"Change them in /etc/cryptback/drives.d/{name}.toml afterwards.",
        )
    tell(plan.as_json, f"{_where(found)} is a copy of the container of {name}. The fingerprint is")
    tell(plan.as_json, f"  {found['fingerprint']}")
    tell(plan.as_json, f"{name} will be this drive from now on, and go on with its versions.")
    tell(plan.as_json, "The one that it was will not be backed up to any more.")
    want_agreement(plan.yes, plan.as_json)
    passphrase = ask.current("Its passphrase", plan.passphrase_fd)
    plan = attrs.evolve(plan, name=name, run=False)
    result = asyncio.run(_enrol_again(plan, _Trusted(found["fingerprint"], passphrase)))
    return finish(result, plan.as_json)


def _where(found: Values) -> str:
    return str(found["container"] or found["device"])


async def look(name: str) -> Values:
    """What the daemon finds about the header on the drive *name*."""
    async with bus.connected(fds=False) as client:
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
    async with bus.connected(fds=False) as client:
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
    found = {"container": container, "device": plan.device, "fingerprint": fingerprint}
    return {**found, "copy_of": ""}


async def _recovered(plan: Plan, trusted: _Trusted) -> Values:
    """What the container remembers of its entry."""
    header = bool(trusted.header) or None
    options = bus.options(container=plan.container, fingerprint=trusted.fingerprint, header=header)
    async with bus.connected() as client:
        await client.listen()
        (run,) = await client.call("Recover", "sa{sv}", plan.device, options)
        fd = await client.call_for_fd("HandOver", "ss", run, "settings")
        with os.fdopen(fd, "rb") as file:
            await _hand_over(client, run, trusted)
            shown = follow.display(plan.as_json)
            result = (await follow.follow(client, "", [run], shown))[run]
            if result["outcome"] not in ("done", "warnings"):
                raise BY_NAME.get(result["error"], CryptbackError)(
                    result["sentence"], result["hint"]
                )
            # Nobody has the other end any more, so this does not wait.
            told: Values = json.loads(file.read())
    return told


async def _enrol_again(plan: Plan, trusted: _Trusted, settings: str | None = None) -> Values:
    options = {
        **plan.options(),
        **bus.options(fingerprint=trusted.fingerprint, settings=settings),
    }
    async with bus.connected() as client:
        await client.listen()
        shown = follow.display(plan.as_json)
        (run,) = await client.call("Init", "sa{sv}", plan.device, options)
        output.begun(plan.name, run, plan.as_json)
        await _hand_over(client, run, trusted)
        result = (await follow.follow(client, plan.name, [run], shown))[run]
        if not plan.run or result["outcome"] not in ("done", "warnings"):
            return result
        finish(result, plan.as_json)
        shown = follow.display(plan.as_json)
        (run,) = await client.call("Run", "sa{sv}", plan.name, {})
        output.begun(plan.name, run, plan.as_json)
        return (await follow.follow(client, plan.name, [run], shown))[run]


async def _hand_over(client: bus.Client, run: str, trusted: _Trusted) -> None:
    """Give the worker what it needs: the header, if any, as soon as it takes it."""
    if trusted.header:
        fd = await client.call_for_fd("HandOver", "ss", run, "stored-header")

        def write() -> None:
            with contextlib.suppress(BrokenPipeError), os.fdopen(fd, "wb") as pipe:
                pipe.write(trusted.header)

        asyncio.get_running_loop().run_in_executor(None, write)
    await ask.hand_over(client, run, {"current": trusted.passphrase})
