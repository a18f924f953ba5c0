"""One case: a backup is interrupted in some way, and a judge looks what became of everything."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from tests.by_hand import manifests
from tests.campaign.bridge import Bridge
from tests.campaign.judge import Content, Judge
from tests.machine import Machine, Stick, layers, oracle
from tests.machine.guest import CommandTimeout
from tests.machine.layers import Layer
from tests.machine.machine import Entry
from tests.vm.runs import ended, now

SOURCES = ("/home/me", "/etc")
PATIENCE = 150
"""Seconds that a run may take; one that takes longer hangs."""
WARNING = 4
"""A priority of the journal (syslog(3)); below are errors."""
IN_TIME = 5.0
"""Seconds after which nothing may be left open, when a drive was lost or a process killed."""

# Some files become others, one goes, and there is so much new that copying takes a while. Some
# end in zeros: rsync only sets their length then, which may be written before what is in them.
CHANGE = """
import contextlib, os, random, sys
dice = random.Random(sys.argv[1])
top = "/home/me/many"
os.makedirs(top, exist_ok=True)
for number in range(dice.randrange(5, 40)):
    with open(f"{top}/{number}", "wb") as file:
        file.write(dice.randbytes(dice.randrange(100_000)) + bytes(dice.choice((0, 1, 5000))))
with open("/home/me/big", "wb") as file:
    for _ in range(dice.randrange(1, 24)):
        file.write(dice.randbytes(1 << 20))
    file.write(bytes(dice.choice((0, 1))))
with open("/home/me/photos/one.jpg", "ab") as file:
    file.write(dice.randbytes(1000))
with contextlib.suppress(FileNotFoundError):
    os.unlink("/home/me/photos/two.jpg")
"""
# What tells of a phase that is short: the line that is written when it begins.
LINES = {
    "verifying": "version .* made",
    "proving": r"EXT4-fs \(sd[a-z]1\): unmounting filesystem",
}
# As `cryptback status --watch` would tell it, but sooner there.
WATCH = (
    "exec busctl --json=short --match=\"type='signal',member='DriveChanged'\" monitor > /run/news"
)


@dataclasses.dataclass
class Verdict:
    """What became of a case: a line of the campaign's results."""

    kind: str
    seed: int
    moment: float = 0.0
    """Seconds from the plug to the damage."""
    phase: str = ""
    """What the run was doing at that moment, as the daemon told it."""
    told: str = ""
    """How the journal has it that the interrupted run ended."""
    recovery: float = 0.0
    """Seconds from the damage until nothing was open any more."""
    again: float = 0.0
    """Seconds from the next plug until the drive might be unplugged."""
    losses: list[str] = dataclasses.field(default_factory=list)
    leaks: list[str] = dataclasses.field(default_factory=list)
    false_clears: list[str] = dataclasses.field(default_factory=list)
    hangs: list[str] = dataclasses.field(default_factory=list)
    faults: list[str] = dataclasses.field(default_factory=list)
    """Whatever else is not as it must be."""
    noticed: str = ""
    """What the journal says of a loss that nobody could prevent."""

    @property
    def good(self) -> bool:
        return not any((self.losses, self.leaks, self.false_clears, self.hangs, self.faults))


class Hang(Exception):
    """Something did not happen within the time that it may take."""


class Stage:
    """What cases that run one after another have in common. As a context manager, it is taken down.

    Builds what is the same for all: the judge, and what the stick holds when a case begins.
    """

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="campaign-", dir="/var/tmp"))
        self.judge = Judge()
        self.undisturbed = 0.0
        """Seconds from a plug to the all-clear, when nothing happens: the least seen."""
        self._before: dict[str, Content] = {}

    def before(self, layer: Layer) -> Content:
        """What its stick holds when a case begins."""
        if layer.name not in self._before:
            with layers.resume(layer) as vm:
                self._before[layer.name] = self.judge.look(vm.stick("main").path, clean=True)
        return self._before[layer.name]

    def __enter__(self) -> Stage:
        verdict = Verdict("undisturbed", 0)
        with Case(self, verdict) as case:
            case.change()
            case.succeed()
        if not verdict.good:
            raise RuntimeError(f"it fails before anything is done to it: {verdict}")
        return self

    def __exit__(self, *_: object) -> None:
        self.judge.close()
        shutil.rmtree(self.directory, ignore_errors=True)


class Case:
    """A machine, a stick, and the moment of the damage. Everything random comes from the seed.

    As a context manager, its machine ends with the block.
    """

    def __init__(self, stage: Stage, verdict: Verdict, layer: Layer = layers.ENROLLED) -> None:
        self.stage = stage
        self.verdict = verdict
        self.layer = layer
        self.before = stage.before(layer)
        self.dice = random.Random(f"{verdict.kind} {verdict.seed}")
        self.moment = self.dice.uniform(0, 1.25 * stage.undisturbed)
        self.vm: Machine = layers.resume(self.layer)
        self.stick: Stick = self.vm.stick("main")
        self.bridge: Bridge | None = None
        self.cursor = ""
        self.hit = 0.0
        """When the damage was done, by the machine's clock."""
        self.errors_injected = False
        """Whether system calls of the worker are made to fail."""
        self._plugged = 0.0
        self.daemon = ""
        """The number of its process, when the run begins."""
        self._ahead = 0.0
        """Seconds by which the machine's clock is ahead of this computer's."""
        self._waited = ""
        """The phase that was waited for, if the bus doesn't tell of it."""

    def __enter__(self) -> Case:
        return self

    def __exit__(self, *_: object) -> None:
        self.vm.close()
        if self.bridge:
            self.bridge.cut()

    # Before the damage

    def change(self, turn: int = 0) -> None:
        """Change what is to be backed up."""
        self.vm.run(["python3", "-c", CHANGE, f"{self.verdict.seed} {turn}"])

    def watch(self) -> None:
        """Have the daemon's news written down in the machine."""
        self.vm.spawn(["/bin/sh", "-c", WATCH])
        # It is there when it hears what is said for it to hear.
        emit = "busctl emit /campaign org.campaign DriveChanged s begun"
        self.vm.run(f"until [ -s /run/news ]; do {emit}; done")
        self.daemon = self.vm.run("systemctl show -P MainPID cryptbackd").out.strip()
        # Of what is not known of its clock, that which makes what is measured longer.
        self._ahead = self.vm.clock() - time.time()

    def mark(self) -> None:
        """What is looked at in the journal comes after this moment."""
        self.cursor = now(self.vm)

    def plug(self, *, cache: bool = False, lies: bool = False, bps: int = 0) -> None:
        """Plug the stick in, without waiting for anything.

        `cache`: by way of a bridge; `bps`: so fast, in bytes a second.
        """
        self.mark()
        if cache:
            self.bridge = Bridge(self.stick.path, lies=lies)
        socket = self.bridge.socket if self.bridge else None
        self.stick.plug(bridge=socket, bps=bps, wait=False)
        self._plugged = time.monotonic()

    def wait_moment(self) -> None:
        """Wait for the moment, which the seed chose."""
        time.sleep(max(0.0, self._plugged + self.moment - time.monotonic()))

    def wait_phase(self, phase: str) -> None:
        """Wait until the run is in this phase, and then a moment more."""
        if phase in LINES:
            # It is over before the bus tells of it, which is done four times a second at most.
            try:
                self.vm.wait_journal(LINES[phase], since=self.cursor, timeout=PATIENCE)
            except CommandTimeout as error:
                raise Hang(f"the run did not come to {phase}") from error
            self.is_in(phase)
            return
        told = f'"phase":{{"type":"s","data":"{phase}"}}'
        script = f"grep -q '{told}' < <(exec tail -n +1 -f /run/news 2> /dev/null)"
        try:
            self.vm.run(["/bin/bash", "-c", script], timeout=PATIENCE)
        except CommandTimeout as error:
            raise Hang(f"the run did not come to {phase}") from error
        time.sleep(self.dice.choice([0, 0, self.dice.uniform(0, 0.5)]))

    def is_in(self, phase: str) -> None:
        """Take down that the run is in this short phase, and wait for a moment of it."""
        self._waited = phase
        time.sleep(self.dice.uniform(0, 0.1))

    def strike(self) -> None:
        """The damage is done at this moment."""
        self.verdict.moment = round(time.monotonic() - self._plugged, 2)
        self.hit = time.time() + self._ahead

    def note(self) -> None:
        """Write down what the run was doing when the damage was done."""
        for line in self.vm.run(["tail", "-n", "30", "/run/news"]).out.splitlines():
            with suppress(ValueError, LookupError, TypeError):  # half written, or of ours
                told = json.loads(line)
                if told["timestamp-realtime"] / 1e6 <= self.hit:
                    drive = told["payload"]["data"][1]
                    self.verdict.phase = drive["phase"]["data"] or drive["state"]["data"]
        self.verdict.phase = self._waited or self.verdict.phase

    def until_told(self) -> None:
        """Wait until the journal says how the run ended."""
        ended(self.vm, since=self.cursor, timeout=PATIENCE)

    # What comes after

    def all_locked(self) -> None:
        """Nothing may be open any more, soon after the damage."""
        found = oracle.look(self.vm, patience=IN_TIME)
        took = found.locked - self.hit
        if found.left:
            self.verdict.leaks += found.left
        elif took > IN_TIME:
            self.verdict.leaks.append(f"it took {took:.1f} s until all was locked")
        self.verdict.recovery = round(max(took, 0), 2)

    def outcome(self) -> None:
        """Write down how the interrupted run ended, going by the journal."""
        entries = self._told()
        if any(map(self._is_interrupted, entries)) and not any(map(is_end, entries)):
            # Who tells it may only just have begun to: all is locked before a service is back.
            with suppress(CommandTimeout):
                ended(self.vm, since=self.cursor, timeout=PATIENCE)
            entries = self._told()
        ends = list(filter(is_end, entries))
        if ends:
            self.verdict.told = f"{ends[0]['CRYPTBACK_OUTCOME']}: {ends[0]['MESSAGE']}"
        elif any(map(self._is_interrupted, entries)):
            self.verdict.faults.append("the journal does not say how the run ended")

    def _told(self) -> list[Entry]:
        return self.vm.journal(since=self.cursor, CRYPTBACK_DRIVE="home")

    def _is_interrupted(self, entry: Entry) -> bool:
        """Whether a run began with this line that was going on when the damage was done.

        A service that starts anew while the stick is in begins another one.
        """
        when = int(entry["__REALTIME_TIMESTAMP"]) / 1e6
        return "backup begun" in entry["MESSAGE"] and when < self.hit

    def pull(self) -> None:
        """Pull the stick out: what it had only in its cache is gone."""
        if self.bridge:
            self.bridge.cut()
        self.stick.pull(wait=False)
        self.bridge = None

    def power_fails(self) -> None:
        """Computer and stick are without power; the computer is on again, the stick not in it."""
        self.vm.monitor.call("stop")
        self.pull()
        if self.verdict.seed % 5 == 0:
            self.vm.monitor.call("system_reset")
            self.vm.monitor.call("cont")
            self.vm.wait_booted()
            self.vm.set_clock()
        else:  # a computer that remembers nothing of this run is had sooner than one that boots
            kept = self.stage.directory / "kept.raw"
            self.stick.path.rename(kept)
            self.vm.close()
            self.vm = layers.resume(self.layer)
            self.stick = self.vm.stick("main")
            kept.rename(self.stick.path)
        self.change(1)

    def succeed(self, *, cache: bool = False) -> None:
        """The stick is plugged in again and backed up to; at the all-clear it is pulled at once."""
        if self.stick.plugged:
            self.pull()
        wanted = dict(zip(SOURCES, manifests(self.vm, *SOURCES), strict=True))
        self.plug(cache=cache)
        started = time.monotonic()
        self.until_clear()
        self.pull()
        self.verdict.again = round(time.monotonic() - started, 2)
        self.stage.undisturbed = min(self.stage.undisturbed or PATIENCE, self.verdict.again)
        self._all_there(wanted)

    def lost_by_a_lie(self) -> None:
        """Something may be gone, which nobody could prevent: then the next plug tells of it."""
        found = self.stage.judge.look(self.stick.path)
        gone = found.lost_since(self.before)
        gone += [name for name in self._claimed() if name not in found.versions]
        if found.problem:
            gone.append(found.problem)
        self.plug()
        self.until_told()
        said = self.vm.journal(since=self.cursor, CRYPTBACK_DRIVE="home")
        warnings = [entry["MESSAGE"] for entry in said if int(entry["PRIORITY"]) <= WARNING]
        self.verdict.noticed = " / ".join(warnings)
        if gone and not warnings:
            self.verdict.losses += [f"without a word: {what}" for what in gone]

    def until_clear(self) -> None:
        """Wait for "you may unplug", and no longer."""
        clear = "You may unplug home now."
        try:
            self.vm.wait_journal(since=self.cursor, timeout=PATIENCE, MESSAGE=clear)
        except CommandTimeout as error:
            said = self.vm.journal(since=self.cursor, CRYPTBACK_DRIVE="home")
            lines = " / ".join(entry["MESSAGE"] for entry in said[-3:])
            raise Hang(f"the drive may not be unplugged. The last lines: {lines}") from error

    def _all_there(self, wanted: dict[str, list[str]]) -> None:
        """After an all-clear, everything is on the stick, and in order."""
        found = self.stage.judge.look(self.stick.path, clean=True)
        if found.problem:
            self.verdict.false_clears.append(found.problem)
            return
        self.verdict.losses += found.lost_since(self.before)
        self.verdict.losses += [name for name in self._claimed() if name not in found.versions]
        newest = max(found.versions)
        if [newest] != self._claimed(since=self.cursor):
            self.verdict.false_clears.append("there is no new version")
        for path, lines in wanted.items():
            copy = under(found.versions[newest], path)
            if copy != [line for line in lines if not is_root(line)]:
                self.verdict.false_clears.append(f"{newest} is not what {path} was")

    def _claimed(self, since: str | None = None) -> list[str]:
        """The versions that were said to be made (by all runs), however the run ended."""
        told = self.vm.journal(since=since, CRYPTBACK_DRIVE="home")
        return re.findall(r"version (\S+Z) made", " ".join(entry["MESSAGE"] for entry in told))

    def complaints(self) -> None:
        """Nothing in the journal is a fault of the program itself.

        An error that no layer of a worker expected leaves a traceback, and is expected to where
        one is made to come from anywhere.
        """
        daemon = ""
        if self.errors_injected:
            daemon = self.vm.run("systemctl show -P MainPID cryptbackd").out.strip()
        for entry in self.vm.journal():
            said = str(entry.get("MESSAGE"))
            traceback = "Traceback (most recent call last)" in said
            if self.errors_injected and entry.get("_PID") != daemon:
                traceback = False
            if traceback or "made a mistake" in said:
                self.verdict.faults.append(said)


def is_end(entry: Entry) -> bool:
    """Whether this line tells how a run ended."""
    return "CRYPTBACK_OUTCOME" in entry


def under(version: list[str], path: str) -> list[str]:
    """What a version has below a directory, named as if that were all of it."""
    top = path.lstrip("/") + "/"
    found = []
    for line in version:
        record = json.loads(line)
        if record["name"].startswith(top):
            record["name"] = record["name"].removeprefix(top)
            if "links" in record:
                record["links"] = [name.removeprefix(top) for name in record["links"]]
            found.append(json.dumps(record, sort_keys=True))
    return found


def is_root(line: str) -> bool:
    """Whether a line is about the directory itself."""
    return bool(json.loads(line)["name"] == ".")
