"""Which udev cookies count as left behind: real semaphores of the kernel."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator

import pytest

from cryptbackd.worker import sweep

KEY = 0x0D4D << 16 | 0xC0FE
_CREATE_ANEW, _REMOVE = 0o3600, 0
"""IPC_CREAT | IPC_EXCL | 0600, and IPC_RMID (linux/ipc.h)."""
libc = ctypes.CDLL(None, use_errno=True)


class Operation(ctypes.Structure):
    """``struct sembuf`` (semop(2))."""

    _fields_ = (("num", ctypes.c_ushort), ("op", ctypes.c_short), ("flags", ctypes.c_short))


@pytest.fixture
def cookie() -> Iterator[int]:
    semid = libc.semget(KEY, 1, _CREATE_ANEW)
    assert semid >= 0, os.strerror(ctypes.get_errno())
    yield semid
    libc.semctl(semid, 0, _REMOVE)


def used_by_one_who_is_gone(semid: int) -> None:
    child = os.fork()
    if child == 0:
        os._exit(libc.semop(semid, ctypes.byref(Operation(0, 1, 0)), 1))
    assert os.waitpid(child, 0)[1] == 0


def test_a_cookie_is_known_with_its_last_use(cookie: int) -> None:
    made = sweep._cookies()[cookie]
    assert made.key == KEY
    assert 0 <= time.time() - made.used < 2
    used_by_one_who_is_gone(cookie)
    assert made.used <= sweep._cookies()[cookie].used <= time.time()


def test_one_that_was_just_used_may_still_be_waited_for(cookie: int) -> None:
    used_by_one_who_is_gone(cookie)
    assert sweep._is_abandoned(cookie)
    assert sweep._is_fresh(sweep._cookies()[cookie])


@pytest.mark.parametrize(
    ("ago", "fresh"), [(0, True), (1, True), (4, False), (3600, False), (-3600, False)]
)
def test_it_is_fresh_for_some_seconds(ago: int, fresh: bool) -> None:
    assert sweep._is_fresh(sweep._Cookie(KEY, int(time.time()) - ago)) is fresh
