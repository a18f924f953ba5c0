"""What is printed: answers on standard output, errors on standard error.

Every text that comes from the daemon may hold what a drive or another user chose, and goes
through ``printable`` before a terminal sees it.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterable

import click

from ..errors import BY_NAME, CryptbackError, Refused
from ..text import printable
from .bus import Values

DONE = 0
WARNINGS = 3


def whatever_the_terminal() -> None:
    """Have characters that standard output's encoding lacks written as escapes, from now on.

    As on standard error: a name, or an ellipsis, is to end no command, nor change its exit code.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def say(text: str) -> None:
    """A line for a person."""
    click.echo(printable(text, 2000))


def say_lines(lines: Iterable[str]) -> None:
    """Lines for a person."""
    for line in lines:
        say(line)


def dump(values: Values) -> None:
    """A document, or a line, for a program; in ASCII, since a terminal may see it, too."""
    click.echo(json.dumps(values))


def complain(error: CryptbackError) -> None:
    """An error for a person: the sentence, and what to do about it."""
    click.echo(f"cryptback: {printable(error.sentence, 1000)}", err=True)
    if error.hint:
        click.echo(f"  {printable(error.hint, 1000)}", err=True)


def begun(name: str, run: str, as_json: bool) -> None:
    """Tell a program which run was begun."""
    if as_json:
        dump({"event": "begun", "name": name, "run": run})


def is_terminal() -> bool:
    """Whether a person looks at standard output."""
    return sys.stdout.isatty()


def absolute(path: str) -> str:
    """*path*, from / on; raises Refused."""
    try:
        return os.path.abspath(path)
    except FileNotFoundError:
        raise Refused(
            "The directory that you are in is gone.", "Say the path of what you mean from / on."
        ) from None


def want_root() -> None:
    """Raise Refused for anybody but root, before anything is asked of them."""
    if os.geteuid() != 0:
        raise Refused("Only root may ask for that.", "Try it with sudo.")


def want_somebody(as_json: bool) -> None:
    """Raise Refused where nobody can be asked whether to go on."""
    if as_json or not sys.stdin.isatty():
        raise Refused(
            "Nobody can be asked whether to go on, as this is no terminal.",
            "--yes goes on without asking.",
        )


def want_somebody_for(option: str) -> None:
    """Raise Refused where nobody can be asked for what *option* would say."""
    if not sys.stdin.isatty():
        raise Refused("Nobody can be asked, as this is no terminal.", f"Say {option}.")


def finish(verb: Callable[[], int], as_json: bool) -> None:
    """Do *verb* and leave the program with its exit code."""
    try:
        code = verb()
    except CryptbackError as exc:
        if as_json:
            dump(
                {
                    "event": "error",
                    "error": type(exc).__name__,
                    "sentence": exc.sentence,
                    "hint": exc.hint,
                    "code": exc.code,
                }
            )
        complain(exc)
        code = exc.code
    click.get_current_context().exit(code)


def exit_code(result: Values) -> int:
    """The exit code for the end of a run."""
    match result["outcome"]:
        case "done" | "skipped":
            return DONE
        case "warnings":
            return WARNINGS
        case "cancelled":
            return 130
        case _:
            return BY_NAME.get(result["error"], CryptbackError).code


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
# What costs more is taken for a forged header that is to keep a computer busy (worker.whitelist).
pbkdf_memory_option = click.option(
    "--pbkdf-memory",
    type=click.IntRange(1, 4096),
    metavar="MIB",
    help="Memory that guessing costs.",
)
pbkdf_iterations_option = click.option(
    "--pbkdf-iterations",
    type=click.IntRange(1, 10_000),
    metavar="N",
    help="Time that guessing costs.",
)
