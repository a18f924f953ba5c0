"""What was tried, as docs/fuzzing.md tells it: only the part between two marks is written anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.fuzz.kinds import FUZZERS
from tests.fuzz.notes import BUS, newest

PAGE = Path(__file__).parents[2] / "docs" / "fuzzing.md"
BEGIN, END = "<!-- measured -->\n", "<!-- /measured -->\n"


def _row(name: str, reads: str, line: dict[str, Any]) -> str:
    came = ", ".join(f"{word} {count:,}" for word, count in line["outcomes"].items())
    return (
        f"| `{name}` | {reads} | {line['cases']:,} | {line['seconds'] / 60:.1f} |"
        f" {line['slowest'] * 1000:.0f} | {line['seeds'][0]}–{line['seeds'][-1]} | {line['day']} |"
        f" {came} |"
    )


def section() -> str:
    """The tables of what was tried last."""
    rows = [
        "| kind | what is read | cases | minutes | slowest, ms | seeds | on | what came of them |",
        "| --- | --- | ---: | ---: | ---: | --- | --- | --- |",
    ]
    for name, fuzzer in FUZZERS.items():
        line = newest(name)
        if line is not None:
            rows.append(_row(name, fuzzer.reads, line))
    line = newest(BUS)
    if line is not None:
        rows.append(_row(BUS, "calls of an ordinary user on the real bus, in the machine", line))
    return "\n".join(rows) + "\n"


def write() -> None:
    """Put the section into docs/fuzzing.md."""
    before, _begin, rest = PAGE.read_text().partition(BEGIN)
    _old, _end, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{section()}\n{END}{after}")
