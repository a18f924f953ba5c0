"""`python -m tests.campaign KIND[=COUNT]…`: runs cases, and writes what became of each.

A case is a kind and a seed; seeds count from 0, or from `--first`. With `--missing`, only those are
run that are neither in docs/reliability.csv nor in the results, or were bad there. Results are
appended to build/campaign.jsonl, a line of JSON each, and a summary is printed. The exit status is
1 if there was a loss, a leak, a false all-clear, a hang, or anything else that must not be.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import queue
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from tests.campaign import report
from tests.campaign.case import Case, Hang, Stage, Verdict
from tests.campaign.sabotage import CHILDREN, KINDS, layer_of
from tests.machine import slots
from tests.machine.guest import CommandFailed, CommandTimeout
from tests.machine.wire import MachineLost

if TYPE_CHECKING:
    Todo = multiprocessing.Queue[tuple[str, int] | None]
    Done = multiprocessing.Queue[Verdict]

WHOLE = {
    "pulled": 200,
    "worker-killed": 200,
    "service-killed": 100,
    "stub-killed": 20,
    "power-cut": 100,
    "power-cut-ext4": 100,
    "lying-bridge": 20,
    **dict.fromkeys(["call-fails", "call-kills"], 19),
    **dict.fromkeys([*(f"{name}-killed" for name in CHILDREN)], 10),
    **{kind: 5 for kind in KINDS if "-while-" in kind},
}
"""How many of each kind there are in all."""
RESULTS = Path(__file__).parents[2] / "build" / "campaign.jsonl"


def run(stage: Stage, kind: str, seed: int) -> Verdict:
    """One case, from its beginning to its end."""
    verdict = Verdict(kind, seed)
    try:
        with Case(stage, verdict, layer_of(kind)) as case:
            case.change()
            try:
                KINDS[kind](case)
            finally:
                case.complaints()
    except (Hang, CommandTimeout) as error:
        verdict.hangs.append(str(error))
    except (CommandFailed, MachineLost) as error:
        verdict.faults.append(str(error))
    return verdict


def work(todo: Todo, done: Done) -> None:
    """Run cases until there are no more."""
    with ExitStack() as stack:
        with slots.slot():
            stage = stack.enter_context(Stage())
        while (case := todo.get()) is not None:
            with slots.slot():
                done.put(run(stage, *case))


def campaign(cases: list[tuple[str, int]], jobs: int, results: Path) -> int:
    """Run all of them, so many at once; returns how many were not as they must be."""
    todo: Todo = multiprocessing.Queue()
    done: Done = multiprocessing.Queue()
    for case in cases:
        todo.put(case)
    workers = [
        multiprocessing.Process(target=work, args=(todo, done))
        for _ in range(min(jobs, len(cases)))
    ]
    for each in workers:
        todo.put(None)
        each.start()
    bad = 0
    words = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "describe",
        "--always",
        "--dirty",
        "--exclude=*",
    ]
    commit = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    results.parent.mkdir(exist_ok=True)
    for number in range(1, len(cases) + 1):
        verdict = _next(done, workers)
        bad += not verdict.good
        with results.open("a") as file:
            print(json.dumps({**dataclasses.asdict(verdict), "commit": commit}), file=file)
        print(f"{number} of {len(cases)}: {shown(verdict)}", file=sys.stderr, flush=True)
    for each in workers:
        each.join()
    print(f"CAMPAIGN {'FAILED' if bad else 'PASSED'}: {len(cases)} cases, {bad} of them bad")
    return bad


def _next(done: Done, workers: list[multiprocessing.Process]) -> Verdict:
    """The next verdict; whoever should give it is there."""
    while True:
        try:
            return done.get(timeout=5)
        except queue.Empty:
            if any(each.exitcode for each in workers):
                raise RuntimeError("the campaign itself failed") from None


def shown(verdict: Verdict) -> str:
    """A verdict as a line."""
    if verdict.good:
        return (
            f"{verdict.kind} {verdict.seed}: good ({verdict.phase} at {verdict.moment} s,"
            f" locked after {verdict.recovery} s, again in {verdict.again} s)"
        )
    return f"BAD: {json.dumps(dataclasses.asdict(verdict))}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="KIND[=COUNT]")
    parser.add_argument("--whole", action="store_true", help="all kinds, as often as is promised")
    parser.add_argument("--first", type=int, default=0, metavar="SEED")
    parser.add_argument("--missing", action="store_true", help="only what has no result yet")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    cases: list[tuple[str, int]] = []
    asked = [f"{kind}={count}" for kind, count in WHOLE.items()] if options.whole else options.kinds
    for word in asked:
        kind, _, count = word.partition("=")
        if kind not in KINDS:
            parser.error(f"there is no kind {kind}; there are {', '.join(KINDS)}")
        cases += [(kind, options.first + seed) for seed in range(int(count or 1))]
    if not cases:
        parser.error("name kinds, or say --whole")
    if options.missing:
        paths = [options.results] if options.results.exists() else []
        known = {(case["kind"], case["seed"]) for case in report.read(paths) if not case["bad"]}
        cases = [case for case in cases if case not in known]
    # One that is ended early has some of each kind.
    cases.sort(key=lambda case: case[1])
    return 1 if campaign(cases, options.jobs, options.results) else 0


if __name__ == "__main__":
    sys.exit(main())
