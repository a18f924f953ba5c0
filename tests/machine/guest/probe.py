#!/usr/bin/python3 -I
"""Takes the place of a program in the guest, tries what must not succeed, and then is that program.

What was tried lies in a file in memory (a sandbox may have no other place to write to): it is
complete when the process has stopped, under a name that says who started it.
"""

import ctypes
import errno
import json
import mmap
import os
import signal
import socket
import sys
import time
from collections.abc import Callable

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
INIT_MODULE = 175
PTRACE_ATTACH, PR_SET_NAME, AF_ALG = 16, 15, 38
NEW_USER, NEW_NET = 0x10000000, 0x40000000
MODE = 0o777


def fails(name: str, *arguments: object) -> None:
    """Call a function of the C library; raises OSError."""
    if getattr(libc, name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), "")


def opens(path: str, flags: int = os.O_RDONLY) -> Callable[[], None]:
    return lambda: os.close(os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, 0o600))


def reads(path: str) -> Callable[[], None]:
    """Not only open it: what is hidden behind an empty file without any rights can be opened."""

    def attempt() -> None:
        with open(path, "rb") as file:
            if not file.read(1):
                raise OSError(errno.ENODATA, "")

    return attempt


def writes(path: str) -> Callable[[], None]:
    return opens(path, os.O_WRONLY)


def makes(directory: str) -> Callable[[], None]:
    return opens(f"{directory}/probed", os.O_WRONLY | os.O_CREAT)


def opens_socket(family: int, kind: int = socket.SOCK_DGRAM) -> Callable[[], None]:
    return lambda: socket.socket(family, kind).close()


def sees_network() -> None:
    if os.listdir("/sys/class/net") == ["lo"]:
        raise OSError(errno.ENODEV, "")


def sets_clock() -> None:
    time.clock_settime(time.CLOCK_REALTIME, time.time() + 3600)


def maps_code() -> None:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()


TRIED: dict[str, Callable[[], object]] = {
    "write core_pattern": writes("/proc/sys/kernel/core_pattern"),
    "write sysrq-trigger": writes("/proc/sysrq-trigger"),
    "write a module's parameter": writes("/sys/module/loop/parameters/max_part"),
    "write of memory management": writes("/sys/kernel/mm/transparent_hugepage/enabled"),
    "make a control group": lambda: os.mkdir("/sys/fs/cgroup/probed"),
    "write in /etc": makes("/etc"),
    "write in /usr": makes("/usr"),
    "write in /home": makes("/home"),
    "write in a home": makes("/home/me"),
    "write in /root": makes("/root"),
    "write in /var": makes("/var/lib"),
    "write in /run": makes("/run"),
    "write in /tmp": makes("/tmp"),
    "write in a source": makes("/source/home/me"),
    "change a source's mode": lambda: os.chmod("/source/home/me/tagged", MODE),
    "change a source's times": lambda: os.utime("/source/home/me/tagged", (1, 1)),
    "change a source's attributes": lambda: os.setxattr("/source/home/me/tagged", "user.x", b"x"),
    "read /etc/shadow": opens("/etc/shadow"),
    "read in a home": opens("/home/me/private/diary"),
    "read in /root": lambda: os.listdir("/root"),
    "read in /var": lambda: os.listdir("/var/lib"),
    "read in /proc": lambda: os.listdir("/proc"),
    "read in /dev": lambda: os.listdir("/dev"),
    "read in /tmp": opens("/tmp/somebodys"),
    "read in /run/user": opens("/run/user/1000/somebodys"),
    "read on the drive": lambda: os.listdir("/run/cryptbackd/home/drive"),
    "open the system's disk": opens("/dev/vda"),
    "open memory": opens("/dev/mem"),
    "open ports": opens("/dev/port"),
    "open a terminal": opens("/dev/tty0"),
    "open the kernel's memory": reads("/proc/kcore"),
    "open init's memory": opens("/proc/1/mem"),
    "trace init": lambda: fails("ptrace", PTRACE_ATTACH, 1, 0, 0),
    "read the kernel's log": lambda: fails("klogctl", 3, ctypes.create_string_buffer(64), 64),
    "load a module": lambda: fails("syscall", ctypes.c_long(INIT_MODULE), b"", 0, b""),
    "swap": lambda: fails("swapoff", b"/none"),
    "disable Ctrl-Alt-Del": lambda: fails("reboot", 0),
    "set the clock": sets_clock,
    "open the hardware clock": writes("/dev/rtc0"),
    "set the host's name": lambda: socket.sethostname("probed"),
    "make a user namespace": lambda: fails("unshare", NEW_USER),
    "make a network namespace": lambda: fails("unshare", NEW_NET),
    "enter a namespace": lambda: fails("setns", os.open("/proc/self/ns/mnt", os.O_RDONLY), 0),
    "see the network": sees_network,
    "open an IPv4 socket": opens_socket(socket.AF_INET),
    "open an IPv6 socket": opens_socket(socket.AF_INET6),
    "open a netlink socket": opens_socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "open a packet socket": opens_socket(socket.AF_PACKET, socket.SOCK_RAW),
    "open a crypto socket": opens_socket(AF_ALG, socket.SOCK_SEQPACKET),
    "be scheduled before others": lambda: os.sched_setscheduler(
        0, os.SCHED_FIFO, os.sched_param(1)
    ),
    "change the niceness": lambda: os.setpriority(os.PRIO_PROCESS, 0, 1),
    "change the personality": lambda: fails("personality", 8),
    "write code and run it": maps_code,
}


def tried() -> dict[str, str]:
    """What was tried, and why it did not succeed; nothing where it did."""
    found = {}
    for name, attempt in TRIED.items():
        try:
            attempt()
            found[name] = ""
        except OSError as exc:
            found[name] = os.strerror(exc.errno or errno.EIO)
    return found


def kind() -> str:
    """Who started us."""
    program = os.path.basename(sys.argv[0])
    if program != "rsync":
        return {"btrfs": "worker", "probe": "daemon"}[program]
    if "--server" in sys.argv:
        return "reader"
    return "writer" if any(word.startswith("--rsh=") for word in sys.argv) else ""


def main() -> None:
    starter = kind()
    if starter:
        found = {"tried": tried(), "root": os.listdir("/")}
        fd = os.memfd_create("probed")
        os.write(fd, json.dumps(found).encode())
        libc.prctl(PR_SET_NAME, f"probed {starter}".encode(), 0, 0, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
    os.execv(f"{sys.argv[0]}.real", sys.argv)


main()
