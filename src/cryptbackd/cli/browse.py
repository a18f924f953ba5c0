"""``cryptback browse``: the versions at a path of the user's own.

The command becomes two processes.  The one that was started waits until it is open, and ends.
The other one, the *keeper*, asks the daemon, mounts, and stays behind: its connection to the
bus is what keeps the drive open, and when that is over it takes the mount away.  So the two
end together: the drive is locked when the keeper is gone, and no dead mount stays behind a
drive that is locked.  (Only a keeper that is killed outright leaves one, which the next
``browse`` or ``close`` removes.)
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import attrs
import click

from .. import moment
from ..errors import CryptbackError
from . import bus, follow, mount, output
from .bus import Client, Values

_BROWSING = "browsing"


@attrs.frozen
class _Wish:
    """What was asked for on the command line."""

    name: str
    when: str
    as_json: bool


@click.command(short_help="Open the versions on the drive NAME, to be read until `close`.")
@click.argument("name")
@click.option("--at", "when", default="", metavar="WHEN", help="Show the path of one version.")
@output.json_option
def browse(name: str, when: str, as_json: bool) -> None:
    """Open the versions on the drive NAME for a file manager, read-only.

    Prints the path, which only you can enter. It stays open until `cryptback close NAME`, until
    the drive is ejected or pulled, or until you log out. WHEN is said as for `restore`:
    "yesterday", "2 days ago", "2026-11-20", or the name of a version.
    """
    wish = _Wish(name, when, as_json)
    output.finish(lambda: _in_two(wish), as_json)


def _in_two(wish: _Wish) -> int:
    """Begin the keeper; its exit code, or DONE as soon as it is open."""
    mount.want_tool()
    reading, writing = os.pipe()
    sys.stdout.flush()
    keeper = os.fork()
    if keeper == 0:
        os.close(reading)
        output.finish(lambda: asyncio.run(_keep(wish, lambda: _detach(writing))), wish.as_json)
    os.close(writing)
    # It gets the Ctrl-C, too, and ends in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if os.read(reading, 1):
        return output.DONE
    _pid, status = os.waitpid(keeper, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 1


def _detach(writing: int) -> None:
    """Stay behind: the command ends, the terminal is left alone."""
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nothing, fd)
    os.chdir("/")
    os.write(writing, b"+")
    os.close(writing)


async def _keep(wish: _Wish, detach: Callable[[], None]) -> int:
    """The keeper's life."""
    async with bus.connected() as client:
        (drive,) = await client.call("GetDrive", "s", wish.name)
        if drive["shown_to"] == mount.me() and drive["phase"] == _BROWSING:
            where = mount.home() / wish.name
            if where.is_mount():
                await _tell(wish, where)  # it is open already
                return output.DONE
        where = mount.place(wish.name)
        await client.listen()
        (run,) = await client.call("Browse", "sa{sv}", wish.name, {})
        output.begun(wish.name, run, wish.as_json)
        life = _Life(client, wish.name, run)
        with life.stopped_by_signals():
            result = await life.until_open(wish.as_json)
            if result is None:
                try:
                    await life.show(where)
                    await _tell(wish, where)
                    detach()
                    await life.until_over()
                    return output.DONE
                finally:
                    mount.unmount(where)
                    await life.end()
            mount.unmount(where)
    if wish.as_json:
        output.dump({"event": "result", **result})
    else:
        follow.tell(result)
    return output.exit_code(result)


class _Life:
    """One browsing, as the daemon tells of it."""

    def __init__(self, client: Client, name: str, run: str) -> None:
        self._client, self._name, self._run = client, name, run
        self._stopping: asyncio.Task[None] | None = None
        self._over = False

    def stopped_by_signals(self) -> _Signals:
        """End it in order when the process is to end."""
        return _Signals(self._stop)

    def _stop(self) -> None:
        if self._stopping is None:
            self._stopping = asyncio.get_running_loop().create_task(self._ask_to_close())

    async def _ask_to_close(self) -> None:
        try:
            await self._client.call("Close", "s", self._name)
        except CryptbackError:
            return  # it was over in that moment

    async def until_open(self, as_json: bool) -> Values | None:
        """Wait until a mount is wanted; the result where it ended before."""
        # Standard output is for the path alone.
        told = as_json or output.is_terminal()
        with follow.display(as_json) if told else contextlib.nullcontext() as shown:
            while True:
                what, values = await self._client.news()
                if what == "JobFinished" and values["id"] == self._run:
                    return values
                if what == "DriveChanged" and values["run"] == self._run:
                    if values["phase"] == _BROWSING:
                        return None
                    if shown is not None:
                        shown.show(values)

    async def show(self, where: Path) -> None:
        """Mount it there; returns when there is something to see."""
        fd = mount.mount(where, self._name)
        try:
            way = await self._client.call_for_fd("HandOver", "ss", self._run, "mount")
            with socket.socket(fileno=way) as daemon:
                socket.send_fds(daemon, [b"mount"], [fd])
                taken = await asyncio.to_thread(daemon.recv, 1)
        finally:
            os.close(fd)
        if not taken:
            raise CryptbackError("The service cryptbackd did not take the mount.")
        try:
            await asyncio.to_thread(os.stat, where)  # waits for the server's first answer
        except OSError as exc:
            raise CryptbackError(
                "What shows the versions ended at once.", "`journalctl -u cryptbackd` tells why."
            ) from exc

    async def until_over(self) -> None:
        """Wait until it is not to be seen any more."""
        try:
            while True:
                what, values = await self._client.news()
                if what == "JobFinished" and values["id"] == self._run:
                    self._over = True
                    return
                gone = values.get("run") != self._run or values.get("phase") != _BROWSING
                if what == "DriveChanged" and values["name"] == self._name and gone:
                    return
        except CryptbackError:
            self._over = True  # the daemon is gone, and with it what served it

    async def end(self) -> None:
        """Have it locked again, and wait for that."""
        if not self._over:
            await self._ask_to_close()
        try:
            while not self._over:
                what, values = await self._client.news()
                self._over = what == "JobFinished" and values["id"] == self._run
        except CryptbackError:
            self._over = True


class _Signals:
    """For the time of the block these signals end nothing but the browsing, in order."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call

    def __enter__(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, self._call)

    def __exit__(self, *_exc: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().remove_signal_handler(number)


async def _tell(wish: _Wish, where: Path) -> None:
    """Say where to look; raises Refused when there is no such version."""
    version = ""
    if wish.when:
        names = await asyncio.to_thread(os.listdir, where)
        # They are listed in the order in which they were made.
        made = [moment.Made.named(name, number) for number, name in enumerate(names)]
        version = moment.choose(wish.when, made, time.time()).name
    path = where / version if version else where
    if wish.as_json:
        told = {"event": "open", "name": wish.name, "path": str(path), "version": version}
        output.dump(told)
        return
    # Alone on standard output: cd "$(cryptback browse NAME)".
    click.echo(
        f"{wish.name} is open, for you alone, until `cryptback close {wish.name}`:", err=True
    )
    output.say(str(path))
