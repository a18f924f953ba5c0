"""The machine as tests see it."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.machine.guest import Agent, Command, CommandTimeout, Result, Running
from tests.machine.qemu import Qemu
from tests.machine.stick import Stick, copy_sparse, make_image
from tests.machine.wire import MachineLost, WireError

BOOT = 480.0
"""Seconds that a boot may take, under emulation and with other machines beside it."""

Entry = dict[str, Any]
"""An entry of the journal, as `journalctl -o json` has it."""

# `journalctl --follow` would only notice at its next line that nobody reads any more: it is ended.
WAIT_FOR_LINE = r"""
seconds=$1
shift
coproc journalctl --follow --no-tail "$@"
follower=$COPROC_PID
read -r -t "$seconds" -u "${COPROC[0]}" line
kill "$follower" && printf '%s' "$line"
"""


# Until every processor has been idle for 90 % of two seconds.
WAIT_FOR_QUIET = r"""
before=0
enough=$((2 * 90 * $(nproc)))  # hundredths of a second, of the two that pass
for i in {1..30}; do
    read -r _ _ _ _ idle _ < /proc/stat
    [ $((idle - before)) -gt $enough ] && [ "$before" != 0 ] && exit
    before=$idle
    sleep 2
done
"""


class Machine:
    """A running machine. As a context manager, it ends with the block."""

    def __init__(self, qemu: Qemu, *, cursor: str = "", layer_sticks: Path | None = None) -> None:
        self.qemu = qemu
        self.monitor = qemu.monitor
        self.agent = Agent(qemu.agent_socket)
        self.cursor = cursor
        """Where the journal stood when this machine was resumed."""
        self.sticks: dict[str, Stick] = {}
        self.expected_journal: list[str] = []
        self.expected_leftovers: list[str] = []
        self._layer_sticks = layer_sticks

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the machine and remove its files."""
        self.agent.close()
        self.qemu.stop()

    # Commands and files in the guest

    def run(
        self,
        command: Command,
        input: bytes = b"",  # noqa: A002
        *,
        check: bool = True,
        timeout: float = 60,
        user: str | None = None,
    ) -> Result:
        """Run a command in the guest: a list is its argv, a string goes to `/bin/sh -c`."""
        return self.agent.run(command, input=input, check=check, timeout=timeout, user=user)

    def spawn(
        self,
        command: Command,
        input: bytes = b"",  # noqa: A002
        *,
        user: str | None = None,
    ) -> Running:
        """Start a command in the guest; `.wait()` for its end."""
        return self.agent.spawn(command, input=input, user=user)

    def push(self, path: str, data: bytes | str, mode: int = 0o644) -> None:
        """Write a file in the guest, and the directories above it."""
        self.agent.push(path, data.encode() if isinstance(data, str) else data, mode)

    def pull(self, path: str) -> bytes:
        """Read a file in the guest."""
        return self.agent.pull(path)

    # Time and power

    def clock(self) -> float:
        """The guest's time of day, in seconds since 1970."""
        return float(self.run(["date", "+%s.%N"]).out)

    def set_clock(self, seconds: float | None = None) -> None:
        """Set the guest's time of day: to this computer's, if left out."""
        now = time.time() if seconds is None else seconds
        # The agent sets the time at once, and then complains that there is no hwclock to keep it.
        with contextlib.suppress(WireError):
            self.agent.call("guest-set-time", time=int(now * 1e9))

    def wait_booted(self) -> None:
        """Wait until the guest is up and has nothing left to start."""
        deadline = time.monotonic() + BOOT
        self.agent.wait(BOOT)
        state = ""
        while state not in ("running", "degraded"):
            if time.monotonic() > deadline:
                raise MachineLost(f"the machine did not finish to boot: {state}")
            time.sleep(0.2)  # the agent is up before the manager can be asked
            command = ["systemctl", "is-system-running", "--wait"]
            state = self.run(command, check=False, timeout=BOOT).out.strip()

    def wait_quiet(self) -> None:
        """Wait until the guest has next to nothing to do (or for a minute)."""
        self.run(["udevadm", "settle"], check=False, timeout=BOOT)
        self.run(["/bin/bash", "-c", WAIT_FOR_QUIET], timeout=BOOT)

    def reboot(self, *, hard: bool = False) -> None:
        """Shut down and boot (hard: power off and on); takes half a minute or more."""
        if hard:
            self.monitor.call("system_reset")
        else:
            self.spawn(["systemctl", "reboot"])
        self.monitor.wait_event("RESET", timeout=BOOT)
        self.wait_booted()
        self.set_clock()

    # Sticks

    def stick(
        self,
        name: str,
        *,
        size: int = 256 << 20,
        fs: str | None = None,
        partitioned: bool = False,
        label: str | None = None,
        uuid: str | None = None,
    ) -> Stick:
        """The stick of this name: the layer's or this machine's if there is one, else a new one."""
        if name not in self.sticks:
            path = self.stick_path(name)
            own = self._layer_sticks / path.name if self._layer_sticks else None
            if own and own.exists():
                copy_sparse(own, path)
            elif not path.exists():
                make_image(path, size, fs, partitioned=partitioned, label=label, uuid=uuid)
            self.sticks[name] = Stick(self, name, path)
        return self.sticks[name]

    def stick_path(self, name: str) -> Path:
        """Where the image of a stick of this name lies."""
        return self.qemu.directory / f"{name}.raw"

    # Journal

    def journal(
        self, unit: str | None = None, since: str | None = None, **fields: str
    ) -> list[Entry]:
        """The journal's entries with these fields (`CRYPTBACK_RUN="…"`), since the resume.

        `since` is another cursor to begin behind: any entry's `__CURSOR`, or "" for all there is.
        """
        script = 'journalctl --sync && exec journalctl "$@"'
        wanted = _wanted(unit, fields, self.cursor if since is None else since)
        shown = self.run(["/bin/sh", "-c", script, "sh", *wanted]).out
        return [json.loads(line) for line in shown.splitlines()]

    def wait_journal(
        self,
        pattern: str = "",
        *,
        timeout: float = 60,
        unit: str | None = None,
        since: str | None = None,
        **fields: str | tuple[str, ...],
    ) -> Entry:
        """Wait for the first such entry: the regular expression fits its message.

        A field may have any of several values. What doesn't fit is sorted out by the one
        journalctl that waits: a program an entry would be at the expense of what is waited for.
        """
        cursor = self.cursor if since is None else since
        follow = _wanted(unit, fields, cursor)
        if pattern:
            follow += [f"--grep={pattern}", "--case-sensitive=yes"]
        command = ["/bin/bash", "-c", WAIT_FOR_LINE, "bash", f"{timeout:.1f}", *follow]
        line = self.run(command, timeout=timeout + 30).out
        if not line:
            what = f"{pattern} {unit or ''} {fields}"
            raise CommandTimeout(f"no such entry in the journal within {timeout:g} s: {what}")
        entry: Entry = json.loads(line)
        return entry

    def expect_journal(self, pattern: str) -> None:
        """Complaints in the journal that fit this regular expression are part of the test."""
        self.expected_journal.append(pattern)

    def expect_leftovers(self, pattern: str) -> None:
        """Things left behind that fit this regular expression are part of the test."""
        self.expected_leftovers.append(pattern)

    def report(self) -> list[tuple[str, str]]:
        """What to show of a machine in which a test failed."""
        sections = []
        for title, command in (
            (
                "guest journal",
                ["journalctl", "-q", "-o", "short-precise", "-n", "400", *_after(self.cursor)],
            ),
            (
                "guest kernel log",
                ["journalctl", "-q", "-o", "short-precise", "-n", "60", "--dmesg"],
            ),
        ):
            try:
                text = self.run(command, check=False, timeout=20).out
            except (MachineLost, CommandTimeout) as error:
                text = f"(not to be had: {error})"
            sections.append((title, text))
        console = (
            self.qemu.console.read_text(errors="replace") if self.qemu.console.exists() else ""
        )
        sections.append(("guest console", "\n".join(console.splitlines()[-40:])))
        sections.append(("QEMU", self.qemu.errors()))
        return [(title, text) for title, text in sections if text.strip()]


def _wanted(
    unit: str | None, fields: Mapping[str, str | tuple[str, ...]], cursor: str
) -> list[str]:
    """The arguments of journalctl for the entries with these fields behind a cursor."""
    wanted = ["--quiet", "--output=json", "--all", *_after(cursor)]
    if unit:
        wanted.append(f"--unit={unit}")
    for key, values in fields.items():
        wanted += [f"{key}={value}" for value in ([values] if isinstance(values, str) else values)]
    return wanted


def _after(cursor: str) -> list[str]:
    return [f"--after-cursor={cursor}"] if cursor else []
