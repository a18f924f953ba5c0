"""``cryptback restore``: files of a version, back to where they were or into a directory.

The daemon opens the version for us and has an rsync read it, with our rights; what it reads is
written here, by us.  So neither can do what we could not.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket

import attrs
import click

from ..errors import Cancelled, CryptbackError, Refused
from ..text import count, printable, size
from . import bus, follow, output
from .bus import Client, Values
from .passes import Item, Told
from .target import groups
from .writing import Wish, Writer

_SHOWN = 20
"""Names of each kind that are told to a person."""


@attrs.frozen
class _Plan:
    """What was asked for on the command line."""

    name: str
    at: str
    wish: Wish
    as_json: bool


@click.command()
@click.argument("name")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", type=str)
@click.option(
    "--at", default="", metavar="WHEN", help='As it was then: "yesterday", "2 days ago",'
    ' "2026-11-20 18:00", the name of a version. Left out: the newest version.'
)  # fmt: skip
@click.option("--to", metavar="DIR", help="Into this directory, not to where"
    " it was.")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace what is newer, too.")
@click.option("--dry-run", is_flag=True, help="Only show what would be done.")
@click.option(
    "--setuid",
    is_flag=True,
    help="Restore setuid and setgid bits, file capabilities and devices (root).",
)
@output.json_option
def restore(
    name: str,
    paths: tuple[str, ...],
    at: str,
    to: str | None,
    overwrite: bool,
    dry_run: bool,
    setuid: bool,
    as_json: bool,
) -> None:
    """Restore PATHs from the drive NAME, which must be plugged in.

    What is newer than in the version stays as it is, and is told. Nobody gets what they may
    not read, or writes where they may not write.
    """

    def verb() -> int:
        if setuid and os.geteuid() != 0:
            raise Refused("--setuid is for root.", "Try it with sudo.")
        wanted = [_absolute(path) for path in paths]
        where = None if to is None else _absolute(to)
        wish = Wish(groups(wanted, where), overwrite, dry_run, setuid)
        return asyncio.run(_restore(_Plan(name, at, wish, as_json)))

    output.finish(verb, as_json)


def _absolute(path: str) -> str:
    return output.absolute(path).replace("//", "/")


async def _restore(plan: _Plan) -> int:
    async with bus.connected() as client:
        await client.listen()
        (run,) = await client.call("Restore", "sa{sv}", plan.name, bus.options(at=plan.at))
        output.begun(plan.name, run, plan.as_json)
        fd = await client.call_for_fd("HandOver", "ss", run, "files")
        with socket.socket(fileno=fd) as peer:
            result, told, error = await _written(plan, client, run, peer)
    _tell_files(plan, told)
    if error is not None and not isinstance(error, Cancelled):
        output.complain(error)
    if plan.as_json:
        output.dump({"event": "result", **result})
    else:
        follow.tell(result)
    return output.exit_code(result)


async def _written(
    plan: _Plan, client: Client, run: str, peer: socket.socket
) -> tuple[Values, Told, CryptbackError | None]:
    """Write what is read, until the daemon says that it is over."""
    wakes, wake = os.pipe()
    writer = Writer(peer, plan.wish, wakes)

    async def stop() -> bool:
        """In order, if anything was begun; else nobody has to wait for our turn."""
        os.write(wake, b"x")
        return not writer.told.version

    def write() -> CryptbackError | None:
        try:
            writer.run()
        except CryptbackError as exc:
            return exc
        return None

    try:
        writing = asyncio.create_task(asyncio.to_thread(write))
        try:
            shown = follow.display(plan.as_json)
            results = await follow.follow(client, plan.name, [run], shown, cancel=stop)
        finally:
            # Whatever ended it: rsync must not outlive us.
            os.write(wake, b"x")
            peer.shutdown(socket.SHUT_RDWR)
            error = await writing
    finally:
        os.close(wakes)
        os.close(wake)
    return results[run], writer.told, error


def _tell_files(plan: _Plan, told: Told) -> None:
    if plan.as_json:
        _dump_files(told)
        return
    for item in told.items:
        output.say(f"  {item.what:<8} {_name(item.path)}{_size(item)}")
    _tell_some("left as it is, being newer", list(told.left))
    for path, why in list(told.failed.items())[:_SHOWN]:
        output.say(f"  not restored: {_name(path)}: {why}")
    _tell_rest(max(len(told.failed) - _SHOWN, 0) + told.unnamed)
    if told.not_theirs and not told.over.dry:
        output.say(f"  {count(told.not_theirs, 'file')} of other users belong to you here.")


def _tell_some(what: str, paths: list[bytes]) -> None:
    for path in paths[:_SHOWN]:
        output.say(f"  {what}: {_name(path)}")
    _tell_rest(len(paths) - _SHOWN)


def _tell_rest(number: int) -> None:
    if number > 0:
        output.say(f"  … and {number} more")


def _size(item: Item) -> str:
    return f" ({size(item.size)})" if item.change[0] in "><" else ""


def _name(path: bytes) -> str:
    return printable(path, 1000)


def _dump_files(told: Told) -> None:
    """Names as JSON can hold them: bytes that are not UTF-8 as lone surrogates."""
    for item in told.items:
        _dump({"event": "item", "what": item.what, "size": item.size, "path": _text(item.path)})
    for path in told.left:
        _dump({"event": "left", "path": _text(path)})
    for path, why in told.failed.items():
        _dump({"event": "failed", "path": _text(path), "why": why})
    if told.unnamed:
        _dump({"event": "failed_unnamed", "number": told.unnamed})


def _dump(values: Values) -> None:
    click.echo(json.dumps(values))


def _text(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")
