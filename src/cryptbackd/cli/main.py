"""``cryptback``: the verbs and their exit codes."""

from __future__ import annotations

import click

from .. import __version__
from ..errors import Cancelled
from .cancel import cancel
from .doctor import doctor
from .eject import eject
from .history import history
from .init import init
from .output import complain
from .passphrase import passphrase
from .run import run
from .status import status


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 3 done with warnings, 10 unknown drive, 11 busy, 12 wrong"
    " passphrase, 75 the drive is not here, 130 cancelled, 1 anything else.",
)
@click.version_option(__version__, prog_name="cryptback")
def cryptback() -> None:
    """Encrypted backups to USB drives: plug one in, and it is backed up to."""


for _verb in (init, status, run, cancel, eject, history, passphrase, doctor):
    cryptback.add_command(_verb)


def main() -> int:
    """Run the command line; its exit code."""
    try:
        code = cryptback.main(prog_name="cryptback", standalone_mode=False)
    except click.ClickException as exc:
        exc.show()
        return 1
    except (click.Abort, KeyboardInterrupt):
        complain(Cancelled("Cancelled."))
        return Cancelled.code
    return int(code or 0)
