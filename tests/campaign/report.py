"""Measures for docs/reliability.md: `python -m tests.campaign.report FILE…`.

The files are a campaign's results, which are added to docs/reliability.csv: there each case stands
with the commit of the program, and the report is made of it.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.campaign.calls import POINTS

REPORT = Path(__file__).parents[2] / "docs" / "reliability.md"
CASES = REPORT.with_suffix(".csv")
COLUMNS = ("kind", "seed", "commit", "phase", "moment", "recovery", "again", "noticed", "bad")
RESULTS = ("losses", "leaks", "false_clears", "hangs", "faults")

MEASURED = re.compile("(?<=<!-- measured -->\\n).*(?=<!-- /measured -->)", re.DOTALL)


def read(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """The cases that are known and those in the files; of one that was run again, the last."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    if CASES.exists():
        with CASES.open(newline="") as file:
            for row in csv.DictReader(file):
                case: dict[str, Any] = {**row, **json.loads(row["bad"] or "{}")}
                case["seed"] = int(case["seed"])
                case.update({name: float(case[name]) for name in ("moment", "recovery", "again")})
                found[case["kind"], case["seed"]] = case
    for path in paths:
        for line in path.read_text().splitlines():
            result = json.loads(line)
            bad = {name: result[name] for name in RESULTS if result[name]}
            result["bad"] = json.dumps(bad) if bad else ""
            result["noticed"] = "yes" if result["noticed"] else ""
            found[result["kind"], result["seed"]] = result
    return [found[key] for key in sorted(found)]


def keep(results: list[dict[str, Any]]) -> None:
    """Write down all cases."""
    with CASES.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(results)


def table(results: list[dict[str, Any]]) -> list[str]:
    """A line for each kind, and one for all."""
    lines = [
        "| damage | cases | seeds | losses | leaks | false all-clears | hangs | faults"
        " | slowest recovery | slowest next run |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    kinds = dict.fromkeys(result["kind"] for result in results)
    for kind in (*sorted(kinds), None):
        group = [result for result in results if kind in (None, result["kind"])]
        bad = [str(sum(bool(result.get(name)) for result in group)) for name in RESULTS]
        times = [f"{max(result[name] for result in group):.1f} s" for name in ("recovery", "again")]
        cells = [kind or "**all**", str(len(group)), seeds(group) if kind else "", *bad, *times]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def seeds(group: list[dict[str, Any]]) -> str:
    """The seeds of cases of one kind, as `0–19, 25`."""
    runs: list[list[int]] = []
    for seed in sorted(result["seed"] for result in group):
        if runs and seed == runs[-1][1] + 1:
            runs[-1][1] = seed
        else:
            runs.append([seed, seed])
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in runs)


def phases(results: list[dict[str, Any]]) -> list[str]:
    """How often each phase of a run was hit."""
    pulled = Counter(r["phase"] for r in results if r["kind"].startswith("pulled"))
    killed = Counter(r["phase"] for r in results if r["kind"].startswith("worker"))
    lines = ["| in the phase | pulled | worker killed |", "| --- | ---: | ---: |"]
    names = dict.fromkeys([*pulled, *killed])
    return lines + [f"| {name or '–'} | {pulled[name]} | {killed[name]} |" for name in names]


def all_clears(results: list[dict[str, Any]]) -> str:
    """How often the stick was pulled in the instant of the all-clear.

    As ``sabotage.again`` has it, every other one loses what is only in its cache then.
    """
    told = [r for r in results if r["again"] and not r["kind"].startswith("lying")]
    cache = [r for r in told if not r["kind"].startswith("call") and r["seed"] // 2 % 2]
    return (
        f"In the instant of the all-clear the stick was pulled {len(told)} times, {len(cache)} of"
        " them with a cache that went with it."
    )


def points(results: list[dict[str, Any]]) -> list[str]:
    """How many of the worker's system calls were hit."""
    lines = []
    for kind, what in (("call-fails", "failed"), ("call-kills", "killed it")):
        # One that hung may not have come to count them.
        group = [r for r in results if r["kind"] == kind and r["phase"]]
        if group:
            numbers = [int(result["phase"].split()[0]) for result in group]
            left = (n - r["seed"] * POINTS for n, r in zip(numbers, group, strict=True))
            hit = sum(min(POINTS, each) for each in left)
            lines.append(
                f"Of the {max(numbers)} system calls by which a worker changes something in a run,"
                f" {hit} {what}, one at a time, each followed by a run to which nothing was done."
            )
    return lines


def bad_cases(results: list[dict[str, Any]]) -> list[str]:
    """The cases that were not as they must be, each with what was wrong."""
    return [
        f"- `{result['kind']}` {result['seed']}: {name.replace('_', ' ')}: {what}"
        for result in results
        for name in RESULTS
        for what in result.get(name, ())
    ]


def main() -> None:
    """Write the report."""
    paths = [Path(word) for word in sys.argv[1:]]
    results = read(paths)
    keep(results)
    lying = [result for result in results if result["kind"] == "lying-bridge"]
    noticed = sum(bool(result["noticed"]) for result in lying)
    lines = [
        *table(results),
        "",
        f"Behind a bridge that lies about flushing, {len(lying)} times: the next run noticed that"
        f" something was lost in {noticed}.",
        "",
        all_clears(results),
        "",
        *points(results),
        "",
        *phases(results),
        *(["", "Bad cases:", "", *bad_cases(results)] if bad_cases(results) else []),
    ]
    measured = "\n" + "\n".join(lines) + "\n\n"
    REPORT.write_text(MEASURED.sub(lambda _: measured, REPORT.read_text()))


if __name__ == "__main__":
    main()
