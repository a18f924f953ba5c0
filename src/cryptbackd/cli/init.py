"""``cryptback init``: look at a device, ask, and have it enrolled.

The passphrase goes into the pipes that the daemon made, and nowhere else: no argument, no
environment, no log has it.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from ..config import check_name
from ..errors import CryptbackError, Refused
from ..text import parse_size, printable, size
from . import ask, bus, follow, output
from .bus import Values

if TYPE_CHECKING:
    from .kit import Places


def _size(_context: click.Context, _option: click.Parameter, value: str | None) -> int | None:
    try:
        return None if value is None else parse_size(value)
    except ValueError as exc:
        raise click.BadParameter(str(exc)) from exc


@attrs.frozen
class Plan:
    """What was asked for on the command line."""

    device: str
    name: str
    include: tuple[str, ...]
    include_from: tuple[str, ...]
    exclude: tuple[str, ...]
    size: int | None
    filesystem: str
    format: str | None
    container: str | None
    owner: str | None
    passphrase_fd: int | None
    run: bool
    yes: bool
    pbkdf_memory: int | None
    pbkdf_iterations: int | None
    part_size: int | None
    adopt: bool
    detached: bool
    kit: str | None
    header: str | None
    as_json: bool
    diskseq: int | None = None
    """Of the insertion that was shown, and agreed to."""

    def options(self) -> dict[str, Any]:
        """As the daemon wants to have it."""
        container = "" if self.format == "luks" else self.container
        return bus.options(
            name=self.name or None,
            container=container,
            size=self.size,
            filesystem=self.filesystem,
            format=self.format,
            include=list(self.include),
            include_from=list(self.include_from) or None,
            exclude=list(self.exclude),
            owner=self.owner,
            run=self.run,
            pbkdf_memory=None if self.pbkdf_memory is None else self.pbkdf_memory * 1024,
            pbkdf_iterations=self.pbkdf_iterations,
            part_size=self.part_size,
            diskseq=self.diskseq,
            adopt=self.adopt or None,
            detached=self.detached or None,
            header=self.header is not None or None,
        )


@click.command()
@click.argument("device")
@click.option(
    "--name", default="", help="What the drive is called from now on; needed but with --adopt."
)
@click.option(
    "--include",
    multiple=True,
    metavar="PATH",
    help="A directory or file to back up; may be given again.",
)
@click.option(
    "--include-from",
    multiple=True,
    metavar="FILE",
    help="A list of what to back up, one path a line, read anew in each run; may be given again.",
)
@click.option(
    "--exclude",
    multiple=True,
    metavar="PATTERN",
    help="An rsync pattern of what to leave out; may be given again.",
)
@click.option(
    "--size", callback=_size, metavar="SIZE", help="Of the container, such as 8G; most of the"
    " free space, if left out."
)  # fmt: skip
@click.option(
    "--filesystem",
    type=click.Choice(["btrfs", "ext4", "xfs"]),
    default="btrfs",
    show_default=True,
    help="Inside the container.",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["ext4", "exfat", "luks"]),
    help="First make the device anew, ERASING all that is on it; luks: no file, the device"
    " itself is encrypted.",
)
@click.option("--container", metavar="FILE", help="The container's name on the drive.")
@click.option("--owner", metavar="USER", help="Whose session may answer for the drive.")
@click.option(
    "--passphrase-fd",
    type=click.IntRange(0),
    metavar="N",
    help="Read the passphrase, one line, from this descriptor.",
)
@click.option(
    "--adopt", is_flag=True, help="Enrol a drive again that has a backup: what is on it stays."
)
@click.option(
    "--detached-header",
    "detached",
    is_flag=True,
    help="Write no header to the drive: it is on this computer and in the recovery kit alone.",
)
@click.option("--kit", metavar="DIR", help="Write the recovery kit to this directory.")
@click.option(
    "--header", metavar="FILE", help="With --adopt: the header from the recovery kit, where the"
    " drive has none."
)  # fmt: skip
@click.option("--no-run", is_flag=True, help="Don't make the first backup now.")
@click.option("--yes", is_flag=True, help="Don't ask; for scripts.")
@output.pbkdf_memory_option
@output.pbkdf_iterations_option
@click.option("--part-size", callback=_size, hidden=True)
@output.json_option
def init(
    device: str,
    name: str,
    include: tuple[str, ...],
    include_from: tuple[str, ...],
    exclude: tuple[str, ...],
    size: int | None,
    filesystem: str,
    format_: str | None,
    container: str | None,
    owner: str | None,
    passphrase_fd: int | None,
    adopt: bool,
    detached: bool,
    kit: str | None,
    header: str | None,
    no_run: bool,
    yes: bool,
    pbkdf_memory: int | None,
    pbkdf_iterations: int | None,
    part_size: int | None,
    as_json: bool,
) -> None:
    """Prepare the drive on DEVICE (such as /dev/sda1) for backups.

    Makes an encrypted container on it, remembers the drive, and makes the first backup.
    Shows first what is on the device, and asks before anything is changed.
    """

    def plan() -> Plan:
        return Plan(
            device,
            name,
            tuple(output.absolute(path) for path in include),
            tuple(output.absolute(path) for path in include_from),
            exclude,
            size,
            filesystem,
            format_,
            container,
            owner,
            passphrase_fd,
            not no_run,
            yes,
            pbkdf_memory,
            pbkdf_iterations,
            part_size,
            adopt,
            detached,
            kit,
            header,
            as_json,
        )

    output.finish(lambda: _init(plan()), as_json)


def _init(plan: Plan) -> int:
    # What is asked of a person is asked between two connections and outside of any loop,
    # where Ctrl-C simply ends the program.
    _check(plan)
    if plan.adopt:
        from .adopt import enrol_again

        return enrol_again(plan)
    found = asyncio.run(_survey(plan))
    _show(plan, found)
    if found["problems"]:
        first, *others = found["problems"]
        for problem in others:
            output.complain(CryptbackError(problem["sentence"], problem["hint"]))
        raise Refused(first["sentence"], first["hint"])
    plan = attrs.evolve(plan, diskseq=found["diskseq"])
    directory = plan.kit
    if plan.detached and directory is None:
        directory = click.prompt("A directory for the recovery kit, not on this drive")
    if not plan.yes and not click.confirm("Go on?"):
        raise Refused("Nothing was changed.")
    if directory is None:
        result = asyncio.run(_enrol(plan, ask.new("Passphrase for the drive", plan.passphrase_fd)))
        return _finish(plan, result)
    return _with_kit(plan, directory)


def _finish(plan: Plan, result: Values) -> int:
    if plan.as_json:
        output.dump({"event": "result", **result})
    else:
        _tell(plan, result)
    return output.exit_code(result)


def _with_kit(plan: Plan, directory: str) -> int:
    """Enrol the drive, and write its kit: before anything counts, or when all is done."""
    from . import kit

    kits = kit.Plan(plan.name, Path(output.absolute(directory)), False, plan.as_json)
    with kit.places(kits) as places:
        passphrase = ask.new("Passphrase for the drive", plan.passphrase_fd)
        result = asyncio.run(_enrol(plan, passphrase, places if plan.detached else None))
        code = _finish(plan, result)
        if not plan.detached and result["outcome"] in ("done", "warnings"):
            kit.write_for(kits, places)
        elif places.page.kept:
            kit.tell(kits, {"problem": ""}, "")
    return code


async def _survey(plan: Plan) -> Values:
    async with bus.connected(fds=False) as client:
        (answer,) = await client.call("Survey", "sa{sv}", plan.device, plan.options())
    found: Values = json.loads(answer)
    return found


async def _enrol(plan: Plan, passphrase: bytes, places: Places | None = None) -> Values:
    async with bus.connected() as client:
        await client.listen()
        (run_id,) = await client.call("Init", "sa{sv}", plan.device, plan.options())
        taking = None if places is None else await _take_header(client, run_id, places)
        line = passphrase + b"\n"
        await ask.hand_over(client, run_id, {"format": line, "first-open": line})
        del passphrase, line
        if plan.as_json:
            output.dump({"event": "begun", "name": plan.name, "run": run_id})
        results = await follow.follow(client, plan.name, [run_id], follow.display(plan.as_json))
        result = results[run_id]
        if taking is not None and places is not None:
            await taking
            if result["outcome"] not in ("done", "warnings"):
                from . import kit

                await kit.take_back_unless_enrolled(plan.name, places)
    return result


async def _take_header(client: bus.Client, run: str, places: Places) -> asyncio.Future[Any]:
    """Write the kit as soon as the header comes."""
    from . import kit

    header = await client.call_for_fd("HandOver", "ss", run, "header")
    kept = await client.call_for_fd("HandOver", "ss", run, "kit")
    return asyncio.get_running_loop().run_in_executor(None, kit.take, header, kept, places)


def _check(plan: Plan) -> None:
    """Refuse what can be known to be wrong before any device is looked at."""
    if plan.name or not plan.adopt:
        check_name(plan.name)
    if not plan.include and not plan.include_from and not plan.adopt:
        raise Refused(
            "It was not said what is to be backed up.",
            "Say --include PATH, or --include-from FILE.",
        )
    if plan.format == "luks" and plan.container is not None:
        raise Refused("With --format luks there is no container file.", "Leave out --container.")
    if plan.detached and (plan.adopt or plan.format == "luks"):
        raise Refused("--detached-header is for a new container that is a file.")
    if plan.detached and plan.kit is None:
        output.want_somebody_for("--kit DIR")
    if plan.header is not None and not plan.adopt:
        raise Refused("--header is for --adopt.")
    if plan.adopt and plan.kit is not None:
        raise Refused("With --adopt no kit is written.", f"cryptback kit {plan.name}")
    if plan.adopt and (plan.format or plan.size):
        raise Refused("With --adopt nothing is made.", "Leave out --format and --size.")
    for path in plan.include:
        if not os.path.lexists(path):
            raise Refused(f"There is nothing at {printable(path)}.", "Look at --include.")
    for path in plan.include_from:
        if not os.path.isfile(path):
            raise Refused(f"There is no file {printable(path)}.", "Look at --include-from.")
    if not plan.yes:
        output.want_somebody(plan.as_json)
    ask.want_terminal("--passphrase-fd", plan.passphrase_fd)


def _show(plan: Plan, found: Values) -> None:
    if plan.as_json:
        output.dump({"event": "survey", **found})
        return
    what = " ".join(word for word in (found["model"], found["serial"]) if word)
    output.say(f"{found['device']}: {what or 'a drive'}, {size(found['size'])}")
    if found["fstype"]:
        label = f' "{found["label"]}"' if found["label"] else ""
        output.say(
            f"  holds {found['fstype']}{label}, UUID {found['uuid'] or '(none)'};"
            f" {size(found['used'])} used, {size(found['free'])} free"
        )
    else:
        output.say("  holds no filesystem that is known")
    if found["mounted"]:
        output.say(f"  is mounted at {', '.join(found['mounted'])}")
    if not found["removable"]:
        output.say("  is NOT a removable drive")
    if found["problems"]:
        return
    if plan.format is not None:
        output.say(f"ALL THAT IS ON {found['device']} WILL BE ERASED ({plan.format}).")
    if plan.format != "luks":
        length = plan.size or found["suggested_size"]
        name = plan.container or "backup.luks"
        what = f"An encrypted file {name} of {size(length)}"
        if found["files"] > 1:
            what = (
                f"Encrypted files {name}.000, … ({found['files']} files, together {size(length)})"
            )
        output.say(f"{what} will be made on it, with {plan.filesystem} inside.")
    if plan.detached:
        output.say(
            "It is filled with random data, and NO HEADER is written to the drive: the header"
        )
        output.say("will be on this computer and in the recovery kit. If both are lost, so is all.")
    sources = [*plan.include, *(f"what is listed in {path}" for path in plan.include_from)]
    output.say(f"Backed up will be: {', '.join(sources)}")


def _tell(plan: Plan, result: Values) -> None:
    follow.tell(result)
    if result["outcome"] not in ("done", "warnings"):
        return
    name = plan.name
    output.say(f"{name} is enrolled: whenever it is plugged in, it is backed up to.")
    output.say(f"  What is backed up stands in /etc/cryptback/drives.d/{name}.toml.")
    output.say("  So that nobody is asked for the passphrase, store it for this computer:")
    output.say(f"    cryptback passphrase {name} remember")
