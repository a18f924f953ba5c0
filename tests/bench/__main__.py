"""`make bench`: runs with nothing changed and with ten files changed, ours and others'.

Everything is in one machine. Each contender has a stick of its own and the same stack on it: ext4,
a LUKS2 container, btrfs or ext4 in that. They take turns, with cold caches, on sticks that serve
120 requests a second, as a spinning disk does. The report goes to build/speed.md; docs/speed.md has
one, with what follows from it.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import sys
from pathlib import Path

from tests.bench.contenders import MIB, SOURCE, Contender, Cost, contenders
from tests.machine import Machine, layers, slots

REPORT = Path(__file__).parents[2] / "build" / "speed.md"
SITUATIONS = ("nothing changed", "10 changed")
MAKE = """
import os, random, shutil, sys
top, number = sys.argv[1], int(sys.argv[2])
dice = random.Random(number)
shutil.rmtree(top, ignore_errors=True)
for i in range(number):
    directory = f"{top}/{i // 1000:03d}/{i // 25 % 40:02d}"
    os.makedirs(directory, exist_ok=True)
    with open(f"{directory}/file-{i:06d}.txt", "wb") as file:
        file.write(dice.randbytes(dice.randrange(3000)))
"""
CHANGE = f"find {SOURCE} -name '*{{}}.txt' | head -n 10 | while read f; do echo more >> $f; done"

HEAD = """
# How fast it is, beside others

Measured by `{command}` on {day}, in one emulated machine ({accelerator}). Seconds are those of
that machine, and can only be compared with each other; requests are requests.

Each contender has the same stack: a stick with ext4, in that a LUKS2 container, in that btrfs or
ext4. The measure begins with everything locked and caches cold, and ends with everything written
and locked again. The stick serves {iops} requests a second, as a spinning disk does. Contenders
take turns; shown is the median of {rounds} round(s).

The others are run by a script that opens the container and closes it again, and proves nothing in
the end. borg and restic keep caches on the computer. cryptbackd reads nothing back here (`sample
= "0%"`). Processor time is that of the programs, without the kernel's threads; for cryptbackd it
is that of the whole service.
"""
Costs = dict[tuple[str, int, str, str], list[Cost]]
"""By filesystem, number of files, situation and contender."""


def measure(
    vm: Machine, filesystem: str, number: int, asked: argparse.Namespace, costs: Costs
) -> None:
    """Each contender in each situation, in turn."""
    vm.run(["python3", "-c", MAKE, SOURCE, str(number)], timeout=600)
    size = (800 + number // 40) * MIB  # borg wants half a gigabyte of it to be free
    ours = [
        each
        for each in contenders(vm, filesystem, size)
        if not asked.only or each.name.replace(" ", "-") in asked.only
    ]
    for each in ours:
        say(f"{filesystem}, {number} files: first backup by {each.name}")
        each.first()
        # What was made just now could still change without a trace, and is looked at again.
        each.again()
    for turn in range(asked.rounds):
        for situation in SITUATIONS:
            if situation != SITUATIONS[0]:
                vm.run(CHANGE.format(turn))
            for each in ours[turn % len(ours) :] + ours[: turn % len(ours)]:
                throttle(vm, each, asked.iops)
                cost = each.again()
                throttle(vm, each, 0)
                say(f"{situation}: {each.name}: {cost}")
                costs.setdefault((filesystem, number, situation, each.name), []).append(cost)
    for each in ours:
        each.stick.pull()
        if each.name.endswith("run"):
            entry = each.name.replace(" ", "-")
            vm.run(f"rm -rf /etc/cryptback/drives.d/{entry}.toml /var/lib/cryptbackd/*/{entry}")
        del vm.sticks[each.stick.name]
        each.stick.path.unlink()


def throttle(vm: Machine, contender: Contender, iops: int) -> None:
    """Requests a second that the stick serves; 0: as many as come."""
    group = f"/objects/{contender.stick.name}-group"
    limits = {"iops-total": iops}
    vm.monitor.call("qom-set", path=group, property="limits", value=limits)


def report(costs: Costs, command: str, iops: int, rounds: int, accelerator: str) -> str:
    """The report, in Markdown."""
    head = HEAD.format(
        command=command,
        day=f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        accelerator=accelerator,
        iops=iops,
        rounds=rounds,
    )
    lines = [*head.strip().splitlines(), ""]
    for filesystem in dict.fromkeys(key[0] for key in costs):
        for situation in SITUATIONS:
            lines += [f"## {filesystem}, {situation}", ""]
            lines += [
                "| files | by | read requests | written | seconds | of quick | processor s |",
                "| ---: | --- | ---: | ---: | ---: | ---: | ---: |",
            ]
            for number in dict.fromkeys(key[1] for key in costs):
                quick = costs.get((filesystem, number, situation, "quick run"))
                base = statistics.median(cost.seconds for cost in quick) if quick else None
                for key in costs:
                    if key[:3] == (filesystem, number, situation):
                        cost = _median(costs, key)
                        lines.append(
                            f"| {number:,} | {key[3]} | {cost.requests}"
                            f" | {cost.written / MIB:.1f} MiB | {cost.seconds:.1f}"
                            f" | {f'{cost.seconds / base:.2f}' if base else '–'} | {cost.cpu:.1f} |"
                        )
            lines.append("")
    return "\n".join(lines)


def _median(costs: Costs, key: tuple[str, int, str, str]) -> Cost:
    found = costs[key]
    return Cost(
        int(statistics.median(cost.requests for cost in found)),
        int(statistics.median(cost.written for cost in found)),
        statistics.median(cost.seconds for cost in found),
        statistics.median(cost.cpu for cost in found),
    )


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--files", type=int, nargs="+", default=[5000, 20_000])
    parser.add_argument("--filesystems", nargs="+", default=["btrfs", "ext4"])
    parser.add_argument("--only", nargs="+", default=[], metavar="CONTENDER")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--iops", type=int, default=120)
    parser.add_argument("--report", type=Path, default=REPORT)
    options = parser.parse_args()
    costs: Costs = {}
    accelerator = layers.ensure(layers.INSTALLED).accelerator
    with slots.slot(), layers.resume(layers.INSTALLED) as vm:
        for number in options.files:
            for filesystem in options.filesystems:
                measure(vm, filesystem, number, options, costs)
                command = " ".join(["make bench", *_words(options, parser)])
                text = report(costs, command, options.iops, options.rounds, accelerator)
                options.report.parent.mkdir(exist_ok=True)
                options.report.write_text(text)
    print(f"the report is in {options.report}")


def _words(options: argparse.Namespace, parser: argparse.ArgumentParser) -> list[str]:
    """What was asked for beyond the default, as make takes it."""
    found = []
    for name in ("files", "filesystems", "only", "rounds", "iops"):
        value = getattr(options, name)
        if value != parser.get_default(name):
            found.append(
                f"--{name} {' '.join(map(str, value)) if isinstance(value, list) else value}"
            )
    return [f"BENCH='{' '.join(found)}'"] if found else []


main()
