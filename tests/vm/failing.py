"""What the tests of failures share: stopping at a moment, and how a failure has to end."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from tests.machine import Machine, oracle
from tests.machine.machine import Entry
from tests.vm.container import opened
from tests.vm.runs import PATIENCE, drive, ended, history, now

KERNEL_MISSES_IT = (
    "^kernel: .*(I/O error|I/O to dead device|device offline|Synchronize Cache|Aborting journal"
    "|JBD2|lost|EXT4-fs|BTRFS|FAT-fs|exFAT-fs|ntfs3|FAT read failed|bread failed)"
)
"""What the kernel says of a stick that was pulled out while it was in use."""

NO_PLYMOUTH = "systemd-ask-password-plymouth.* not loaded"
"""A machine without plymouth complains whenever something is asked."""

NO_HOLES_ON_FAT = "^kernel: operation not supported error, dev loop0, .*WRITE_ZEROES"
"""FAT has no fallocate() for a hole, which the kernel only learns when mkfs asks for one."""

HOLD = r'''
"""Stops a program at its first instruction when its command line fits, and tells who it is.

fanotify(7) holds every start of the program until it was told to stop (FAN_OPEN_EXEC_PERM).
It does so the given number of times, each when it was told to somebody.
"""
import ctypes, json, os, re, signal, socket, struct, sys, time

program, pattern, told, times = sys.argv[1:]
left = int(times)
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
while left:
    event = os.read(queue, 24)
    fd, pid = struct.unpack("=IBBHQii", event)[5:]
    before = words(pid)
    os.kill(pid, signal.SIGSTOP)
    os.write(queue, struct.pack("=iI", fd, FAN_ALLOW))
    os.close(fd)
    while open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.001)
    if not re.search(pattern, words(pid)):
        os.kill(pid, signal.SIGCONT)
        continue
    worker = parent(pid)
    found = {"pid": pid, "worker": worker, "stub": parent(worker), "line": words(pid)}
    with open(told, "w") as file:
        json.dump(found, file)
    left -= 1
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
    """Waits in the guest for a program with this command line, and stops it.

    `times`: so many of them, one after another.
    """

    def __init__(self, vm: Machine, program: str, pattern: str = "", *, times: int = 1) -> None:
        self._vm = vm
        vm.push("/run/hold/hold.py", HOLD)
        vm.run("rm -f /run/hold/told && mkfifo /run/hold/told")
        unit = ["systemd-run", "--quiet", "--collect", "--unit=hold", "--service-type=notify"]
        script = ["/usr/bin/python3", "-I", "/run/hold/hold.py"]
        vm.run([*unit, *script, program, pattern, "/run/hold/told", str(times)])

    def wait(self, timeout: float = 60) -> Held:
        """Wait until it was started, and stands."""
        told = self._vm.run(["cat", "/run/hold/told"], timeout=timeout)
        return Held(self._vm, **json.loads(told.out))

    def end(self) -> None:
        """Wait for no more of them; none stands now."""
        self._vm.run(["systemctl", "stop", "hold"])


def kill(vm: Machine, pid: int) -> None:
    """Kill a process in the guest."""
    vm.run(["kill", "-KILL", str(pid)])


def nothing_left(vm: Machine) -> None:
    """No mapping, loop device, mount, cookie or process is there right now."""
    assert oracle.look(vm).left == []


def tells(
    vm: Machine,
    sentence: str,
    *,
    outcome: str = "failed",
    since: str | None = None,
    timeout: float = PATIENCE,
    name: str = "home",
) -> Entry:
    """A run ends in this way: all is locked when it is told, and all three tell the same."""
    end = ended(vm, name, since=since, timeout=timeout)
    nothing_left(vm)
    assert end["CRYPTBACK_OUTCOME"] == outcome, end["MESSAGE"]
    assert re.search(sentence, end["MESSAGE"]), end["MESSAGE"]
    for told in (history(vm, name)[0], drive(vm, name)):
        words = [told.get("sentence"), told.get("last_sentence"), *told["warnings"]]
        assert any(re.search(sentence, word) for word in words if word), words
    return end


def succeeds_next(vm: Machine, stick: str = "main", name: str = "home") -> Entry:
    """The stick is plugged in (again), is backed up to, and may be unplugged."""
    since = now(vm)
    main = vm.stick(stick)
    if main.plugged:
        main.pull()
    main.plug()
    end = ended(vm, name, since=since)
    assert end["CRYPTBACK_OUTCOME"] == "done", end["MESSAGE"]
    assert vm.journal(since=since, MESSAGE=f"You may unplug {name} now.")
    return end


def first_is_whole(vm: Machine, files: str, options: tuple[str, ...] = ()) -> list[str]:
    """The version from before is as the sources were then; the names of all versions."""
    with opened(vm, options=options) as container:
        names = container.versions()
        assert container.listing(names[0]) == files
        return names


def clock(vm: Machine) -> float:
    """The time in the machine (Unix time)."""
    return float(vm.run(["date", "+%s.%N"]).out)


def locked_in_time(vm: Machine, since: float) -> None:
    """Five seconds after this time no mapping, loop device, mount or cookie was left."""
    took = oracle.check(vm) - since
    assert took < 5, f"it took {took:.1f} s"
