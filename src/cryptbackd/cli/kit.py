"""``cryptback kit``: a page to print, and the header beside it, by which files come back.

The files are written here, with the rights of whoever asks; the daemon gives the stored
header and what it knows of the drive.  A recovery key is made as `passphrase NAME
recovery-key` makes it, and is in this process and on the page alone.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path

import attrs
import click

from .. import luks2
from ..config import check_name
from ..errors import CryptbackError, Refused, UnknownDrive
from ..run import run as run_program
from ..text import printable
from . import adopt, ask, bus, kit_page, output, passphrase
from .bus import Values
from .files import NewFile, reserved

QRENCODE = passphrase.QRENCODE
_LONGEST = 16 << 20
"""Bytes of a header as cryptsetup makes it."""
_PAGE = 64 << 10


@click.command()
@click.argument("name")
@click.option(
    "--to",
    "directory",
    default=".",
    metavar="DIR",
    help="Where the two files are written; left out, here.",
)
@click.option(
    "--recovery-key",
    is_flag=True,
    help="Make a recovery key, which stands on the page; the drive must be plugged in.",
)
@click.option(
    "--passphrase-fd",
    type=click.IntRange(0),
    metavar="N",
    help="Read the passphrase that there is, one line, from this descriptor.",
)
@click.option("--yes", is_flag=True, help="Replace files of an earlier kit without asking.")
@output.json_option
def kit(
    name: str,
    directory: str,
    recovery_key: bool,
    passphrase_fd: int | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Write the recovery kit of the drive NAME: a page to be printed, and its LUKS header.

    The page has all that is needed to get the files back by hand, on any computer.
    """

    def verb() -> int:
        plan = Plan(name, Path(output.absolute(directory)), yes, as_json)
        return _kit(plan, recovery_key, passphrase_fd)

    output.finish(verb, as_json)


@attrs.frozen
class Plan:
    """Whose kit, where to, and whether an earlier one is replaced without asking."""

    name: str
    directory: Path
    yes: bool
    as_json: bool


@attrs.frozen
class Places:
    """The two files of a kit, reserved."""

    page: NewFile
    header: NewFile


def _kit(plan: Plan, with_key: bool, passphrase_fd: int | None) -> int:
    check_name(plan.name)
    if with_key:
        ask.want_terminal("--passphrase-fd", passphrase_fd)
        asyncio.run(passphrase.want_here(plan.name))
    elif passphrase_fd is not None:
        raise Refused("--passphrase-fd is for --recovery-key.")
    code, recovery = output.DONE, ""
    with places(plan) as reserved_places:
        asyncio.run(_known(plan.name))
        if with_key:
            result, recovery = passphrase.recovery_key(plan.name, passphrase_fd, plan.as_json)
            code = adopt.finish(result, plan.as_json)
            if result["outcome"] not in ("done", "warnings"):
                passphrase.tell_key(plan.name, recovery, plan.as_json, sure=False)
                return code
        try:
            facts, header = asyncio.run(_fetch(plan.name))
            write(reserved_places, facts, header, recovery)
        except (CryptbackError, KeyboardInterrupt):
            if recovery:  # it opens the drive by now
                passphrase.tell_key(plan.name, recovery, plan.as_json, sure=True)
            raise
    # First: it is written, whatever the service says to that.
    tell(plan, facts, recovery)
    asyncio.run(_note(plan.name, header))
    return code


def may_replace(plan: Plan) -> Callable[[Path], bool]:
    """Whether a file of an earlier kit may be replaced: ask, unless that was said already."""

    def may(path: Path) -> bool:
        if plan.yes:
            return True
        if plan.as_json or not output.is_terminal():
            return False
        return click.confirm(f"There is a file {printable(str(path))} already. Replace it?")

    return may


@contextmanager
def places(plan: Plan) -> Iterator[Places]:
    """Reserve the two files of the kit; what is not written in the end is removed."""
    stem = f"cryptback-{plan.name}"
    may = may_replace(plan)
    with (
        reserved(plan.directory / f"{stem}.html", _PAGE, may) as page,
        reserved(plan.directory / f"{stem}.header", _LONGEST, may) as header,
    ):
        yield Places(page, header)


def write(into: Places, facts: Values, header: bytes, recovery: str) -> None:
    """Write both files; *facts* are those of the daemon.  Raises CryptbackError."""
    metadata = luks2.first(BytesIO(header))
    page = kit_page.page(
        kit_page.Facts(
            name=facts["name"],
            uuid=facts["uuid"],
            container=facts["container"],
            size=facts["size"],
            volume=metadata.uuid,
            fingerprint=metadata.fingerprint,
            detached=metadata.detached,
            include=tuple(facts["include"]),
            include_from=tuple(facts["include_from"]),
            header=into.header.path.name,
            header_sha256=hashlib.sha256(header).hexdigest(),
            made=time.strftime("%Y-%m-%d"),
            host=socket.gethostname(),
            recovery=recovery,
            picture=_picture(recovery),
        )
    )
    into.header.write(header)
    into.page.write(page.encode("utf-8", "replace"))
    into.header.keep()
    into.page.keep()


def _picture(recovery: str) -> str:
    if not recovery or not os.path.exists(QRENCODE):
        return ""
    words = ["--type=SVG", "--svg-path", "--output=-"]
    return kit_page.picture(run_program([QRENCODE, *words], stdin=recovery.encode()).out.decode())


def tell(plan: Plan, facts: Values, recovery: str) -> None:
    """What was written, and what is to be done with it."""
    page, header = (plan.directory / f"cryptback-{plan.name}.{kind}" for kind in ("html", "header"))
    if plan.as_json:
        values = {"page": str(page), "header": str(header), "recovery_key": bool(recovery)}
        output.dump({"event": "kit", "name": plan.name, **values, "problem": facts["problem"]})
        return
    output.say(f"The recovery kit of {plan.name} is written:")
    output.say(f"  {page}    to be printed")
    output.say(f"  {header}  its LUKS header, to be kept on another medium")
    if recovery:
        output.say("The page has a recovery key: whoever has it and the drive has the files.")
        if not os.path.exists(QRENCODE):
            output.say("(With the package qrencode the page has it as a picture, too.)")
    output.say("Keep both apart from the drive and from this computer, and remove them here.")
    if facts["problem"]:
        output.say(f"About the drive itself: {facts['problem']}")


def take(header_fd: int, kept_fd: int, into: Places) -> Values | None:
    """Write the kit of a drive that is being enrolled, and tell the worker that it is written.

    Both descriptors are closed then.  None: the header never came.
    """
    with os.fdopen(header_fd, "rb") as source, os.fdopen(kept_fd, "wb", buffering=0) as answer:
        first, _newline, header = source.read().partition(b"\n")
        if not header:
            return None
        facts: Values = json.loads(first)
        sha256 = hashlib.sha256(header).hexdigest()
        if sha256 != facts["sha256"]:
            return None
        write(into, facts, header, "")
        with suppress(BrokenPipeError):
            answer.write(sha256.encode())
        return facts


async def take_back_unless_enrolled(name: str, into: Places) -> None:
    """Remove a kit of a drive that was not enrolled in the end."""
    try:
        await _known(name)
    except UnknownDrive:
        into.page.take_back()
        into.header.take_back()


def write_for(plan: Plan, into: Places) -> None:
    """Write the kit of a drive that was enrolled just now."""
    facts, header = asyncio.run(_fetch(plan.name))
    write(into, facts, header, "")
    tell(plan, facts, "")
    asyncio.run(_note(plan.name, header))


async def _known(name: str) -> None:
    """Raise UnknownDrive before anything is made for a drive that there is not."""
    async with bus.connected(fds=False) as client:
        await client.call("GetDrive", "s", name)


async def _fetch(name: str) -> tuple[Values, bytes]:
    """What the daemon knows of the drive, and the stored header."""
    async with bus.connected() as client:
        answer, fd = await client.answer_and_fd("Kit", "s", name)
    with os.fdopen(fd, "rb") as file:
        header = file.read()
    facts: Values = json.loads(answer)
    return facts, header


async def _note(name: str, header: bytes) -> None:
    """Tell the daemon that there is a kit with this header."""
    async with bus.connected(fds=False) as client:
        await client.call("KitWritten", "ss", name, hashlib.sha256(header).hexdigest())
