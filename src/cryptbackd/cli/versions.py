"""``cryptback versions``: what each version is and what it changed, with the drive in a drawer."""

from __future__ import annotations

import math
import shutil

import click

from ..moment import time_of
from ..text import count, date, printable, size
from . import answers, output
from .bus import Values

_BARS = "▁▂▃▄▅▆▇█"
_SIGNS = {"added": "+", "removed": "-", "changed": "~", "attributes": "="}
_MEANS = (
    "+ added, ~ changed, - removed; “only here”: bytes of content that neither the version before"
    " nor the one after has in its place, before compression."
)


@click.command()
@click.argument("name")
@click.option(
    "--diff",
    nargs=2,
    metavar="A B",
    help='List the paths that differ from version A to B; each as in "yesterday" or a name.',
)
@output.json_option
def versions(name: str, diff: tuple[str, str] | None, as_json: bool) -> None:
    """List the versions of the drive NAME, which needn't be plugged in."""
    if diff is not None:
        output.finish(lambda: _diff(name, diff, as_json), as_json)
    output.finish(lambda: _versions(name, as_json), as_json)


def _versions(name: str, as_json: bool) -> int:
    found = list(answers.ask("Versions", "s", name))
    if as_json:
        click.echo(answers.dump({"name": name, "versions": found}))
    elif not found:
        output.say(f"No version of {name} is known here. `cryptback run {name}` makes one.")
    else:
        output.say_lines(table(found))
        if output.is_terminal():
            width = min(shutil.get_terminal_size().columns - 1, 100)
            output.say_lines(["", *picture(found, width), "", _MEANS])
    return output.DONE


def table(found: list[Values]) -> list[str]:
    """A line a version, and below it what was warned of."""
    head = ("version", "files", "size", "changes", "", "only here", "")
    rows = [head, *map(_row, found)]
    widths = [max(len(row[column]) for row in rows) for column in range(7)]
    lines = []
    for number, row in enumerate(rows):
        cells = [
            cell.ljust(width) if column in (0, 3, 6) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
        if number:
            lines += [f"    {printable(text)}" for text in found[number - 1]["warnings"]]
    return lines


def _row(version: Values) -> tuple[str, ...]:
    changes, fresh = version["changes"], ""
    if changes is not None:
        told = f"+{changes['added']:,} ~{changes['changed']:,} -{changes['removed']:,}"
        fresh = size(changes["added_bytes"] + changes["changed_bytes"])
    else:
        told = "the first one" if version["recorded"] else "not recorded"
    warned = count(version["warned"], "warning") if version["warned"] else ""
    only = "?" if version["only"] is None else size(version["only"])
    files, whole = f"{version['files']:,}", size(version["bytes"])
    return (printable(version["version"], 40), files, whole, told, fresh, only, warned)


def picture(found: list[Values], width: int) -> list[str]:
    """The versions on a line of time; a bar's height tells how much was added or changed."""
    times = [time_of(version["version"]) or version["finished"] for version in found]
    first, last = min(times), max(times)
    columns: list[float | None] = [None] * width
    for when, version in zip(times, found, strict=True):
        at = round((when - first) / (last - first or 1) * (width - 1))
        changes = version["changes"]
        fresh = changes["added_bytes"] + changes["changed_bytes"] if changes else version["bytes"]
        columns[at] = (columns[at] or 0) + fresh
    most = max(math.log1p(value) for value in columns if value is not None) or 1
    bars = "".join(
        "·" if value is None else _BARS[round(math.log1p(value) / most * (len(_BARS) - 1))]
        for value in columns
    )
    begins, ends = map(date, (first, last))
    axis = begins if begins == ends else begins + ends.rjust(width - len(begins))
    return [bars, axis]


def _diff(name: str, diff: tuple[str, str], as_json: bool) -> int:
    lines = answers.ask("Compare", "sss", name, *diff)
    between = next(lines)
    if as_json:
        click.echo(answers.dump({"name": name, **between, "paths": list(lines)}))
        return output.DONE
    output.say(f"from {between['from']} to {between['to']}:")
    some = False
    for line in lines:
        some = True
        output.say(f"{_SIGNS[line['change']]} {printable(line['path'], 1000)}{_sizes(line)}")
    if not some:
        output.say("Nothing that you may see differs.")
    return output.DONE


def _sizes(line: Values) -> str:
    told = [size(line[side]["size"]) for side in ("before", "after") if _is_file(line, side)]
    if line["change"] == "attributes":
        return "  (owner, mode or time alone)"
    return f"  {' → '.join(told)}" if told else ""


def _is_file(line: Values, side: str) -> bool:
    return side in line and line[side]["kind"] == "file"
