"""The kinds of damage, by name: each interrupts a run that is backing up to a case's stick."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

from tests.campaign.calls import calls
from tests.campaign.case import LINES, PATIENCE, Case, Hang
from tests.machine import layers
from tests.machine.guest import CommandTimeout
from tests.machine.layers import Layer
from tests.vm.failing import Held, Hold

PHASES = (
    "attaching", "unlocking", "mounting", "comparing", "syncing", "keeping", "verifying",
    "locking", "proving",
)  # fmt: skip
"""What a run goes through. Proving takes a worker some milliseconds; its calls are among those at
which `call-kills` kills it.
"""
SLOW = 4 << 20
"""Bytes a second of a stick from which it takes a moment to read some files back."""

CHILDREN = {
    "rsync": ("/usr/bin/rsync", 2, 0.6),
    "cryptsetup": ("/usr/sbin/cryptsetup", 1, 0.3),
    "mount": ("/usr/bin/mount", 2, 0.02),
    "umount": ("/usr/bin/umount", 2, 0.02),
    "btrfs": ("/usr/bin/btrfs", 1, 0.01),
    "bwrap": ("/usr/bin/bwrap", 2, 0.1),
}
"""Programs that a run starts: where, how often, and seconds for which it is there at least.

`mkfs` is one of an enrolment.
"""
FIRST = {
    "attaching": ("/usr/bin/mount", 1),
    "unlocking": ("/usr/sbin/cryptsetup", 1),
    "mounting": ("/usr/bin/mount", 2),
    "comparing": ("/usr/bin/bwrap", 1),
    "keeping": ("/usr/bin/btrfs", 1),
    "locking": ("/usr/bin/umount", 1),
}
"""The program that a phase begins with, and which start of it that is.

Such a phase may be over before the bus has told of it.
"""

# Each says when it does it, and starts no program before: meanwhile the run would be elsewhere.
STUB = """
for each in /proc/$1/task/*/children; do read -r pid _ < $each && break; done
echo $EPOCHREALTIME
kill -KILL $pid
"""
WORKER = STUB.replace("\necho", "\nread -r pid _ < /proc/$pid/task/$pid/children\necho")
# The same when this line comes, for verifying and proving are over in a moment.
AT_LINE = """
coproc journalctl --follow --no-tail --quiet --after-cursor="$2" --case-sensitive=yes --grep="$3"
trap 'kill $COPROC_PID' EXIT
read -r -t 60 -u ${COPROC[0]} || exit
"""
SERVICE = "echo $EPOCHREALTIME; systemctl kill --signal=KILL --kill-whom=all cryptbackd"
# The one that is started as number $1, $2 seconds later (0: before its first instruction).
CHILD = """
set -e
for number in $(seq "$1"); do
    pid=$(sed 's/.*"pid": \\([0-9]*\\).*/\\1/' /run/hold/told)
    [ "$number" = "$1" ] && [ "$2" = 0 ] || kill -CONT "$pid"
done
sleep "$2"
kill -KILL "$pid"
"""


def pulled(case: Case, *, phase: str = "") -> None:
    """The stick is pulled out; every other one has a cache that is lost with it."""
    held = interrupted(case, phase, cache=bool(case.verdict.seed % 2))
    case.strike()
    case.pull()
    if held:  # it may have been ended meanwhile, as it should
        case.vm.run(["kill", "-CONT", str(held.pid)], check=False)
    case.all_locked()
    case.note()
    case.outcome()
    again(case)


def killed(case: Case, *, command: str, phase: str = "") -> None:
    """A process is killed, or several at once; then the stick is pulled and plugged in again."""
    if line := LINES.get(phase):
        case.watch()
        case.plug(bps=SLOW)
        command = AT_LINE + command
        words = [case.daemon, case.cursor, line]
    else:
        interrupted(case, phase)
        words = [case.daemon]
    kill = case.vm.run(["/bin/bash", "-c", command, "bash", *words], check=False, timeout=PATIENCE)
    case.strike()
    case.hit = float(kill.out or case.hit)
    if kill.code:
        if phase:
            raise Hang(f"there was nobody to be killed while {phase}")
        case.verdict.phase = "nobody there"  # yet, or any more
        case.until_told()
        case.hit = case.vm.clock()
    case.all_locked()
    case.outcome()
    if said := re.search(r"was killed by SIGKILL while (\w+)", case.verdict.told):
        case.verdict.phase = said[1]
    again(case)


def child_killed(case: Case, *, name: str) -> None:
    """One program that the run started is killed, at its first instruction or a little later."""
    program, starts, life = CHILDREN[name]
    case.watch()
    number = 1 + case.verdict.seed % starts
    delay = case.dice.choice([0, f"{case.dice.uniform(0, life):.3f}"])
    Hold(case.vm, program, times=number)
    killer = case.vm.spawn(["/bin/sh", "-c", CHILD, "sh", str(number), str(delay)])
    case.plug()
    try:
        killer.wait(timeout=60)
    except CommandTimeout as error:
        raise Hang(f"the run never started {name} {number}") from error
    case.strike()
    case.note()
    case.until_told()
    case.outcome()
    again(case)


def power_cut(case: Case) -> None:
    """Stick and computer lose power at once, and there is a cache in the stick."""
    interrupted(case, "", cache=True)
    case.strike()
    case.note()
    case.power_fails()
    again(case)


def lying_bridge(case: Case) -> None:
    """The bridge says that it has kept what it hasn't. It loses power after the all-clear."""
    case.watch()
    case.plug(cache=True, lies=True)
    case.until_clear()
    case.strike()
    case.note()
    case.pull()
    case.outcome()
    case.lost_by_a_lie()


def interrupted(case: Case, phase: str, *, cache: bool = False) -> Held | None:
    """Begin a run, and come back at the moment of the damage.

    A program that the phase begins with may stand still then.
    """
    case.watch()
    if phase in FIRST:
        program, start = FIRST[phase]
        hold = Hold(case.vm, program, times=start)
        case.plug(cache=cache)
        for _ in range(start - 1):
            hold.wait().go_on()
        held: Held | None = hold.wait()
        if held and case.dice.random() < 0.5:
            held.go_on()
            held = None
        case.is_in(phase)
        return held
    case.plug(cache=cache)
    if phase:
        case.wait_phase(phase)
    else:
        case.wait_moment()
    return None


def again(case: Case) -> None:
    """The next plug works, and what was there before is there. Every other stick has a cache."""
    case.succeed(cache=bool(case.verdict.seed // 2 % 2))


KINDS: dict[str, Callable[[Case], None]] = {
    "pulled": pulled,
    **{f"pulled-while-{phase}": partial(pulled, phase=phase) for phase in PHASES},
    "worker-killed": partial(killed, command=WORKER),
    **{f"worker-killed-while-{p}": partial(killed, command=WORKER, phase=p) for p in PHASES[:-1]},
    "stub-killed": partial(killed, command=STUB),
    "service-killed": partial(killed, command=SERVICE),
    **{f"{name}-killed": partial(child_killed, name=name) for name in CHILDREN},
    "call-fails": partial(calls, end="fails"),
    "call-kills": partial(calls, end="kills"),
    "power-cut": power_cut,
    "power-cut-ext4": power_cut,
    "lying-bridge": lying_bridge,
}


def layer_of(kind: str) -> Layer:
    """The machine in which a case of this kind begins."""
    return layers.ENROLLED_EXT4 if kind.endswith("-ext4") else layers.ENROLLED
