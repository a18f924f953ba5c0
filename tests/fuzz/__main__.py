"""``python -m tests.fuzz [--minutes M] [--cases N] [NAME…]``: try until both are reached.

One after another; each gets its time and its number of inputs.  Seeds follow each other from
``--seed`` on, so that a run can be repeated.  What was tried goes to ``build/fuzz/``, a line of
JSON a kind, from which ``--report`` writes docs/fuzzing.md.  What fails is written beside them as
``KIND.failed``; mended, it becomes a file below ``tests/fuzz/cases``.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback

from tests.fuzz import notes, report
from tests.fuzz.fuzzer import Fuzzer, run
from tests.fuzz.kinds import FUZZERS


def tried(fuzzer: Fuzzer, seconds: float, cases: int, first: int) -> bool:
    """Run one fuzzer, and note what was tried; whether its property held."""
    began = time.strftime("%Y-%m-%d", time.gmtime())
    try:
        tally = run(fuzzer, seconds, cases, first)
    except Exception:
        failed = notes.PLACE / f"{fuzzer.name}.failed"
        failed.write_text(traceback.format_exc())
        traceback.print_exc()
        print(f"{fuzzer.name}: FAILED, see {failed}", flush=True)
        return False
    line = {
        "name": fuzzer.name, "day": began, "cases": tally.cases, "seconds": round(tally.seconds),
        "seeds": [tally.seeds[0], tally.seeds[-1]] if tally.seeds else [], "slowest": tally.slowest,
        "outcomes": dict(tally.outcomes.most_common()),
    }  # fmt: skip
    notes.note(line)
    seeds = f"seeds {tally.seeds[0]} to {tally.seeds[-1]}" if tally.seeds else "no seed"
    print(f"{fuzzer.name}: {tally.cases:,} cases in {tally.seconds:.0f} s, {seeds}", flush=True)
    return True


def main() -> int:
    """Try; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--minutes", type=float, default=0.1, help="of each kind, at least")
    parser.add_argument("--cases", type=int, default=1000, help="of each kind, at least")
    parser.add_argument("--seed", type=int, default=1, help="the first one")
    parser.add_argument("--report", action="store_true", help="write docs/fuzzing.md, then end")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(FUZZERS))
    asked = parser.parse_args()
    if asked.report:
        report.write()
        return 0
    unknown = set(asked.names) - set(FUZZERS)
    if unknown:
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    if os.geteuid() != 0:
        parser.error("an entry must be root's, so this must run as root")
    notes.PLACE.mkdir(parents=True, exist_ok=True)
    names = asked.names or list(FUZZERS)
    held = [tried(FUZZERS[n], asked.minutes * 60, asked.cases, asked.seed) for n in names]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
