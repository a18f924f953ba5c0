"""A drive that answers as it is told to: an NBD server between a stick and its image.

The server is nbdkit, and its plugin this very file.  The image stays as it is but for what is
written; of the header another one can be shown, always or by turns.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.machine import Stick

API_VERSION = 2
_told: dict[str, Any] = {"lies": 0, "turn": 0}


@dataclass(frozen=True)
class Liar:
    """The server; what it is told stands in a file that it reads at each request."""

    socket: Path
    orders: Path
    start: int

    def shows(self, header: Path | None, *, by_turns: bool = False, mixed: bool = False) -> None:
        """Show this header from now on, or the honest one.

        *by_turns*: at every second reading of it; *mixed*: by every second request, so that
        whoever reads all of it has pieces of both.
        """
        said = {"header": str(header) if header else "", "start": self.start}
        said |= {"turns": by_turns or mixed, "mixed": mixed}
        fresh = self.orders.with_suffix(".new")
        fresh.write_text(json.dumps(said))
        fresh.rename(self.orders)

    def lies(self) -> int:
        """How often it showed another header than there is."""
        told = self.orders.with_suffix(".lies")
        return len(told.read_bytes()) if told.exists() else 0


@contextmanager
def drive(stick: Stick, directory: Path) -> Iterator[Liar]:
    """Serve the image of *stick*, honestly at first."""
    liar = Liar(directory / "nbd", directory / "orders", stick.start)
    liar.shows(None)
    command = ["nbdkit", "--foreground", "--exit-with-parent", "--unix", str(liar.socket)]
    command += ["python", __file__, f"image={stick.path}", f"orders={liar.orders}"]
    server = subprocess.Popen(command)
    try:
        while not liar.socket.exists():
            assert server.poll() is None, "nbdkit did not start"
            time.sleep(0.01)
        yield liar
    finally:
        server.terminate()
        server.wait(30)


# What nbdkit calls: nbdkit-python-plugin(3).


def config(key: str, value: str) -> None:
    _told[key] = value


def open(readonly: bool) -> int:  # noqa: A001
    return os.open(_told["image"], os.O_RDWR)


def close(image: int) -> None:
    os.close(image)


def get_size(image: int) -> int:
    return os.fstat(image).st_size


def pread(image: int, buf: bytearray, offset: int, flags: int) -> None:
    buf[:] = os.pread(image, len(buf), offset)
    said = json.loads(Path(_told["orders"]).read_text())
    if not said["header"]:
        return
    start = said["start"]
    header = Path(said["header"]).read_bytes()
    first, last = max(offset, start), min(offset + len(buf), start + len(header))
    if first < last:
        if first == start or said["mixed"]:
            _told["turn"] += 1
        if said["turns"] and _told["turn"] % 2:
            return
        buf[first - offset : last - offset] = header[first - start : last - start]
        with Path(_told["orders"]).with_suffix(".lies").open("ab") as lies:
            lies.write(b".")


def pwrite(image: int, buf: bytes, offset: int, flags: int) -> None:
    os.pwrite(image, buf, offset)


def flush(image: int, flags: int) -> None:
    os.fsync(image)
