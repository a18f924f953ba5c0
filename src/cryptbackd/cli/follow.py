"""Waiting for runs, with what is shown meanwhile.

Ctrl-C asks the daemon to cancel in order, and the wait goes on until everything is locked;
a second one leaves at once, and the daemon goes on cancelling.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterable
from types import TracebackType
from typing import Protocol, Self

from ..errors import Cancelled, CryptbackError
from ..text import clock, count, printable, size
from .bus import Client, Values
from .output import complain, dump, is_terminal, say


class Display(Protocol):
    """Shows a drive as it changes, for the time of a ``with`` block."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def show(self, drive: Values) -> None:
        """The drive is like this now."""
        ...


class _Quiet:
    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        return None


class Lines(_Quiet):
    """A line a phase, where nobody looks at a terminal."""

    def __init__(self) -> None:
        self._shown = ""

    def show(self, drive: Values) -> None:
        """Tell a new phase."""
        words = phase_words(drive)
        if words and words != self._shown:
            self._shown = words
            say(f"{drive['name']}: {words}")


class JsonLines(_Quiet):
    """Every change as a line of JSON."""

    def show(self, drive: Values) -> None:
        """Tell all of it."""
        dump({"event": "progress", "drive": drive})


class Bar:
    """A bar that moves, on a terminal."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, TextColumn  # late: slow to import

        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[numbers]}", markup=False),
            transient=True,
        )
        self._task = self._progress.add_task("waiting", total=None, numbers="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._progress.stop()

    def show(self, drive: Values) -> None:
        """Move the bar."""
        words = phase_words(drive)
        if not words:
            return
        total = drive["total"] or None
        self._progress.update(
            self._task,
            description=printable(f"{drive['name']}: {words}"),
            completed=drive["done"] if total else 0,
            total=total,
            numbers=numbers(drive),
        )


def display(as_json: bool) -> Display:
    """What fits those who look."""
    if as_json:
        return JsonLines()
    return Bar() if is_terminal() else Lines()


def phase_words(drive: Values) -> str:
    """What is being done with the drive; empty when nothing is."""
    match drive["state"]:
        case "running" if drive["shown_to"] and drive["phase"] == "browsing":
            return f"open for browsing by {drive['shown_to']}"
        case "running":
            return str(drive["phase"]).replace("-", " ")
        case "queued":
            return "waiting for its turn"
        case "not-answering":
            return "the drive does not answer"
        case _:
            return ""


def numbers(drive: Values) -> str:
    """``41 % of 2.1 GiB, 63 MB/s, 0:42 left``, as far as it is known."""
    total = drive["total"]
    if not total:
        return ""
    parts = [f"{min(100, 100 * drive['done'] // total)} % of {size(total)}"]
    if drive["rate"] > 0:
        parts.append(f"{drive['rate'] / 1e6:.0f} MB/s")
    if drive["left"] >= 0:
        parts.append(f"{clock(drive['left'])} left")
    return ", ".join(parts)


async def follow(
    client: Client,
    name: str,
    runs: Iterable[str],
    shown: Display,
    cancel: Callable[[], Awaitable[bool]] | None = None,
) -> dict[str, Values]:
    """Wait for *runs* (all of one disk; :meth:`Client.listen` was called before they were
    begun), showing the drive *name*.  Their results by id.

    *cancel* is how they are cancelled, if not by asking the daemon; it says whether there is
    no need to wait for their end.

    Raises Cancelled on a second Ctrl-C, and CryptbackError when the daemon is gone.
    """
    waiting = set(runs)
    results: dict[str, Values] = {}
    loop = asyncio.get_running_loop()
    leave: asyncio.Future[None] = loop.create_future()
    cancelling: list[asyncio.Task[None]] = []

    async def cancelled() -> None:
        if cancel is None:
            await _cancel(client, name)
        elif await cancel() and not leave.done():
            leave.set_result(None)

    def interrupted() -> None:
        if not cancelling:
            cancelling.append(loop.create_task(cancelled()))
        elif not leave.done():
            leave.set_result(None)

    loop.add_signal_handler(signal.SIGINT, interrupted)
    try:
        with shown:
            while waiting:
                news = loop.create_task(client.news())
                await asyncio.wait((news, leave), return_when=asyncio.FIRST_COMPLETED)
                if not news.done():
                    news.cancel()
                    raise Cancelled(
                        f"{name} is still being cancelled; don't unplug it yet.",
                        f"`cryptback eject {name}` waits until it may be.",
                    )
                what, values = news.result()
                if what == "JobFinished" and values["id"] in waiting:
                    waiting.discard(values["id"])
                    results[values["id"]] = values
                elif what == "DriveChanged" and values["name"] == name:
                    shown.show(values)
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        if cancelling:
            await cancelling[0]
    return results


async def _cancel(client: Client, name: str) -> None:
    try:
        await client.call("Cancel", "s", name)
    except CryptbackError as exc:  # it was over in that moment, or the daemon is gone
        complain(exc)


def tell(result: Values) -> None:
    """How a run ended, for a person."""
    name, outcome = result["name"], result["outcome"]
    told = f"{result['sentence']} {result['hint']}".strip()
    if result["version"] and outcome in ("done", "warnings"):
        told = (
            f"{count(result['files'], 'file')}, {size(result['size'])};"
            f" {count(result['changed_files'], 'file')} changed"
            f" ({size(result['changed_bytes'])}) in {clock(result['seconds'])}."
        )
    match outcome:
        case "done" | "warnings":
            say(f"{name}: finished: {told}")
        case "skipped":
            say(f"{name}: skipped: {told}")
        case "cancelled":
            complain(Cancelled(f"{name} was cancelled: {result['sentence']}", result["hint"]))
        case _:
            complain(CryptbackError(f"{name}: {result['sentence']}", result["hint"]))
    for warning in result["warnings"]:
        say(f"  warning: {warning}")
    if result["safe"]:
        off = f"{name} is powered off. " if result["powered_off"] else ""
        say(f"{off}You may unplug {name} now.")
    elif outcome != "failed" and result["touched"]:
        say(f"It was not proven that {name} may be unplugged.")
