"""``cryptback status``: what is known of the drives, once or as it changes."""

from __future__ import annotations

import asyncio
import signal
import time

import click

from ..text import ago, count, printable
from . import bus, follow, output
from .bus import Values


@click.command()
@click.argument("name", required=False)
@click.option("--watch", is_flag=True, help="Go on and show what changes, until Ctrl-C.")
@output.json_option
def status(name: str | None, watch: bool, as_json: bool) -> None:
    """Show all drives, or the drive NAME in detail."""
    output.finish(lambda: asyncio.run(_status(name, watch, as_json)), as_json)


async def _status(name: str | None, watch: bool, as_json: bool) -> int:
    async with bus.connected(fds=False) as client:
        if watch:
            await client.listen()
        if name is not None:
            (drive,) = await client.call("GetDrive", "s", name)
            drives = [drive]
        else:
            (drives,) = await client.call("ListDrives")
        if watch:
            await _watch(client, name, drives, as_json)
        elif as_json:
            output.dump(drives[0] if name is not None else {"drives": drives})
        elif name is not None:
            output.say_lines(detail(drives[0], time.time()))
        else:
            output.say_lines(overview(drives, time.time()))
    return output.DONE


async def _watch(client: bus.Client, name: str | None, drives: list[Values], as_json: bool) -> None:
    shown: dict[str, str] = {}

    def show(drive: Values) -> None:
        if as_json:
            output.dump({"event": "drive", "drive": drive})
            return
        line = one_line(drive, time.time())
        if shown.get(drive["name"]) != line:
            shown[drive["name"]] = line
            output.say(f"{drive['name']}: {line}")

    async def listen() -> None:
        for drive in drives:
            show(drive)
        while True:
            what, values = await client.news()
            if what == "DriveChanged" and name in (None, values["name"]):
                show(values)

    task = asyncio.get_running_loop().create_task(listen())
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        return


def overview(drives: list[Values], now: float) -> list[str]:
    """A line a drive."""
    if not drives:
        return ["No drive is enrolled; `cryptback init --help` tells how."]
    width = max(len(drive["name"]) for drive in drives)
    return [f"{drive['name']:<{width}}  {one_line(drive, now)}" for drive in drives]


def one_line(drive: Values, now: float) -> str:
    """What is to be said of the drive in one line."""
    words = follow.phase_words(drive)
    if words:
        return ", ".join(part for part in (words, follow.numbers(drive)) if part)
    if drive["state"] == "bad":
        return f"not usable: {drive['problem']}"
    parts = ["not plugged in" if drive["state"] == "absent" else f"idle on {drive['device']}"]
    if drive["last_finished"]:
        parts.append(
            f"last run {ago(max(0, now - drive['last_finished']))}: {drive['last_outcome']}"
        )
    else:
        parts.append("never backed up")
    if drive["safe"]:
        parts.append("may be unplugged")
    elif drive["state"] == "idle":
        parts.append("not proven that it may be unplugged")
    return ", ".join(parts)


def detail(drive: Values, now: float) -> list[str]:
    """All that is known of one drive."""
    lines = [f"{drive['name']}: {one_line(drive, now)}"]
    if drive["uuid"]:
        where = f", file {drive['container']}" if drive["container"] else ", the whole partition"
        lines.append(f"  drive: UUID {drive['uuid']}{where}")
    if drive["run"]:
        lines.append(f"  run: {drive['run']}")
    if drive["last_finished"]:
        told = f"{drive['last_sentence']} {drive['last_hint']}".strip()
        lines.append(
            f"  last run: {_date(drive['last_finished'])}, {drive['last_outcome']}"
            f"{f': {told}' if told else ''}"
        )
    if drive["last_success"]:
        lines.append(f"  last backup: {_date(drive['last_success'])}")
    if drive.get("last_verified"):
        lines.append(
            f"  last verification: {_date(drive['last_verified'])},"
            f" {drive['last_verified_outcome']}: {drive['last_verified_sentence']}"
        )
    lines += [f"  warning: {printable(warning)}" for warning in drive["warnings"]]
    if drive.get("withheld") and drive["warned"]:
        lines.append(f"  {count(drive['warned'], 'warning')}, for {drive['owner'] or 'root'} alone")
    if drive["problem"] and drive["state"] != "bad":
        lines.append(f"  problem: {drive['problem']}")
    return lines


def _date(when: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(when))
