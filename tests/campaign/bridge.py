"""A USB bridge with a volatile write cache: what was not flushed is gone when its power fails.

nbdkit's cache filter keeps what is written in a file that goes with it (nbdkit-cache-filter(1)).
An honest bridge writes that to the stick at a flush; one that lies says that it did.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path


class Bridge:
    """A running bridge before a stick's image, until :meth:`cut`."""

    def __init__(self, image: Path, *, lies: bool = False) -> None:
        self.socket = image.with_suffix(".nbd")
        self.socket.unlink(missing_ok=True)
        ready = image.with_suffix(".pid")
        ready.unlink(missing_ok=True)
        mode = "unsafe" if lies else "writeback"
        command = [
            *["setpriv", "--pdeathsig", "KILL"],
            *["nbdkit", "--foreground", "--unix", str(self.socket), "--pidfile", str(ready)],
            "--filter=cache",
            *["file", str(image), f"cache={mode}"],
        ]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        # The socket is there before somebody listens; the other file when it is listened to.
        while not ready.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.cut()
                raise RuntimeError(f"nbdkit did not start: exit status {self._process.returncode}")
            time.sleep(0.01)

    def cut(self) -> None:
        """The power fails."""
        self._process.kill()
        self._process.wait()
