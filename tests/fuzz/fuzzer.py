"""A fuzzer: a generator of input and a property, and how it is run for as long as is wanted."""

from __future__ import annotations

import resource
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

CASES = Path(__file__).parent / "cases"
BATCH = 1000
"""Inputs of one run of hypothesis, which has a seed of its own."""
MOST_SECONDS = 2.0
"""Of a processor, for one input: what takes longer could be made to take for ever."""
MOST_MEMORY = 256 << 20
"""Bytes that the process may grow by for one input; what wants more is given a MemoryError."""
_HANGS = 30.0
"""Seconds after which an input is given up that waits for something."""


@attrs.frozen
class Fuzzer:
    """One kind of input.

    *check* raises what it likes where the property does not hold; it returns a word for what
    came of the input ("refused", "read"), by which the report shows that both came about.
    """

    name: str
    reads: str
    """What is read, and by what: for the report."""
    inputs: st.SearchStrategy[bytes]
    check: Callable[[bytes], str]


@attrs.define
class Tally:
    """What was tried."""

    cases: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    """Processor seconds of one input."""
    outcomes: Counter[str] = attrs.field(factory=Counter)
    seeds: list[int] = attrs.field(factory=list)


class TooSlow(AssertionError):
    """An input took longer than any should."""


def kept(fuzzer: Fuzzer) -> Iterator[Path]:
    """The files with inputs that once broke something."""
    folder = CASES / fuzzer.name
    if folder.is_dir():
        yield from sorted(folder.iterdir())


def try_one(fuzzer: Fuzzer, raw: bytes, tally: Tally) -> None:
    """Hold one input against the property."""
    began = time.process_time()
    with _bounded(), _alarm():
        outcome = fuzzer.check(raw)
    took = time.process_time() - began
    tally.cases += 1
    tally.outcomes[outcome] += 1
    tally.slowest = max(tally.slowest, took)
    if took > MOST_SECONDS:
        raise TooSlow(f"{took:.1f} processor seconds for {len(raw)} bytes")


@contextmanager
def _bounded() -> Iterator[None]:
    with open("/proc/self/statm", encoding="ascii") as file:
        has = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (has + MOST_MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@contextmanager
def _alarm() -> Iterator[None]:
    rung = False

    def ring(_number: int, _frame: object) -> None:
        nonlocal rung
        if rung:
            raise TooSlow(f"it went on for more than {_HANGS:.0f} seconds")
        rung = True  # once may be that the whole process was stopped
        signal.setitimer(signal.ITIMER_REAL, _HANGS / 2)

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, _HANGS / 2)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def batch(fuzzer: Fuzzer, number: int, cases: int, tally: Tally) -> None:
    """So many inputs of the seed *number*; raises what the property does, for the least of them."""

    @seed(number)
    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(fuzzer.inputs)
    def tried(raw: bytes) -> None:
        try_one(fuzzer, raw, tally)

    tried()


def run(fuzzer: Fuzzer, seconds: float, cases: int, first: int) -> Tally:
    """Go on until both the time is over and so many inputs were tried."""
    tally = Tally()
    began = time.monotonic()
    for path in kept(fuzzer):
        try_one(fuzzer, path.read_bytes(), tally)
    number = first
    while tally.cases < cases or time.monotonic() - began < seconds:
        tally.seeds.append(number)
        batch(fuzzer, number, min(BATCH, max(100, cases)), tally)
        tally.seconds = time.monotonic() - began
        number += 1
    return tally
