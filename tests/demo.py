"""`make demo`: a stick goes in, a backup comes out, and the files come back without cryptbackd.

Everything that is shown happens in an emulated Debian machine: the commands, their output and the
lines of the journal are the real ones, as they come. Each step is checked; the last line says
whether all of them happened.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests import by_hand
from tests.machine import Machine, Stick, image, layers, oracle
from tests.machine.enroll import PASSPHRASE
from tests.machine.stick import copy_sparse

MIB = 1 << 20
SPEED = 6 * MIB
"""Bytes a second of the stick while it is backed up to, so that there is something to watch."""
SOURCES = r"""
set -e
cd /home/me
mkdir -p letters photos/2026
echo "Dear reader," > letters/first.txt
echo "do buy milk" > letters/shopping.txt
ln letters/first.txt letters/the-same-file.txt
setfacl -m u:daemon:r letters/first.txt
for i in 1 2 3 4 5; do head -c 3000000 /dev/urandom > photos/2026/beach-$i.jpg; done
truncate -s 30M disk.img
printf end >> disk.img
setfattr -n user.rating -v 5 photos/2026/beach-1.jpg
chmod 0700 letters
touch -d "2001-02-03 04:05:06.789" photos
chown -R me:me /home/me
"""
CHANGES = [
    'echo "yours, me" >> letters/first.txt',
    "rm letters/shopping.txt",
    "mkdir photos/2027 && head -c 60M /dev/urandom > photos/2027/film.mp4",
]
INIT = [
    *["cryptback", "init", "{device}", "--name", "home", "--include", "/home/me"],
    *["--size", "224M", "--passphrase-fd", "0", "--yes"],
]
# The real cost of guessing takes half a minute where the processor is emulated.
CHEAP = ["--pbkdf-memory", "32", "--pbkdf-iterations", "4"]
CREDENTIAL = [
    *["systemd-creds", "encrypt", "--name=cryptback.home", "-"],
    "/etc/credstore.encrypted/cryptback.home",
]
HIGHLIGHTS = {
    r"^●|active \(running\)|^You may unplug.*": "1;32",
    r"Status: \".*": "1",
}
"""What stands out in the output of commands."""


class Missed(Exception):
    """A step of the story did not happen."""


def need(happened: object, what: str) -> None:
    """Raise unless it happened."""
    if not happened:
        raise Missed(what)


class Screen:
    """What is seen: colours and a line that changes, but only on a terminal."""

    def __init__(self) -> None:
        self.terminal = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self.colour = self.terminal and not os.environ.get("NO_COLOR")
        self.started = time.monotonic()
        self._live = ""
        self._step = 0
        self.title = "the beginning"

    def paint(self, code: str, text: str) -> str:
        """The text in a colour, where there are any."""
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour else text

    def line(self, text: str = "") -> None:
        """A line that stays."""
        self._wipe()
        print(text, flush=True)

    def step(self, title: str) -> None:
        """The next part of the story begins."""
        self._step += 1
        self.title = title
        self.line()
        self.line(self.paint("1;36", f"{self._step}. {title}"))

    def say(self, text: str) -> None:
        """The teller's own words."""
        self.line(f"   {text}")

    def command(self, text: str, where: str = "machine", user: str = "root") -> None:
        """A command that is typed."""
        prompt = self.paint("2", f"{user}@{where}{'#' if user == 'root' else '$'}")
        self.line(f"   {prompt} {self.paint('1', text)}")

    def output(self, text: str, *, cut: bool = False) -> None:
        """What a command printed; *cut*: lines that are too long end in "…"."""
        width = shutil.get_terminal_size((100, 24)).columns - 4
        for line in text.rstrip("\n").splitlines():
            shown = f"{line[:width]}…" if cut and len(line) > width else line
            for pattern, code in HIGHLIGHTS.items():
                shown = re.sub(pattern, self.paint(code, r"\g<0>"), shown)
            self.line(f"   {shown.rstrip()}".rstrip())

    def journal(self, entry: dict[str, Any]) -> None:
        """A line of the journal, when it was written."""
        moment = time.strftime("%H:%M:%S", time.localtime(int(entry["__REALTIME_TIMESTAMP"]) / 1e6))
        message, priority = str(entry["MESSAGE"]), int(entry["PRIORITY"])
        if priority <= 3:
            message = self.paint("1;31", message)
        elif priority == 4:
            message = self.paint("33", message)
        elif message.startswith("You may unplug"):
            message = self.paint("1;32", message)
        head = self.paint("2", f"{moment} {entry.get('SYSLOG_IDENTIFIER', '')}:")
        self.line(f"   {head} {message}")

    def good(self, text: str) -> None:
        """Something was checked, and is so."""
        self.line(f"   {self.paint('32', '✓')} {text}")

    def live(self, text: str) -> None:
        """A line that the next one replaces; without a terminal it stays."""
        if text == self._live:
            return
        if not self.terminal:
            self._live = text
            print(f"   … {text}", flush=True)
            return
        self._wipe()
        self._live = text
        width = shutil.get_terminal_size().columns - 6
        print(f"   {self.paint('35', f'… {text[:width]}')}", end="", flush=True)

    def _wipe(self) -> None:
        if self._live and self.terminal:
            print("\r\x1b[K", end="")
        self._live = ""

    def seconds(self) -> str:
        """How long it took up to now."""
        minutes, seconds = divmod(round(time.monotonic() - self.started), 60)
        return f"{minutes}:{seconds:02}"


class Lines:
    """Lines that a program in the machine writes, read as they come."""

    def __init__(self, vm: Machine, command: str, typed: bytes = b"") -> None:
        self._vm = vm
        path = f"/run/demo.{time.monotonic_ns()}"
        vm.push(path, "")
        self.program = vm.spawn(f"exec {command} >> {path} 2>&1", typed)
        self._handle = vm.agent.call("guest-file-open", path=path, mode="r")
        self._rest = b""

    def new(self) -> list[str]:
        """The whole lines since the last time."""
        while True:
            answer = self._vm.agent.call("guest-file-read", handle=self._handle, count=MIB)
            self._rest += base64.b64decode(answer["buf-b64"])
            if answer["eof"] or not answer["count"]:
                break
        *lines, self._rest = self._rest.split(b"\n")
        return [line.decode(errors="replace") for line in lines]


class Watch:
    """The daemon's journal and status line, shown as they change."""

    def __init__(self, vm: Machine, screen: Screen) -> None:
        self._screen = screen
        shown = vm.run("journalctl --sync; journalctl --lines=1 --output=json").out
        cursor = json.loads(shown)["__CURSOR"]
        follow = f"journalctl --follow --unit=cryptbackd --output=json --after-cursor='{cursor}'"
        self._journal = Lines(vm, follow)
        show = "systemctl show --property=StatusText --value cryptbackd"
        self._status = Lines(vm, f"sh -c 'while :; do {show}; sleep 0.4; done'")
        self._unread: list[str] = []
        self.statuses: list[str] = []
        self.entries: list[dict[str, Any]] = []

    def until(self, done: Callable[[], object], what: str, timeout: float = 120) -> None:
        """Show what comes until it is done; `Missed` if that takes too long."""
        deadline = time.monotonic() + timeout
        while not done():
            need(time.monotonic() < deadline, f"{what} (waited {timeout:.0f} s for it)")
            self._unread += self._journal.new()
            while self._unread and not done():
                entry = json.loads(self._unread.pop(0))
                self.entries.append(entry)
                self._screen.journal(entry)
            for line in self._status.new():
                if line and line not in self.statuses[-1:]:
                    self.statuses.append(line)
                    self._screen.live(f"status: {line}")
            time.sleep(0.1)

    def message(self, pattern: str) -> bool:
        """Whether such a line was in the journal."""
        return any(re.search(pattern, str(entry["MESSAGE"])) for entry in self.entries)

    def outcome(self) -> str:
        """How the run ended, if it did."""
        ends = (str(e["CRYPTBACK_OUTCOME"]) for e in self.entries if "CRYPTBACK_OUTCOME" in e)
        return next(ends, "")


def build(screen: Screen) -> None:
    """Get the machine ready, saying how long that takes."""
    screen.step("A computer: Debian 13 with cryptbackd, emulated")
    # Beside the machine, as both take a while.
    command = [layers.ROOT / "packaging" / "build-deb"]
    chosen = os.environ.get("CRYPTBACKD_DEB")
    with ExitStack() as stack:
        package = None if chosen else stack.enter_context(beside(command))
        with built(screen, "a disk with Debian"):
            image.ensure()
        with built(screen, "booted"):
            layers.ensure(layers.BOOTED)
        if package is not None:
            with built(screen, "the package built from these sources"):
                said, _ = package.communicate()
                need(package.returncode == 0, f"packaging/build-deb failed\n{said}")
    with built(screen, f"{layers.package().name} installed"):
        layers.ensure(layers.INSTALLED)


@contextlib.contextmanager
def beside(command: list[Path]) -> Iterator[subprocess.Popen[str]]:
    """A program in the background, which ends with the block."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True) as program:
        try:
            yield program
        finally:
            program.terminate()


@contextlib.contextmanager
def built(screen: Screen, what: str) -> Iterator[None]:
    """Count the seconds of one thing that is built (or found in the cache)."""
    started = time.monotonic()
    over = threading.Event()

    def count() -> None:
        while not over.wait(1 if screen.terminal else 20):
            screen.live(f"{what}: being made, {time.monotonic() - started:.0f} s (kept for later)")

    thread = threading.Thread(target=count, daemon=True)
    thread.start()
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            yield
    except BaseException:
        over.set()
        thread.join()
        screen.output(said.getvalue())
        raise
    over.set()
    thread.join()
    took = time.monotonic() - started
    screen.good(what if took < 5 else f"{what} ({took:.0f} s)")


def show(vm: Machine, screen: Screen, command: str, where: str = "machine") -> str:
    """Type a command and show what it prints."""
    screen.command(command, where)
    ended = vm.run(command, check=False, timeout=120)
    screen.output(ended.out + ended.err, cut=True)
    need(ended.code == 0, f"`{command}` ended with exit status {ended.code}")
    return ended.out


def enrol(vm: Machine, screen: Screen, stick: Stick) -> None:
    """The stick is made known, and has its first backup."""
    screen.step("A USB stick, as it was bought, is plugged in")
    stick.plug()
    vm.run(f"mount {stick.partition} /mnt && echo mine > /mnt/holiday.txt && umount /mnt")
    show(vm, screen, "lsblk --output NAME,TRAN,SIZE,FSTYPE,UUID /dev/sda")
    screen.say("It holds a file already, which is to stay: holiday.txt.")

    screen.step("It is enrolled: an encrypted container on it, and a first backup of /home/me")
    vm.run(SOURCES)
    screen.output(vm.run(["ls", "-l", "/home/me"]).out)
    command = " ".join(INIT).format(device=stick.partition)
    screen.command(command)
    note = "(with options that make guessing the passphrase cheap: this processor is emulated)"
    screen.say(screen.paint("2", note))
    typed = Lines(
        vm, f"printf '{PASSPHRASE}\\n' | {command} {' '.join(CHEAP)}".replace("exec ", "")
    )
    said: list[str] = []
    started = time.monotonic()
    while not typed.program.done():
        need(time.monotonic() - started < 180, "`cryptback init` did not end within 180 s")
        said += (lines := typed.new())
        screen.output("\n".join(lines))
        time.sleep(0.1)
    said += (lines := typed.new())
    screen.output("\n".join(lines))
    code = typed.program.wait(check=False).code
    need(code == 0, f"`cryptback init` ended with exit status {code}")
    need(
        "You may unplug home now." in said, "`cryptback init` did not say that it may be unplugged"
    )
    screen.good("enrolled")
    screen.say("So that nobody is asked, the passphrase is stored, encrypted for this computer:")
    screen.command(" ".join(CREDENTIAL))
    vm.run(["mkdir", "-p", "-m", "700", "/etc/credstore.encrypted"])
    vm.run(CREDENTIAL, PASSPHRASE.encode())
    stick.pull()
    screen.good("the stick is pulled")


def back_up(vm: Machine, screen: Screen, stick: Stick) -> None:
    """The stick comes back: what happens then, happens by itself."""
    screen.step("The files change")
    for change in CHANGES:
        screen.command(change, user="me")
        vm.run(f"cd /home/me && {change}", user="me")

    screen.step("The stick is plugged in again. From here on nobody types anything")
    screen.say("Lines of the journal, and the service's status line:")
    watch = Watch(vm, screen)
    plugged = time.monotonic()
    stick.plug(bps=SPEED)
    syncing = re.compile(r"home: syncing [1-9]\d* %")
    watch.until(
        lambda: any(syncing.match(line) for line in watch.statuses) or watch.outcome(),
        "the daemon did not begin to copy by itself",
    )
    shown = show(vm, screen, "systemctl status --no-pager --lines=3 cryptbackd")
    need("active (running)" in shown, "`systemctl status` does not show a running service")
    need("home: " in shown, "`systemctl status` does not show what is being done")
    watch.until(
        lambda: watch.message(r"^You may unplug home now\.$") or watch.outcome(),
        "the daemon did not say that the stick may be unplugged",
    )
    need(
        watch.message(r"^You may unplug home now\.$"), "the run ended without “You may unplug home”"
    )
    said = time.monotonic()
    stick.pull(wait=False)
    screen.good(
        f"the stick is pulled, {time.monotonic() - said:.1f} s after that line, and"
        f" {said - plugged:.0f} s after it was plugged in"
    )
    watch.until(watch.outcome, "the end of the run was not told")
    need(watch.outcome() == "done", f"the run ended as “{watch.outcome()}”")
    need(any(syncing.match(line) for line in watch.statuses), "no status line showed the progress")
    vm.run(["udevadm", "wait", "--removed", "--timeout=30", "/dev/sda"])

    screen.step("What is left on the computer")
    show(vm, screen, "cryptback status")
    show(vm, screen, "cryptback history")
    runs = json.loads(vm.run(["cryptback", "history", "--json"]).out)["runs"]
    need(
        [run["outcome"] for run in runs] == ["done", "done"], "the history is not of two good runs"
    )
    try:
        oracle.check(vm)
    except oracle.Leftovers as left:
        raise Missed(str(left)) from left
    screen.good("no mapping, no loop device, no mount, no complaint in the journal")


def read_back(
    screen: Screen, clean: Machine, stick: Stick, before: list[str], after: list[str]
) -> None:
    """Another computer, without cryptbackd: the commands of the README, and a comparison."""
    screen.step("The computer is lost. The stick goes into another one, without cryptbackd")
    there = clean.run("command -v cryptback; dpkg --status cryptbackd", check=False).out
    need(not there, "the clean machine has cryptbackd")
    stick.plug()
    read = {"where": "elsewhere"}
    for command in by_hand.commands(by_hand.MOUNT):
        screen.command(command.replace(by_hand.DEVICE, stick.partition), **read)
    by_hand.run(clean, by_hand.commands(by_hand.MOUNT), stick.partition)
    need(clean.run(["cat", "/media/drive/holiday.txt"]).out == "mine\n", "holiday.txt is not there")
    show(clean, screen, "ls -l /media/drive", **read)
    screen.say("The three commands of the README:")
    for command in by_hand.commands(by_hand.OPEN):
        screen.command(command, **read)
    by_hand.run(clean, by_hand.commands(by_hand.OPEN), stick.partition, PASSPHRASE)
    show(clean, screen, "ls -d /mnt/versions/*Z", **read)
    versions = by_hand.versions(clean)
    need(len(versions) == 2, f"there are {len(versions)} versions and not 2")
    old = f"/mnt/versions/{versions[0]}/home/me"
    show(clean, screen, f"cat {old}/letters/shopping.txt", **read)
    screen.say("(deleted since: the older version still has it)")
    for version, source in zip(versions, (before, after), strict=True):
        copy = by_hand.manifest(clean, f"/mnt/versions/{version}/home/me")
        found = by_hand.difference(source, copy)
        need(not found, f"version {version} is not as the files were:\n{found}")
        screen.good(f"{version}: {len(copy)} files, exactly as they were")
    screen.say("Compared: content, modes, owners, times, ACLs, attributes, hard links, holes.")


def tell(screen: Screen) -> None:
    """The whole story."""
    build(screen)
    with layers.resume(layers.INSTALLED) as vm:
        show(vm, screen, "systemctl status --no-pager --lines=0 cryptbackd")
        stick = vm.stick("main", size=320 * MIB, fs="exfat", partitioned=True)
        with failing(vm, screen):
            enrol(vm, screen, stick)
            before = by_hand.manifest(vm, "/home/me")
            back_up(vm, screen, stick)
            after = by_hand.manifest(vm, "/home/me")
        with layers.resume(layers.BOOTED) as clean:
            copy_sparse(stick.path, clean.stick_path("main"))
            vm.close()
            read_back(screen, clean, clean.stick("main"), before, after)


@contextlib.contextmanager
def failing(vm: Machine, screen: Screen) -> Iterator[None]:
    """Show the daemon's journal if something goes wrong."""
    try:
        yield
    except Exception:
        with contextlib.suppress(Exception):
            lines = vm.run("journalctl --unit=cryptbackd --lines=30 --no-pager").out
            screen.line()
            screen.output(lines)
        raise


def main() -> int:
    """Tell the story; the exit status."""
    screen = Screen()
    try:
        tell(screen)
    except KeyboardInterrupt:
        screen.line(screen.paint("1;31", "DEMO STOPPED"))
        return 130
    except Exception as error:  # whatever it is, the last line has to say so
        reason = str(error) if isinstance(error, Missed) else f"{type(error).__name__}: {error}"
        first, *rest = reason.splitlines() or [""]
        screen.line()
        screen.output("\n".join(rest))
        screen.line(screen.paint("1;31", f"DEMO FAILED: {first} (at “{screen.title}”)"))
        return 1
    screen.line()
    told = (
        "backed up by itself, pulled at once, read back without cryptbackd"
        f" ({screen.seconds()} min)"
    )
    screen.line(screen.paint("1;32", f"DEMO PASSED: {told}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
