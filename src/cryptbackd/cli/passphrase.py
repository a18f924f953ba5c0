"""``cryptback passphrase``: what opens a drive, and what this computer remembers of it.

A recovery key comes out of a pipe whose other end only the program that makes it has; it is
shown once, when it is sure that it opens the drive.
"""

from __future__ import annotations

import asyncio
import os

import attrs
import click

from .. import paths
from ..errors import CryptbackError, DriveAbsent, Refused
from ..run import run as run_program
from . import adopt, ask, bus, credential, follow, output
from .bus import Values

QRENCODE = "/usr/bin/qrencode"
_ACTIONS = {
    "add": "Another passphrase opens the drive, too.",
    "change": "A new passphrase takes the place of one.",
    "remove": "A passphrase opens the drive no more; --what removes something else.",
    "remember": "Store a passphrase on this computer, encrypted: nobody is asked for it again.",
    "forget": "Remove what `remember` stored.",
    "enroll-tpm2": "This computer's TPM2 opens the drive.",
    "enroll-fido2": "A FIDO2 token opens the drive.",
    "recovery-key": "Make a long passphrase to be kept on paper.",
}
_HERE = ("remember", "forget")
"""What needs neither the drive nor the daemon, but root."""


@attrs.frozen
class _Plan:
    """What was asked for on the command line."""

    name: str
    action: str
    what: str
    passphrase_fd: int | None
    new_passphrase_fd: int | None
    pin: bool
    pin_fd: int | None
    pbkdf_memory: int | None
    pbkdf_iterations: int | None
    as_json: bool


def _epilog() -> str:
    lines = [f"  {action:<13} {what}" for action, what in _ACTIONS.items()]
    return "\b\n" + "\n".join(lines)


_fd = click.IntRange(0)


@click.command(epilog=_epilog())
@click.argument("name")
@click.argument("action", required=False, type=click.Choice(list(_ACTIONS)))
@click.option(
    "--adopt", "adopting", is_flag=True, help="Take over a passphrase that was changed elsewhere."
)
@click.option(
    "--what",
    type=click.Choice(["passphrase", "tpm2", "fido2", "recovery-key"]),
    default="passphrase",
    show_default=True,
    help="What `remove` removes.",
)
@click.option(
    "--passphrase-fd", type=_fd, metavar="N", help="Read the passphrase that there is, one line,"
    " from this descriptor."
)  # fmt: skip
@click.option(
    "--new-passphrase-fd", type=_fd, metavar="N", help="Read the new one, for add and change."
)
@click.option("--pin", is_flag=True, help="The token asks for a PIN at each plug.")
@click.option("--pin-fd", type=_fd, metavar="N", help="Read this PIN from a descriptor.")
@click.option("--yes", is_flag=True, help="Don't ask; for scripts.")
@output.pbkdf_memory_option
@output.pbkdf_iterations_option
@output.json_option
def passphrase(
    name: str,
    action: str | None,
    adopting: bool,
    what: str,
    passphrase_fd: int | None,
    new_passphrase_fd: int | None,
    pin: bool,
    pin_fd: int | None,
    yes: bool,
    pbkdf_memory: int | None,
    pbkdf_iterations: int | None,
    as_json: bool,
) -> None:
    """Change what opens the drive NAME, which must be plugged in.

    The header that this computer stores is changed first, then the drive's own. Should the
    drive be pulled in between, the next plug finishes it.
    """
    choice = adopt.Choice(name, passphrase_fd, yes, as_json)
    plan = _Plan(
        name,
        action or "",
        what,
        passphrase_fd,
        new_passphrase_fd,
        pin or pin_fd is not None,
        pin_fd,
        pbkdf_memory,
        pbkdf_iterations,
        as_json,
    )
    output.finish(lambda: _passphrase(plan, choice, adopting), as_json)


def _passphrase(plan: _Plan, choice: adopt.Choice, adopting: bool) -> int:
    if plan.action in _HERE:
        output.want_root()
    _check(plan, adopting)
    if plan.action == "forget":
        return credential.forget(plan.name, plan.as_json)
    ask.want_terminal("--passphrase-fd", plan.passphrase_fd)
    if plan.action == "remember":
        return credential.remember(plan.name, plan.passphrase_fd, plan.as_json)
    asyncio.run(want_here(plan.name))
    if adopting:
        return adopt.adopt(choice)
    result, recovery = asyncio.run(_change(plan, _secrets(plan)))
    code = adopt.finish(result, plan.as_json)
    done = result["outcome"] in ("done", "warnings")
    if recovery and not done:
        _tell_doubt(plan.as_json)
    if done or recovery:
        _afterwards(plan, recovery)
    return code


def _check(plan: _Plan, adopting: bool) -> None:
    """Refuse what can be known to be wrong before anybody is asked."""
    if adopting == bool(plan.action):
        raise Refused("Say either what is to be done, or --adopt.", "See --help.")
    if plan.what != "passphrase" and plan.action != "remove":
        raise Refused("--what is for `remove`.")
    if plan.pin and not plan.action.startswith("enroll-"):
        raise Refused("--pin is for `enroll-tpm2` and `enroll-fido2`.")
    if plan.action in ("add", "change"):
        ask.want_terminal("--new-passphrase-fd", plan.new_passphrase_fd)
    elif plan.new_passphrase_fd is not None:
        raise Refused("--new-passphrase-fd is for `add` and `change`.")
    if plan.pin:
        ask.want_terminal("--pin-fd", plan.pin_fd)


async def want_here(name: str) -> None:
    """Nobody is to type for a drive that isn't here."""
    async with bus.connected(fds=False) as client:
        (drive,) = await client.call("GetDrive", "s", name)
    if drive["state"] == "absent":
        raise DriveAbsent(f"The drive {name} is not plugged in.", "Plug it in, and try again.")


def _secrets(plan: _Plan) -> dict[str, bytes]:
    """What is handed over, by its purpose."""
    which = {
        "change": "The passphrase to be changed",
        "remove": "The passphrase to be removed",
    }
    asked = which.get(plan.action, "A passphrase of the drive")
    if plan.what != "passphrase":
        asked = "A passphrase that stays"
    found = {"current": ask.current(asked, plan.passphrase_fd)}
    if plan.action in ("add", "change"):
        found["new"] = ask.new("The new passphrase", plan.new_passphrase_fd)
    if plan.action == "enroll-tpm2" and plan.pin:
        found["pin"] = ask.new("A new PIN for the TPM2", plan.pin_fd)
    if plan.action == "enroll-fido2" and plan.pin:
        found["pin"] = ask.current("The PIN that the token has", plan.pin_fd)
    return found


async def _change(plan: _Plan, secrets: dict[str, bytes]) -> tuple[Values, str]:
    memory = None if plan.pbkdf_memory is None else plan.pbkdf_memory * 1024
    options = bus.options(
        action=plan.action,
        what=plan.what,
        pin=plan.pin,
        pbkdf_memory=memory,
        pbkdf_iterations=plan.pbkdf_iterations,
    )
    async with bus.connected() as client:
        await client.listen()
        (run,) = await client.call("Passphrase", "sa{sv}", plan.name, options)
        output.begun(plan.name, run, plan.as_json)
        fd = -1
        if plan.action == "recovery-key":
            fd = await client.call_for_fd("HandOver", "ss", run, "recovery-key")
        try:
            # Without an end of line: for a key file each byte counts.
            await ask.hand_over(client, run, secrets)
            shown = follow.display(plan.as_json)
            result = (await follow.follow(client, plan.name, [run], shown))[run]
            return result, _come(fd)
        except CryptbackError:
            # How the job ends isn't known: the key may be in the header by then.
            tell_key(plan.name, _come(fd), plan.as_json, sure=False)
            raise
        finally:
            if fd >= 0:
                os.close(fd)


def _come(fd: int) -> str:
    """The recovery key that lies in the pipe *fd* by now, if there is one; else empty."""
    if fd < 0:
        return ""
    os.set_blocking(fd, False)
    try:
        return os.read(fd, 4096).decode("ascii", "replace").strip()
    except BlockingIOError:
        return ""


def _afterwards(plan: _Plan, recovery: str) -> None:
    if plan.action == "recovery-key":
        _show_once(plan.name, recovery, plan.as_json)
    stored = [d for d in (paths.ENCRYPTED_CREDENTIALS, paths.CREDENTIALS)
              if os.path.exists(d / f"cryptback.{plan.name}")]  # fmt: skip
    if plan.action in ("change", "remove") and plan.what == "passphrase" and stored:
        adopt.tell(plan.as_json, f"A passphrase is stored in {stored[0]}. If it was that one:")
        adopt.tell(plan.as_json, f"  cryptback passphrase {plan.name} remember")


def recovery_key(name: str, passphrase_fd: int | None, as_json: bool) -> tuple[Values, str]:
    """Make a recovery key, for whoever has a place for it: how that ended, and the key."""
    what = ("recovery-key", "passphrase")
    plan = _Plan(name, *what, passphrase_fd, None, False, None, None, None, as_json)
    result, recovery = asyncio.run(_change(plan, _secrets(plan)))
    if not recovery and result["outcome"] in ("done", "warnings"):
        raise _lost(name)
    return result, recovery


def tell_key(name: str, recovery: str, as_json: bool, *, sure: bool) -> None:
    """Show a key that could not be put where it was to be; *sure*: it opens the drive."""
    if recovery:
        if not sure:
            _tell_doubt(as_json)
        _show_once(name, recovery, as_json)


def _tell_doubt(as_json: bool) -> None:
    adopt.tell(as_json, "The key may open the drive all the same, from the next plug on.")
    adopt.tell(as_json, "Keep it, or take it away: `remove --what recovery-key`.")


def _lost(name: str) -> Refused:
    return Refused(
        "The recovery key was made, but it did not arrive here.",
        f"cryptback passphrase {name} remove --what recovery-key",
    )


def _show_once(name: str, recovery: str, as_json: bool) -> None:
    if not recovery:
        raise _lost(name)
    if as_json:
        output.dump({"event": "recovery-key", "name": name, "key": recovery})
        return
    output.say("This recovery key opens the drive on any computer. It is shown only now:")
    output.say("")
    output.say(f"    {recovery}")
    output.say("")
    if not output.is_terminal():
        return
    if os.path.exists(QRENCODE):
        code = run_program([QRENCODE, "--type=UTF8", "--output=-"], stdin=recovery.encode())
        click.echo(code.out.decode())
    else:
        output.say("(With the package qrencode it is shown as a picture, too.)")
