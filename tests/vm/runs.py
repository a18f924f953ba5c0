"""Following a run from outside: by the journal, by `cryptback`, and by processes in the guest."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tests.machine import Machine, Stick
from tests.machine.guest import Running
from tests.machine.machine import Entry

MIB = 1 << 20
UNIT = "cryptbackd.service"
PATIENCE = 120.0
"""Seconds that a run may take, under emulation and with other machines beside it."""
OUTCOMES = ("done", "warnings", "failed", "cancelled", "skipped")

CALL = ["busctl", "--json=short", "--timeout=60", "call", "org.cryptback1", "/org/cryptback1"]
CALL += ["org.cryptback1.Manager"]

# The watcher notices only at its next line that grep has gone, and in a held run there is none.
STOP = "pkill -STOP rsync"
WHO = r"""
set -e
daemon=$(systemctl show -P MainPID "$1")
stub=$(pgrep -P "$daemon")
worker=$(pgrep -P "$stub")
writer=$(pgrep -P "$worker" -x rsync)
echo "$daemon $stub $worker $writer $(pgrep -f '^/usr/bin/rsync --server --sender')"
"""
WAIT_FOR_NEWS = r"""
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
mkfifo "$dir/news"
cryptback status "$1" --watch --json > "$dir/news" &
grep -m 1 -E "$2" < "$dir/news"
eval "$3"
kill $! 2> /dev/null || true
"""


def ended(
    vm: Machine, name: str = "home", *, since: str | None = None, timeout: float = PATIENCE
) -> Entry:
    """Wait for the end of a run: the line in the journal with its outcome."""
    return vm.wait_journal(
        since=since, timeout=timeout, CRYPTBACK_DRIVE=name, CRYPTBACK_OUTCOME=OUTCOMES
    )


def now(vm: Machine) -> str:
    """Where the journal stands: the `since` of what comes after."""
    shown = vm.run("journalctl --sync; journalctl --lines=1 --output=json").out
    return str(json.loads(shown)["__CURSOR"])


def outcomes(vm: Machine, name: str = "home") -> list[str]:
    """How the runs since the resume ended, in order."""
    entries = vm.journal(CRYPTBACK_DRIVE=name)
    return [entry["CRYPTBACK_OUTCOME"] for entry in entries if "CRYPTBACK_OUTCOME" in entry]


def begun(vm: Machine, name: str = "home") -> int:
    """How many runs were begun since the resume, going by the journal."""
    return sum("backup begun" in entry["MESSAGE"] for entry in vm.journal(CRYPTBACK_DRIVE=name))


def drive(vm: Machine, name: str = "home") -> dict[str, Any]:
    """What the daemon says of a drive at this moment."""
    values: dict[str, Any] = answer(vm, "GetDrive", "s", name)
    return values


def history(vm: Machine, name: str = "home") -> list[dict[str, Any]]:
    """The runs of a drive, the last one first."""
    runs: list[dict[str, Any]] = answer(vm, "GetHistory", "su", name, "20")
    return runs


def answer(vm: Machine, method: str, *arguments: str) -> Any:
    """What a method of the daemon answers, as `cryptback --json` would show it.

    Python would take most of a second to start, while what is looked at goes on.
    """
    return _plain(json.loads(vm.run([*CALL, method, *arguments]).out)["data"][0])


def _plain(value: Any) -> Any:
    """The values without the types of the bus."""
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return {key: each["data"] for key, each in value.items()}


def settled(vm: Machine, name: str = "home") -> dict[str, Any]:
    """The drive, after the daemon took in every event that udev has told it.

    udev's queue is empty when its last event waits at the daemon, which reads it before it
    answers: whatever the events led to shows in the answer.
    """
    vm.run(["udevadm", "settle"])
    return drive(vm, name)


def news(vm: Machine, pattern: str, name: str = "home", *, then: str = "") -> Running:
    """Wait, by `.wait()`, until the drive's news (a line of JSON) fit a regular expression.

    At that moment the command `then` is run.
    """
    return vm.spawn(["/bin/sh", "-c", WAIT_FOR_NEWS, "sh", name, pattern, then])


def wait_news(vm: Machine, pattern: str, name: str = "home") -> dict[str, Any]:
    """The drive, as it is when its news fit a regular expression."""
    told: dict[str, Any] = json.loads(news(vm, pattern, name).wait(timeout=PATIENCE).out)["drive"]
    return told


def copied(at_least: int, phase: str = "syncing") -> str:
    """News of a run that has copied so many bytes (or more, by the number's first digit)."""
    digits = len(str(at_least))
    done = rf"([{str(at_least)[0]}-9][0-9]{{{digits - 1}}}|[0-9]{{{digits + 1},}})"
    return rf'"phase": "{phase}", "done": {done}'


def syncing(vm: Machine, stick: Stick, name: str = "home", *, at_least: int = 0) -> None:
    """Plug the stick in, and wait until its run copies (and has copied so many bytes)."""
    watcher = news(vm, copied(at_least), name)
    stick.plug()
    watcher.wait(timeout=PATIENCE)


def random_files(vm: Machine, number: int, megabytes: int, where: str = "/home/me/random") -> None:
    """Something to copy that takes a while."""
    script = 'mkdir -p "$3"; for i in $(seq "$1"); do head -c "$2M" /dev/urandom > "$3/$i"; done'
    vm.run(["/bin/sh", "-c", script, "sh", str(number), str(megabytes), where])


@dataclass(frozen=True)
class Held:
    """The processes of a run whose rsyncs are stopped (SIGSTOP) in the middle of the copy."""

    daemon: int
    stub: int
    worker: int
    writer: int
    reader: int


def hold(vm: Machine, stick: Stick, name: str = "home", *, at_least: int = 0) -> Held:
    """Plug the stick in, and stop the run in mid-sync (when so many bytes are copied)."""
    # With the first byte both rsyncs are there.
    watcher = news(vm, copied(max(1, at_least)), name, then=STOP)
    stick.plug()
    watcher.wait(timeout=PATIENCE)
    return held(vm, name)


def stop(vm: Machine, name: str = "home") -> Held:
    """Stop a run that is copying. There must be enough to copy."""
    vm.run(STOP)
    return held(vm, name)


def held(vm: Machine, name: str = "home") -> Held:
    """What was stopped in mid-sync."""
    assert drive(vm, name)["phase"] == "syncing", "it was too fast: give it more to copy"
    return Held(*map(int, vm.run(["/bin/sh", "-c", WHO, "sh", UNIT]).out.split()))


def go_on(vm: Machine) -> None:
    """Let a held run continue."""
    vm.run(["pkill", "-CONT", "rsync"])
