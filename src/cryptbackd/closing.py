"""Closing descriptors that came from somebody else, without waiting for it.

Whoever serves a FUSE filesystem is asked before a descriptor of it is closed, and whoever closes
one can't go on, nor be killed, until they answer.  The bus lets nobody but root send the daemon any
(``systemd/dbus/org.cryptback1.conf``), but everybody an agent, which has no name; what comes is
closed by a thread.  It is started by the first of them, and lives as long as the process.
``cryptback``, which has no name either, takes none where it needs none.
"""

from __future__ import annotations

import os
import queue
import threading

import attrs

_MOST = 64
"""Descriptors that may wait to be closed; what comes while there are as many stays open."""


@attrs.define
class Closer:
    """Give it descriptors by :meth:`close`, which returns at once."""

    _waiting: queue.SimpleQueue[int] = attrs.field(factory=queue.SimpleQueue)
    _thread: threading.Thread | None = None

    def close(self, fds: list[int]) -> None:
        """Have them closed, and take them out of the list."""
        while fds:
            fd = fds.pop()
            if self._waiting.qsize() < _MOST:
                self._waiting.put(fd)
                self._start()

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._close, name="closer", daemon=True)
            self._thread.start()

    def _close(self) -> None:
        while True:
            os.close(self._waiting.get())
