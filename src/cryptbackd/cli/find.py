"""``cryptback find``: which versions hold a file, with the drive in a drawer."""

from __future__ import annotations

import os

import click

from ..text import count, date, printable, size
from . import answers, output
from .bus import Values, options


@click.command()
@click.argument("pattern")
@click.option("--drive", metavar="NAME", help="Search the versions on this drive alone.")
@click.option(
    "--limit",
    type=click.IntRange(1, 10_000),
    default=100,
    show_default=True,
    help="The most files to tell of.",
)
@output.json_option
def find(pattern: str, drive: str | None, limit: int, as_json: bool) -> None:
    """Find the versions that hold a file.

    PATTERN is a piece of its name; with *, ? or […] a pattern for the whole name; with a / in it,
    the end of a path, or all of it. The drive needn't be plugged in.
    """
    output.finish(lambda: _find(pattern, drive, limit, as_json), as_json)


def _find(pattern: str, drive: str | None, limit: int, as_json: bool) -> int:
    asked = options(drive=drive, limit=limit)
    lines = list(answers.ask("Find", "sa{sv}", resolved(pattern), asked))
    files = [line for line in lines if "path" in line]
    searched = [line for line in lines if "searched" in line]
    if as_json:
        click.echo(answers.dump({"files": files, "drives": searched}))
    else:
        output.say_lines(shown(files, searched))
    return output.DONE


def resolved(pattern: str) -> str:
    """*pattern*, as a path from the root where it is one from here or from home."""
    if pattern.startswith("~"):
        return os.path.expanduser(pattern)
    if pattern.startswith(("./", "../")):
        return output.absolute(pattern)
    return pattern


def shown(files: list[Values], searched: list[Values]) -> list[str]:
    """What a person is told."""
    lines: list[str] = []
    by_path: dict[str, list[Values]] = {}
    for file in files:
        by_path.setdefault(file["path"], []).append(file)
    for path in sorted(by_path):
        lines.append(printable(path, 1000))
        for file in by_path[path]:
            lines += [f"  {file['drive']}: {_state(state)}" for state in file["states"]]
            if not file["newest"]:
                lines.append(f"  {file['drive']}: not in the newest version")
    if not files:
        number = sum(drive["versions"] for drive in searched)
        lines.append(f"Nothing was found in {count(number, 'version')}.")
    for drive in searched:
        if drive["more"]:
            lines.append(
                f"{drive['searched']} has more; --limit shows them, or say more of the name."
            )
        if drive["unknown"]:
            lines.append(
                f"{drive['searched']}: {count(len(drive['unknown']), 'version')} could not be"
                f" searched ({', '.join(drive['unknown'][:3])}"
                f"{', …' if len(drive['unknown']) > 3 else ''})."
            )
    return lines


def _state(state: Values) -> str:
    span = state["first"]
    if state["versions"] > 1:
        span += f" to {state['last']} ({count(state['versions'], 'version')})"
    if state["kind"] != "file":
        return f"{span}: {state['kind']}"
    changed = date(state["mtime"], "%Y-%m-%d %H:%M")
    return f"{span}: {size(state['size'])}, changed {changed}"
