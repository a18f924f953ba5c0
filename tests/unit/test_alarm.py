"""The alarm rings when it should, with the kernel's own timers."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import Awaitable, Callable

import pytest

from cryptbackd import kernel
from cryptbackd.daemon.alarm import Alarm


def played(scene: Callable[[Alarm, list[float]], Awaitable[None]]) -> None:
    async def main() -> None:
        rung: list[float] = []
        before = len(os.listdir("/proc/self/fd"))
        alarm = Alarm(lambda: rung.append(time.time()))
        await scene(alarm, rung)
        alarm.close()
        alarm.close()
        assert len(os.listdir("/proc/self/fd")) == before

    asyncio.run(main())


def test_it_rings_once_and_in_time() -> None:
    async def scene(alarm: Alarm, rung: list[float]) -> None:
        when = time.time() + 0.2
        alarm.set(when)
        await asyncio.sleep(0.5)
        assert len(rung) == 1
        assert when <= rung[0] < when + 0.25

    played(scene)


def test_what_is_past_rings_at_once() -> None:
    async def scene(alarm: Alarm, rung: list[float]) -> None:
        alarm.set(0.0)
        await asyncio.sleep(0.1)
        assert len(rung) == 1

    played(scene)


def test_it_can_be_put_off_and_called_off() -> None:
    async def scene(alarm: Alarm, rung: list[float]) -> None:
        alarm.set(time.time() + 0.1)
        alarm.set(time.time() + 3600)
        await asyncio.sleep(0.2)
        alarm.set(time.time() + 0.1)
        alarm.set(None)
        await asyncio.sleep(0.2)
        assert rung == []

    played(scene)


def test_it_rings_when_the_clock_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel says it; the real thing is in tests/vm/test_when.py."""

    async def scene(alarm: Alarm, rung: list[float]) -> None:
        def cancelled(*_: object) -> bytes:
            raise OSError(errno.ECANCELED, "the clock was set")

        alarm.set(time.time() + 0.1)
        with monkeypatch.context() as patched:
            patched.setattr(os, "read", cancelled)
            alarm._rung()
        assert len(rung) == 1
        with monkeypatch.context() as patched:
            patched.setattr(kernel, "set_timer", cancelled)
            alarm.set(time.time() + 3600)
        await asyncio.sleep(0.01)
        assert len(rung) == 2

    played(scene)
