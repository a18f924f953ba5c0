"""What the tests of failures share: stopping at a moment, and how a failure has to end."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from typing import Any

from tests.machine import Machine, oracle
from tests.machine.enroll import PASSPHRASE
from tests.machine.machine import Entry

HOLD = r'''
"""Stops a program at its first instruction when its command line fits, and tells who it is.

fanotify(7) holds every start of the program until it was told to stop (FAN_OPEN_EXEC_PERM).
"""
import ctypes, json, os, re, signal, socket, struct, sys, time

program, pattern, told = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
FAN_CLASS_CONTENT, FAN_MARK_ADD, FAN_OPEN_EXEC_PERM, FAN_ALLOW = 4, 1, 0x40000, 1
queue = libc.fanotify_init(FAN_CLASS_CONTENT | 1, os.O_RDONLY | os.O_CLOEXEC)
assert queue >= 0, os.strerror(ctypes.get_errno())
mask = ctypes.c_uint64(FAN_OPEN_EXEC_PERM)
code = libc.fanotify_mark(queue, FAN_MARK_ADD, mask, -100, os.path.realpath(program).encode())
assert code == 0, os.strerror(ctypes.get_errno())


def parent(pid):
    return int(open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[1])


def words(pid):
    return open(f"/proc/{pid}/cmdline").read().replace("\0", " ")


with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
    manager.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
while True:
    event = os.read(queue, 24)
    fd, pid = struct.unpack("=IBBHQii", event)[5:]
    before = words(pid)
    os.kill(pid, signal.SIGSTOP)
    os.write(queue, struct.pack("=iI", fd, FAN_ALLOW))
    os.close(fd)
    while open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.001)
    if re.search(pattern, words(pid)):
        break
    os.kill(pid, signal.SIGCONT)
worker = parent(pid)
found = {"pid": pid, "worker": worker, "stub": parent(worker), "line": words(pid)}
with open(told, "w") as file:
    json.dump(found, file)
'''


@dataclass(frozen=True)
class Held:
    """A program that a worker started and that stands at its first instruction."""

    vm: Machine
    pid: int
    worker: int
    stub: int
    line: str

    def go_on(self) -> None:
        """Let it run."""
        self.vm.run(["kill", "-CONT", str(self.pid)])


class Hold:
    """Waits in the guest for a program with this command line, and stops it."""

    def __init__(self, vm: Machine, program: str, pattern: str = "") -> None:
        self._vm = vm
        vm.push("/run/hold/hold.py", HOLD)
        vm.run("rm -f /run/hold/told && mkfifo /run/hold/told")
        unit = ["systemd-run", "--quiet", "--collect", "--unit=hold", "--service-type=notify"]
        script = ["/usr/bin/python3", "-I", "/run/hold/hold.py"]
        vm.run([*unit, *script, program, pattern, "/run/hold/told"])

    def wait(self, timeout: float = 60) -> Held:
        """Wait until it was started, and stands."""
        told = self._vm.run(["cat", "/run/hold/told"], timeout=timeout)
        return Held(self._vm, **json.loads(told.out))


UNTIL = """
import json, subprocess, sys

command = ["cryptback", "status", "--watch", "--json", sys.argv[1]]
with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watch:
    for line in watch.stdout:
        drive = json.loads(line)["drive"]
        if eval(sys.argv[2], dict(drive)):
            print(json.dumps(drive))
            break
    watch.kill()
"""


def wait_status(
    vm: Machine, condition: str, *, timeout: float = 60, name: str = "home"
) -> dict[str, Any]:
    """Wait until this Python expression of the drive's keys is true in `cryptback status`."""
    command = ["/usr/bin/python3", "-I", "-", name, condition]
    shown = vm.run(command, input=UNTIL.encode(), timeout=timeout)
    drive: dict[str, Any] = json.loads(shown.out)
    return drive


def kill(vm: Machine, pid: int) -> None:
    """Kill a process in the guest."""
    vm.run(["kill", "-KILL", str(pid)])


def status(vm: Machine, name: str = "home") -> dict[str, Any]:
    """What `cryptback status --json` says of a drive."""
    shown: dict[str, Any] = json.loads(vm.run(["cryptback", "status", "--json", name]).out)
    return shown


def last_run(vm: Machine, name: str = "home") -> dict[str, Any]:
    """The youngest run in `cryptback history --json`."""
    shown: dict[str, Any] = json.loads(vm.run(["cryptback", "history", "--json", name]).out)
    run: dict[str, Any] = shown["runs"][0]
    return run


def wait_end(
    vm: Machine, *, since: str | None = None, timeout: float = 60, name: str = "home"
) -> Entry:
    """The last line of a run: the one that has its outcome."""
    return vm.wait_journal(
        lambda entry: "CRYPTBACK_OUTCOME" in entry,
        since=since,
        timeout=timeout,
        CRYPTBACK_DRIVE=name,
    )


def nothing_left(vm: Machine) -> None:
    """No mapping, loop device, mount, cookie or process is there right now."""
    left, _complaints = oracle.look(vm)
    assert left == []


def ended(
    vm: Machine,
    sentence: str,
    *,
    outcome: str = "failed",
    since: str | None = None,
    timeout: float = 60,
    name: str = "home",
) -> Entry:
    """A run ends in this way: all is locked when it is told, and all three tell the same."""
    end = wait_end(vm, since=since, timeout=timeout, name=name)
    nothing_left(vm)
    assert end["CRYPTBACK_OUTCOME"] == outcome, end["MESSAGE"]
    assert re.search(sentence, end["MESSAGE"]), end["MESSAGE"]
    for told in (last_run(vm, name), status(vm, name)):
        words = [told.get("sentence"), told.get("last_sentence"), *told["warnings"]]
        assert any(re.search(sentence, word) for word in words if word), words
    return end


def mark(vm: Machine) -> str:
    """Where the journal stands now."""
    vm.run(["journalctl", "--sync"])
    shown = vm.run(["journalctl", "--lines=1", "--output=json"]).out
    cursor: str = json.loads(shown)["__CURSOR"]
    return cursor


def succeeds_next(vm: Machine, stick: str = "main", name: str = "home") -> Entry:
    """The stick is plugged in (again), is backed up to, and may be unplugged."""
    since = mark(vm)
    main = vm.stick(stick)
    if main.plugged:
        main.pull()
    main.plug()
    end = wait_end(vm, since=since, name=name, timeout=120)
    assert end["CRYPTBACK_OUTCOME"] == "done", end["MESSAGE"]
    assert vm.journal(since=since, MESSAGE=f"You may unplug {name} now.")
    return end


def listing(vm: Machine, directory: str) -> str:
    """Everything below a directory: kind, mode, owner, size, time, target, content."""
    return vm.run(LISTING, input=directory.encode()).out


LISTING = r"""
cd "$(cat)"
find . \( -type d -printf '%P %y %m %U:%G\n' \) -o -printf '%P %y %m %U:%G %s %T@ %l\n' | sort
find . -type f -print0 | sort -z | xargs -0 md5sum
"""

OPEN = """
set -e
mkdir -p /mnt/drive /mnt/tree
mount {partition} /mnt/drive
loop=$(losetup --find --show /mnt/drive/backup.luks)
printf %s '{passphrase}' | cryptsetup open {options} $loop byhand
mount -o ro /dev/mapper/byhand /mnt/tree
"""
CLOSE = """
umount /mnt/tree
cryptsetup close byhand
losetup --detach-all
umount /mnt/drive
udevadm settle
"""


class ByHand:
    """The container opened as a person would, at /mnt/tree, while the block runs."""

    def __init__(self, vm: Machine, options: str = "", stick: str = "main") -> None:
        self._vm = vm
        self._options = options
        self._stick = stick

    def __enter__(self) -> ByHand:
        partition = self._vm.stick(self._stick).partition
        script = OPEN.format(partition=partition, passphrase=PASSPHRASE, options=self._options)
        self._vm.run(script)
        return self

    def __exit__(self, *_: object) -> None:
        self._vm.run(CLOSE)

    def versions(self) -> list[str]:
        """The names of the versions, oldest first."""
        return self._vm.run("cd /mnt/tree/versions && ls -d *Z").out.split()

    def listing(self, version: str, source: str = "/home/me") -> str:
        """What is in a version, as `listing` has it."""
        return listing(self._vm, f"/mnt/tree/versions/{version}{source}")


def first_is_whole(vm: Machine, files: str, options: str = "") -> list[str]:
    """The version from before is as the sources were then; the names of all versions."""
    with ByHand(vm, options) as container:
        names = container.versions()
        assert container.listing(names[0]) == files
        return names


def seconds_until_nothing_is_left(vm: Machine) -> float:
    """How long it takes; more than a little over five seconds is an error."""
    started = time.monotonic()
    oracle.check(vm)
    return time.monotonic() - started
