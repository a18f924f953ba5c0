"""The agent from its start to its end, which is that of the session, or of the system bus."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal

from .. import __version__, secret
from .log import Priority, say


def main() -> int:
    """Run the agent; its exit status."""
    parser = argparse.ArgumentParser(
        prog="cryptback-agent",
        description="Answers from the keyring, or asks you, when cryptbackd wants the passphrase"
        " of a drive of yours. Started with every session; on a terminal it asks there.",
    )
    parser.add_argument("--version", action="version", version=f"cryptback-agent {__version__}")
    parser.parse_args()
    secret.secretive()
    os.umask(0o077)
    return asyncio.run(_run())


async def _run() -> int:
    from .bus import Lost, Registration

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    registration = Registration()
    try:
        await registration.connect()
        await registration.until(stop)
    except Lost as exc:
        say(str(exc), Priority.WARNING)
        return 1
    finally:
        await registration.close()
    return 0
