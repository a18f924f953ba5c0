"""``cryptback``: the verbs and their exit codes."""

from __future__ import annotations

import importlib
from typing import NoReturn

import click

from .. import __version__
from ..errors import Cancelled
from ..leaving import leave
from .output import complain, whatever_the_terminal

VERBS = (
    "init",
    "status",
    "run",
    "cancel",
    "eject",
    "history",
    "versions",
    "find",
    "browse",
    "close",
    "restore",
    "verify",
    "resize",
    "passphrase",
    "kit",
    "forget",
    "doctor",
)
"""The modules of this folder that are commands, in the order of ``--help``."""


class Verbs(click.Group):
    """Imports the one verb that is asked for: the others would take longer than many a verb."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """See ``click.Group``."""
        return list(VERBS)

    def get_command(self, _ctx: click.Context, name: str) -> click.Command | None:
        """See ``click.Group``."""
        if name not in VERBS:
            return None
        verb: click.Command = getattr(importlib.import_module(f".{name}", __package__), name)
        return verb


@click.group(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 3 done with warnings, 10 unknown drive, 11 busy, 12 wrong"
    " passphrase, 75 the drive is not here, 130 cancelled, 1 anything else.",
)
@click.version_option(__version__, prog_name="cryptback")
def cryptback() -> None:
    """Encrypted backups to USB drives: plug one in, and it is backed up to."""


def program() -> NoReturn:
    """What is installed as ``cryptback``: :func:`main`, and the end of the process."""
    leave(main())


def main() -> int:
    """Run the command line; its exit code."""
    whatever_the_terminal()
    try:
        code = cryptback.main(prog_name="cryptback", standalone_mode=False)
    except click.ClickException as exc:
        exc.show()
        return 1
    except (click.Abort, KeyboardInterrupt):
        complain(Cancelled("Cancelled."))
        return Cancelled.code
    return int(code or 0)
