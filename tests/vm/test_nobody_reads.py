"""Nobody reads the passphrase: who has it in memory while a drive is opened and used, and where
it is written.

All processes of the machine are looked into, not only ours.  What is in the way of a look, no
core, no swap and no dump, is lifted for it where it matters, and tested by itself.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.machine import Machine, Stick
from tests.machine.enroll import CHEAP, PASSPHRASE
from tests.vm import runs, search, session
from tests.vm.failing import Hold
from tests.vm.test_agent import agent_pid
from tests.vm.test_keys import told
from tests.vm.test_passphrase import plugged

NEW = "nine lives of a grey cat"
CRYPTSETUP = "/usr/sbin/cryptsetup"
ASKS = "cryptbackd.agent.ask"
"""Asked, and has to remember the answer until it is known to be right."""
KEYRING = "/usr/bin/gnome-keyring-daemon"
COMMAND = "/usr/bin/cryptback"
LOOKED = "/var/tmp/looked"
CORES = "/var/tmp/cores"
PATIENCE = 180.0
"""Seconds until a held program is there: looking on takes time, too."""

OURS = ["/usr/sbin/qemu-ga"]
"""What the tests themselves need, and what therefore may know: the agent of the machine brought
in what the person answers, and what is searched for."""

PLACES = ["/run", "/tmp", "/var/tmp", "/var/log", "/etc", "/root"]
PLACES += ["/var/lib/cryptbackd", "/var/lib/systemd"]
PLACES += [f"/home/me/{name}" for name in (".local", ".config", ".cache")]
"""Where it might be written.  The keyring's own file is among it, and encrypted; what the person
answers (`session.PLACE`) has been taken out by then."""

SAMPLE = r"""
import os, sys, time

seen = set()
while True:
    for pid in filter(str.isdigit, os.listdir("/proc")):
        for what in ("cmdline", "environ"):
            try:
                with open(f"/proc/{pid}/{what}", "rb") as file:
                    data = file.read()
            except OSError:  # it has ended meanwhile
                continue
            if data not in seen:
                seen.add(data)
                sys.stdout.buffer.write(data + b"\n")
    sys.stdout.flush()
    time.sleep(0.05)
"""
"""Writes down the command lines and environments of all processes."""

PEEK = r"""
import ctypes, json, os, subprocess, sys

libc = ctypes.CDLL(None, use_errno=True)
SEIZE = 0x4206


def ways(pid):
    found = []
    for name in ("mem", "maps", "environ"):
        try:
            open(f"/proc/{pid}/{name}", "rb").close()
            found.append(name)
        except OSError:
            pass
    try:
        os.readlink(f"/proc/{pid}/exe")
        found.append("exe")
    except OSError:
        pass
    if libc.ptrace(ctypes.c_long(SEIZE), ctypes.c_long(pid), None, None) == 0:
        found.append("ptrace")
    return found


own = subprocess.Popen(["sleep", "600"])
print(json.dumps([ways(pid) for pid in (own.pid, *map(int, sys.argv[1:]))]))
own.kill()
"""
"""By which ways one can look into processes; the first is a child, into which one can."""


@dataclass(frozen=True)
class Seen:
    """Who was looked at, and who knows: names of programs, or of our modules."""

    looked: set[str]
    knows: set[str]


def look(vm: Machine, *pids: int, secrets: tuple[str, ...] = (PASSPHRASE,)) -> Seen:
    """Search the memory of these processes; of all, when none are named."""
    asked = json.dumps({"pids": pids, "secrets": secrets}).encode()
    shown = json.loads(_search(vm, asked))
    others = [[_name(line) for line in shown[key]] for key in ("looked", "knows")]
    return Seen(*({name for name in names if name not in OURS} for names in others))


def written(vm: Machine, *places: str) -> list[str]:
    """The files that have the passphrase."""
    asked = json.dumps({"places": places, "secrets": [PASSPHRASE]}).encode()
    found: list[str] = json.loads(_search(vm, asked))
    return found


def _search(vm: Machine, asked: bytes) -> str:
    program = Path(search.__file__).read_text()
    return vm.run(["python3", "-I", "-c", program], asked, timeout=400).out


def _name(line: list[str]) -> str:
    """What to call a process: its number and its command line are given."""
    words = line[1:]
    if not words[0].endswith("python3"):
        return words[0]
    if "-m" in words:
        return words[words.index("-m") + 1]
    return next((word for word in words[1:] if word.startswith("/")), words[0])


def daemon_pid(vm: Machine) -> int:
    return int(vm.run(["systemctl", "show", "-P", "MainPID", runs.UNIT]).out)


def record(vm: Machine) -> None:
    """Write down what is said on both buses, and how programs are called, until `recorded`.

    The messages are kept as they are on the bus: as text, a secret would be a list of numbers.
    """
    vm.run(["mkdir", "-p", "-m", "1777", LOOKED])
    vm.push("/usr/local/bin/sample", SAMPLE)
    unit = ["systemd-run", "--quiet", "--collect"]
    capture = ["busctl", "--size=1048576", "capture"]
    for name, command in (
        ("processes", ["python3", "-I", "/usr/local/bin/sample"]),
        ("bus", capture),
    ):
        output = f"--property=StandardOutput=truncate:{LOOKED}/{name}"
        vm.run([*unit, f"--unit=looked-{name}", output, *command])
    # Here the keyring's library and the keyring hand the passphrase to each other: encrypted by a
    # key that the two agree upon ("dh-ietf1024-sha256-aes128-cbc-pkcs7" of the Secret Service).
    output = f"--property=StandardOutput=truncate:{LOOKED}/session-bus"
    words = [*unit, "--user", "--unit=looked-bus", output, capture[0], "--user", *capture[1:]]
    session.as_user(vm, words)


def recorded(vm: Machine) -> None:
    """End that, and check that something was written down."""
    vm.run(["systemctl", "stop", "looked-processes", "looked-bus"])
    session.as_user(vm, ["systemctl", "--user", "stop", "looked-bus"])
    vm.run(f"journalctl --sync; journalctl --all --output=export > {LOOKED}/journal", timeout=120)
    for name, what in (
        ("processes", CRYPTSETUP),
        ("processes", ASKS),
        ("processes", "CRYPTBACK_PINENTRY"),
        ("bus", "GetPassphrase"),
        ("session-bus", "org.freedesktop.Secret"),
        ("journal", "the keyring remembers"),
    ):
        vm.run(["grep", "-qaF", what, f"{LOOKED}/{name}"])


def allow_swap(vm: Machine) -> Stick:
    """Let the service and the agent be swapped to a stick, which this computer can read."""
    here, of_user = (["systemctl", *user, "set-property", "--runtime"] for user in ([], ["--user"]))
    vm.run([*here, runs.UNIT, "MemorySwapMax=infinity"])
    session.as_user(vm, [*of_user, session.AGENT, "MemorySwapMax=infinity"])
    # What may know, and what does because of the tests, is not to get there.
    vm.run([*here, "qemu-guest-agent.service", "MemorySwapMax=0"])
    session.as_user(vm, [*of_user, "keyring.service", "MemorySwapMax=0"])
    stick = vm.stick("swap", size=128 << 20)
    device = stick.plug()
    assert device
    vm.run(f"mkswap {device} && swapon {device}")
    return stick


def swap_out(vm: Machine, *pids: int) -> None:
    """Have the service and the agent swapped out."""
    groups = [
        vm.run(["systemctl", "show", "-P", "ControlGroup", runs.UNIT]).out.strip(),
        session.as_user(
            vm, ["systemctl", "--user", "show", "-P", "ControlGroup", session.AGENT]
        ).out.strip(),
    ]
    for group in groups:
        # It complains when there was less to be had.
        file = f"/sys/fs/cgroup{group}/memory.reclaim"
        vm.run(f"echo '300M swappiness=200' > {file}", check=False, timeout=120)
    for pid in pids:
        swapped = vm.run(f"grep VmSwap /proc/{pid}/status").out.split()
        assert int(swapped[1]) > 0, f"nothing of process {pid} is in swap"


def allow_cores(vm: Machine, *pids: int) -> None:
    """Have the kernel hand cores to a program; of these processes, too."""
    vm.push("/usr/local/bin/keep-core", f"#!/bin/sh\nexec cat > {CORES}/$1\n", 0o755)
    pattern = "|/usr/local/bin/keep-core %P"
    vm.run(f"mkdir -p {CORES}; echo '{pattern}' > /proc/sys/kernel/core_pattern")
    for pid in pids:
        vm.run(["prlimit", f"--pid={pid}", "--core=unlimited"])


def cores(vm: Machine) -> list[str]:
    """Of which processes there are cores."""
    return vm.run(["ls", CORES]).out.split()


@pytest.mark.timeout(1200, func_only=True)
def test_nobody_but_the_keyring_and_the_tools_knows_the_passphrase(enrolled: Machine) -> None:
    """Asked for and remembered at the first plug, taken out of the keyring at the second."""
    vm = enrolled
    session.own(vm)
    session.begin(vm, PASSPHRASE, "yes")
    session.keyring(vm)
    runs.random_files(vm, 8, 8, "/etc/random")
    record(vm)
    stick = vm.stick("main")
    daemon, agent = daemon_pid(vm), agent_pid(vm)  # of the enrolment, too

    hold = Hold(vm, CRYPTSETUP, " open ")
    stick.plug()
    held = hold.wait(timeout=PATIENCE)
    seen = look(vm)
    assert seen.knows == {ASKS}
    assert {"cryptbackd.daemon", "cryptbackd.worker", "cryptbackd.agent", CRYPTSETUP} <= seen.looked

    copying = runs.news(vm, runs.copied(0))
    held.go_on()
    copying.wait(timeout=PATIENCE)
    run = runs.stop(vm)
    vm.wait_journal("the keyring remembers", _SYSTEMD_USER_UNIT=session.AGENT, timeout=PATIENCE)
    gone = "while pgrep --full cryptbackd.agent.as[k]; do sleep 0.1; done"
    vm.run(["timeout", "60", "sh", "-c", gone], timeout=70)
    swap = allow_swap(vm)
    swap_out(vm, run.daemon, run.worker, agent)
    seen = look(vm)
    assert seen.knows == {KEYRING}
    assert "/usr/bin/rsync" in seen.looked
    runs.go_on(vm)
    assert runs.ended(vm, timeout=PATIENCE)["CRYPTBACK_OUTCOME"] == "done"
    vm.run(["rm", "-r", "/etc/random"])

    hold = Hold(vm, CRYPTSETUP, " open ")
    here = runs.now(vm)
    stick.replug()
    held = hold.wait(timeout=PATIENCE)
    assert "answered from the keyring" in session.said(vm)
    assert look(vm).knows == {KEYRING}
    held.go_on()
    assert runs.ended(vm, since=here, timeout=PATIENCE)["CRYPTBACK_OUTCOME"] == "done"
    assert told(vm).count("unlocked with the passphrase from agent.") == 2
    assert (daemon_pid(vm), agent_pid(vm)) == (daemon, agent)
    assert look(vm, daemon, agent).knows == set()

    recorded(vm)
    assert written(vm, *PLACES) == []
    assert search.in_file(str(swap.path), [PASSPHRASE]) == 0
    # So that it is known to be found where it is.
    vm.push("/var/tmp/control", f"{PASSPHRASE}\n".encode("utf-16-be"))
    assert written(vm, "/var/tmp") == ["/var/tmp/control"]


@pytest.mark.timeout(600, func_only=True)
def test_nobody_looks_inside_and_no_core_is_left(enrolled: Machine) -> None:
    """Neither what the units say nor what the processes do is needed: each is enough."""
    vm = enrolled
    session.begin(vm)
    show = ["show", "--property=LimitCORE", "--property=MemorySwapMax"]
    wanted = {"LimitCORE=0", "MemorySwapMax=0"}
    assert set(vm.run(["systemctl", *show, runs.UNIT]).out.split()) == wanted
    assert (
        set(session.as_user(vm, ["systemctl", "--user", *show, session.AGENT]).out.split())
        == wanted
    )

    hold = Hold(vm, CRYPTSETUP, " open ")
    vm.stick("main").plug()
    held = hold.wait(timeout=PATIENCE)
    daemon, agent = daemon_pid(vm), agent_pid(vm)
    # Root may look into everything, but for a root without this capability, as a service is.
    as_root = ["setpriv", "--bounding-set=-sys_ptrace", "--"]
    peek = ["python3", "-I", "-c", PEEK]
    pids = [str(pid) for pid in (daemon, held.stub, held.worker)]
    all_ways = ["mem", "maps", "environ", "exe", "ptrace"]
    assert json.loads(vm.run([*as_root, *peek, *pids]).out) == [all_ways, [], [], []]
    assert json.loads(vm.run([*peek, str(agent)], user="me").out) == [all_ways, []]
    # What belongs to root there is of a process that may not be dumped.
    assert vm.run(["stat", "-c", "%U", f"/proc/{agent}/mem"]).out == "root\n"
    held.go_on()
    assert runs.ended(vm, timeout=PATIENCE)["CRYPTBACK_OUTCOME"] == "done"

    allow_cores(vm, daemon, agent)
    dies = vm.run("echo $$; kill -ABRT $$", check=False)
    assert cores(vm) == [dies.out.strip()]
    here = runs.now(vm)
    vm.run(["kill", "-ABRT", str(agent), str(daemon)])
    vm.wait_journal(
        "Registered with cryptbackd", since=here, _SYSTEMD_USER_UNIT=session.AGENT, timeout=PATIENCE
    )
    assert daemon_pid(vm) != daemon
    assert cores(vm) == [dies.out.strip()]


@pytest.mark.timeout(600, func_only=True)
def test_what_is_changed_is_known_to_the_command_alone(enrolled: Machine) -> None:
    """Of `remember` not even to that: the program hands on what it doesn't read."""
    vm = enrolled
    plugged(vm)
    secrets = PASSPHRASE, NEW
    hold = Hold(vm, CRYPTSETUP, "luksChangeKey")
    words = ["cryptback", "passphrase", "home", "change", "--passphrase-fd", "0"]
    given = f"{PASSPHRASE}\n{NEW}\n".encode()
    changing = vm.spawn([*words, "--new-passphrase-fd", "0", *CHEAP], given)
    held = hold.wait(timeout=PATIENCE)
    seen = look(vm, secrets=secrets)
    assert seen.knows == {COMMAND}
    assert {"cryptbackd.daemon", "cryptbackd.worker", CRYPTSETUP} <= seen.looked
    pid = vm.run(["pgrep", "--full", f"{COMMAND} passphrase home"]).out.strip()
    peek = ["setpriv", "--bounding-set=-sys_ptrace", "--", "python3", "-I", "-c", PEEK, pid]
    assert json.loads(vm.run(peek).out)[1] == []
    held.go_on()
    changing.wait(timeout=PATIENCE)

    hold = Hold(vm, CRYPTSETUP, "--test-passphrase")
    words = ["cryptback", "passphrase", "home", "remember", "--passphrase-fd", "0"]
    storing = vm.spawn(words, f"{NEW}\n".encode())
    held = hold.wait(timeout=PATIENCE)
    seen = look(vm, secrets=secrets)
    assert seen.knows == set()
    assert {COMMAND, CRYPTSETUP} <= seen.looked
    held.go_on()
    storing.wait(timeout=PATIENCE)
