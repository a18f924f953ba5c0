"""The settings that a container remembers: foreign text, until somebody has agreed to it.

What is shown is what will be: the text is written anew from the values that were understood.
"""

from __future__ import annotations

import pwd
import shlex
from collections.abc import Iterator

import attrs

from ..config import AbsolutePath, Entry, Pattern, User, check_name, parse
from ..document import document
from ..errors import ConfigError, Refused
from ..text import count, printable
from . import output
from .bus import Values
from .init import Plan

_SHOWN = 150
"""Characters of a setting in a line, so that none is cut off, were each of them escaped."""
_HINT = "Say --name and --include to enrol it without the settings in it."


def chosen(plan: Plan, told: Values) -> tuple[str, str]:
    """The entry's name and its text: of what the container tells, and what was said instead.

    Raises ConfigError and Refused.
    """
    try:
        name = check_name(plan.name or str(told["name"]))
        entry = parse(str(told["entry"]), "the settings in the container")
    except ConfigError as exc:
        raise ConfigError(exc.sentence, _HINT) from exc
    backup = entry.backup
    if plan.include or plan.include_from:
        backup = attrs.evolve(
            backup,
            include=tuple(map(AbsolutePath, plan.include)),
            include_from=tuple(map(AbsolutePath, plan.include_from)),
        )
    if plan.exclude:
        backup = attrs.evolve(backup, exclude=tuple(map(Pattern, plan.exclude)))
    entry = attrs.evolve(
        entry, owner=User(plan.owner) if plan.owner else entry.owner, backup=backup
    )
    _want_user(entry)
    return name, document(entry)


def _want_user(entry: Entry) -> None:
    if entry.owner is None:
        return
    try:
        pwd.getpwnam(entry.owner)
    except KeyError:
        raise Refused(
            f"The drive belongs to {printable(entry.owner, 40)}, and there is no such user here.",
            "Name another one with --owner, or make that one first.",
        ) from None


def show(plan: Plan, told: Values, name: str, settings: str) -> None:
    """What there is in the container, and what would take effect."""
    if plan.as_json:
        output.dump({"event": "recovered", **told, "name": name, "entry": settings})
        return
    versions = count(int(told["versions"]), "version")
    output.say(f"It was {told['name']} on the computer {told['host']}, and has {versions};")
    output.say(f"the newest is {told['version']}. These settings are in it:")
    output.say("")
    # As TOML has it: what else ends a line for Python may stand in a pattern, and hide the rest.
    for line in settings.split("\n"):
        # These belong to the drive that they were made for: the ones of this drive are taken.
        if line and not line.startswith(("#", "uuid =", "container =")):
            output.say_lines(f"    {line[at : at + _SHOWN]}" for at in range(0, len(line), _SHOWN))
    output.say("")
    output.say(f"They take effect as the entry {name}: what `include` names is what root copies.")


def afterwards(name: str, settings: str) -> Iterator[str]:
    """What to do next, on a computer that may have nothing of it yet."""
    yield f"To get your files back, before the next backup of {name}:"
    for path in parse(settings, name).backup.include:
        yield f"  cryptback restore {name} {shlex.quote(path)}"
    yield f"Then: cryptback run {name}. It is also backed up to when it is plugged in again."
