"""The daemon from its start to its end.

Start: the sweep to its end, the history, the bus, then the monitor, then what is there
already; then the service manager is told that it is ready.  SIGTERM stops the jobs in order;
SIGHUP reads the entries anew.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Any

from .. import paths, secret
from ..errors import CryptbackError
from ..model import Outcome, Phase, RunResult
from . import journal, status, sweep, uevents
from .history import History
from .jobs import Job
from .notify import ServiceManager
from .service import Service
from .watch import Watch


def main() -> int:
    """Run the daemon; its exit status."""
    secret.secretive()
    os.umask(0o077)
    return asyncio.run(_Daemon().run())


class _Daemon:
    def __init__(self) -> None:
        self._manager = ServiceManager()
        self._stop = asyncio.Event()
        self._broken = False
        self._service: Service | None = None
        self._bus: Any = None
        self._status_timer: asyncio.TimerHandle | None = None

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._unexpected)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        swept = await sweep.sweep()
        history = _open_history(swept)
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot_id = file.read().strip()
        self._service = service = Service(history, boot_id, self._drive_changed, self._finished)
        loop.add_signal_handler(signal.SIGHUP, service.reload)
        watch = Watch(
            uevents.handed_in(),
            service.arrived,
            service.left,
            service.pulled,
            overflowed=lambda: service.resync(watch.enumerate()),
        )
        await self._connect(watch)
        service.store.now()
        watch.listen()
        service.resync(watch.enumerate())
        self._manager.keep_alive(self._show_status)
        self._show_status()
        self._manager.ready()
        await self._stop.wait()
        self._manager.stopping()
        watch.close()
        await service.supervisor.stop_all()
        service.timetable.close()
        self._show_status()
        if self._bus is not None:
            self._bus.close()
        history.close()
        return 1 if self._broken else 0

    async def _connect(self, watch: Watch) -> None:
        from .bus import Bus  # late: the sweep, which is first, needs none of it

        assert self._service is not None
        self._bus = bus = Bus(self._service, watch.resolve)
        self._service.work_changed = bus.work_changed
        self._service.remind = bus.remind
        try:
            await bus.connect()
        except (OSError, CryptbackError) as exc:
            journal.log(
                f"The system bus can't be used ({exc}); `cryptback` will not reach this service"
                " until it can.",
                journal.Priority.WARNING,
            )
            bus.come_back()

    def _drive_changed(self, name: str) -> None:
        if self._bus is not None:
            self._bus.drive_changed(name)
        # At most one line a second, however fast the news comes.
        if self._status_timer is None:
            loop = asyncio.get_running_loop()
            self._status_timer = loop.call_later(1.0, self._show_status)

    def _finished(self, job: Job, result: RunResult) -> None:
        if self._bus is not None:
            self._bus.job_finished(job, result)

    def _show_status(self) -> None:
        if self._status_timer is not None:
            self._status_timer.cancel()
            self._status_timer = None
        if self._service is not None:
            self._manager.status(status.line(self._service.views.all(), time.time()))

    def _unexpected(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A mistake of ours: tell all of it, and end in order, so that systemd starts afresh."""
        journal.mistake(str(context.get("message")), context.get("exception"))
        self._broken = True
        self._stop.set()


def _open_history(swept: sweep.Swept) -> History:
    """The history, with the runs ended that a daemon before us didn't live to end."""
    for sentence in swept.locked:
        journal.log(sentence, journal.Priority.WARNING, message="swept")
    for sentence in swept.stuck:
        journal.log(sentence, journal.Priority.ERROR)
    history = History(
        paths.HISTORY, lambda sentence: journal.log(sentence, journal.Priority.WARNING)
    )
    killed = "The service was killed in the middle; "
    killed += "not everything could be locked." if swept.stuck else "everything was locked."
    for run in history.interrupted_by_death(killed, time.time()):
        journal.log(
            f"{run.entry}: failed: {run.sentence}",
            journal.Priority.WARNING,
            message="run_interrupted",
            drive=run.entry,
            run=run.id,
            phase=Phase.FINISHED,
            outcome=None if swept.stuck else Outcome.FAILED,
        )
    return history
