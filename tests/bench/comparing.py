"""Processor time of finding out what has changed: a quick run's way beside rsync's.

Runs on this computer, without a drive: what is cached, and nothing else, is measured. A quick run
lists the source and compares that with the manifest; rsync walks both sides. What both have
beside (starting, opening the container, the version) is not in it: that is `make bench`'s.

    PYTHONPATH=src .venv/bin/python -m tests.bench.comparing --files 100000
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import tempfile
from pathlib import Path

from cryptbackd import manifest
from cryptbackd.manifest_writing import write_raw
from cryptbackd.worker.quick.difference import difference

ENVIRONMENT = {"LC_ALL": "C", "PATH": "/usr/bin:/bin"}


def make(source: Path, number: int) -> None:
    """So many small files, 25 in a directory."""
    for i in range(number):
        directory = source / f"{i // 1000:03d}" / f"{i // 25 % 40:02d}"
        if i % 25 == 0:
            directory.mkdir(parents=True)
        (directory / f"file-{i:06d}.txt").write_bytes(b"x" * (i % 300))


def listed(source: Path, out: Path) -> None:
    """The sorted listing of a source, by the programs that a run has list it."""
    with open(out, "wb") as file:
        find = subprocess.Popen(
            ["find", source, "-mindepth", "1", "-printf", manifest.LISTING],
            stdout=subprocess.PIPE,
            env=ENVIRONMENT,
        )
        sort = ["sort", "-z", "-S", "64M"]
        subprocess.run(sort, stdin=find.stdout, stdout=file, env=ENVIRONMENT, check=True)
        assert find.stdout
        find.stdout.close()
        assert find.wait() == 0


def quick(source: Path, before: Path, out: Path) -> None:
    """What a quick run does to learn that nothing has changed."""
    listed(source, out)
    with manifest.opened(before) as known:
        found = difference(out, known)
    assert not found.now
    assert not found.before


def cpu() -> float:
    """Seconds of processor time that this process and its children have used."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.comparing", description=__doc__)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {"quick run": [], "rsync -a": []}
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as place:
        source, copy, lines = Path(place, "source"), Path(place, "copy"), Path(place, "list")
        before = Path(place, "manifest")
        make(source, options.files)
        rsync = ["rsync", "-a", f"{source}/", f"{copy}/"]
        subprocess.run(rsync, check=True)
        listed(source, lines)
        # A listing ends with "-" for the checksum, as a manifest does where none is known.
        write_raw(before, (line for line in lines.read_bytes().split(b"\0") if line))
        for _ in range(options.rounds):
            begun = cpu()
            quick(source, before, lines)
            seconds["quick run"].append(cpu() - begun)
            begun = cpu()
            subprocess.run(rsync, check=True)
            seconds["rsync -a"].append(cpu() - begun)
    for name, found in seconds.items():
        print(
            f"{name}: {statistics.median(found):.2f} s of processor time for {options.files:,}"
            f" files (median of {options.rounds})"
        )


main()
