"""The units' settings as they are felt from inside: by daemon, worker, reader and writer.

A program that tries what must not succeed (tests/machine/guest/probe.py) takes the place of one
that each of them starts, and so has its rights, its namespaces and its filter of system calls.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.machine import Machine, layers
from tests.vm.failing import Hold
from tests.vm.runs import UNIT, ended
from tests.vm.session import AGENT
from tests.vm.test_stack import CAPABILITIES

PROBE = (Path(layers.__file__).parent / "guest" / "probe.py").read_bytes()
DROP_IN = f"/run/systemd/system/{UNIT}.d/probe.conf"
PREPARE = r"""
echo x > /tmp/somebodys
mkdir -p /run/user/1000
cp /tmp/somebodys /run/user/1000
echo x > /home/me/new
modprobe dummy numdummies=1
[ -e /sys/class/net/dummy0 ]
cp /usr/bin/true /usr/local/bin/probe.real
for program in rsync btrfs; do
    cp -p /usr/bin/$program /usr/bin/$program.real
    cp /usr/local/bin/probe /usr/bin/$program.new
    mv /usr/bin/$program.new /usr/bin/$program
done
systemctl daemon-reload
systemctl restart --no-block cryptbackd
"""
NEXT = r"""
import json, os, re, signal, sys, time
while True:
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            stopped = re.search(r"\(probed (\w+)\) T", open(f"/proc/{pid}/stat").read())
            if stopped is None:
                continue
            lines = open(f"/proc/{pid}/status").read().splitlines()
            (file,) = [
                f"/proc/{pid}/fd/{fd}"
                for fd in os.listdir(f"/proc/{pid}/fd")
                if "memfd:probed" in os.readlink(f"/proc/{pid}/fd/{fd}")
            ]
            found = json.load(open(file))
            found["profile"] = open(f"/proc/{pid}/attr/current").read().strip("\n\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        found["status"] = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        print(json.dumps({"kind": stopped[1], **found}))
        os.kill(int(pid), signal.SIGCONT)
        sys.exit()
    time.sleep(0.05)
"""
"""Prints what the next probe found that has stopped, and lets it go on."""

WRITES = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "MKNOD", "SETFCAP")
LOOKS = ("SYS_ADMIN", "DAC_READ_SEARCH", "SETUID", "SETGID", "SETPCAP")
TIDIES = ("SYS_ADMIN", "DAC_READ_SEARCH", "DAC_OVERRIDE", "FOWNER")
EVERYWHERE = {
    "read /etc/shadow",
    "read in a home",
    "read in /root",
    "read in /var",
    "read in /proc",
    "read in /dev",
}
SUCCEEDS: dict[str, set[str]] = {
    "daemon": {*EVERYWHERE, "write in /tmp"},  # which is its own
    "worker": {*EVERYWHERE, "read in /tmp", "read on the drive"},
    "writer": set(),
    "reader": set(),
}
"""What of all that is tried, since it is what they are for."""
HAS = {
    "daemon": tuple(CAPABILITIES),
    "worker": tuple(CAPABILITIES),
    "writer": WRITES,
    "reader": ("DAC_READ_SEARCH",),
}
SEES = {"writer": {"usr", "run"}, "reader": {"usr", "source"}}


def mask(names: tuple[str, ...]) -> int:
    return sum(1 << CAPABILITIES[name] for name in names)


def status(vm: Machine, pid: int) -> dict[str, str]:
    lines = vm.pull(f"/proc/{pid}/status").decode().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


@pytest.fixture(scope="module")
def probed() -> Iterator[dict[str, Any]]:
    """What each of them found."""
    with layers.resume(layers.ENROLLED) as vm:
        vm.push("/usr/local/bin/probe", PROBE, 0o755)
        vm.push(DROP_IN, b"[Service]\nExecStartPost=/usr/local/bin/probe\n")
        vm.run(f"set -e; {PREPARE}")
        found: dict[str, Any] = {}
        collect(vm, found, {"daemon"})
        vm.stick("main").plug()
        collect(vm, found, {"writer", "reader", "worker"})
        yield found


def collect(vm: Machine, found: dict[str, Any], kinds: set[str]) -> None:
    """Wait for each of these."""
    while not kinds <= found.keys():
        told = json.loads(vm.run(["python3", "-I", "-c", NEXT], timeout=120).out)
        found.setdefault(told.pop("kind"), told)


@pytest.mark.parametrize("who", SUCCEEDS)
def test_nothing_succeeds_but_what_it_is_for(probed: dict[str, Any], who: str) -> None:
    tried: dict[str, str] = probed[who]["tried"]
    assert len(tried) > 50
    assert {what for what, why in tried.items() if not why} == SUCCEEDS[who]


@pytest.mark.parametrize("who", HAS)
def test_its_capabilities_are_those_that_it_needs(probed: dict[str, Any], who: str) -> None:
    found = probed[who]["status"]
    assert int(found["CapEff"], 16) == mask(HAS[who])
    assert int(found["CapPrm"], 16) == mask(HAS[who])
    assert int(found["CapBnd"], 16) | mask(tuple(CAPABILITIES)) == mask(tuple(CAPABILITIES))
    assert (found["NoNewPrivs"], found["Seccomp"]) == ("1", "2")


@pytest.mark.parametrize("who", HAS)
def test_apparmor_confines_it(probed: dict[str, Any], who: str) -> None:
    assert probed[who]["profile"] == "cryptbackd (enforce)"


@pytest.mark.parametrize(
    "place", ["/etc/probed", "/usr/bin/probed", "/home/me/probed", "/run/probed"]
)
def test_apparmor_alone_keeps_root_from_writing(vm: Machine, place: str) -> None:
    vm.expect_journal('apparmor="DENIED"')
    script = f"echo x > {place}"
    told = vm.run(["aa-exec", "-p", "cryptbackd", "--", "/usr/bin/sh", "-c", script], check=False)
    assert "Permission denied" in told.err
    vm.run(["/usr/bin/sh", "-c", script])


@pytest.mark.parametrize("who", SEES)
def test_rsync_sees_its_own_side_alone(probed: dict[str, Any], who: str) -> None:
    links = {"bin", "sbin", "lib", "lib32", "lib64"}
    assert set(probed[who]["root"]) - links == SEES[who]


def test_when_all_is_copied_the_worker_gives_up_what_copying_took(enrolled: Machine) -> None:
    holding = Hold(enrolled, "/usr/bin/umount", "cryptbackd/home/tree")
    enrolled.stick("main").plug()
    held = holding.wait()
    for pid in (held.worker, held.pid):
        assert int(status(enrolled, pid)["CapBnd"], 16) == mask(TIDIES)
        assert int(status(enrolled, pid)["CapEff"], 16) == mask(TIDIES)
    held.go_on()
    assert ended(enrolled)["CRYPTBACK_OUTCOME"] == "done"


def test_a_worker_that_only_looks_can_change_nothing(enrolled: Machine) -> None:
    vm = enrolled
    vm.stick("main").plug()
    since = ended(vm)["__CURSOR"]
    holding = Hold(vm, "/usr/bin/umount", "cryptbackd/home/tree")
    verifying = vm.spawn(["cryptback", "verify", "home"])
    held = holding.wait()
    assert int(status(vm, held.worker)["CapBnd"], 16) == mask(LOOKS)
    assert int(status(vm, held.worker)["CapEff"], 16) == mask(LOOKS)
    held.go_on()
    verifying.wait(timeout=120)
    assert ended(vm, since=since)["CRYPTBACK_OUTCOME"] == "done"


THEIR_OWN = {
    "write in /tmp",
    "write in a home",
    "read in /tmp",
    "read in a home",
    "read in /dev",
    "read in /proc",
    "read in /var",
    "change the niceness",  # toolkits do
    "write code and run it",
}
"""What any program of theirs may, which takes no rights."""


def test_the_agent_may_less_than_its_user(enrolled: Machine) -> None:
    vm = enrolled
    vm.push("/usr/local/bin/probe", PROBE, 0o755)
    vm.push(
        f"/run/systemd/user/{AGENT}.d/probe.conf",
        b"[Service]\nExecStartPost=/usr/local/bin/probe\n",
    )
    vm.run("cp /usr/bin/true /usr/local/bin/probe.real; echo x > /tmp/somebodys")
    found: dict[str, Any] = {}
    vm.run(["loginctl", "enable-linger", "me"])
    collect(vm, found, {"daemon"})
    agent = found["daemon"]
    assert (agent["status"]["NoNewPrivs"], agent["status"]["Seccomp"]) == ("1", "2")
    assert {what for what, why in agent["tried"].items() if not why} == THEIR_OWN
    # The same program of theirs, without the unit.
    mine = vm.spawn(
        [*["setpriv", "--reuid=me", "--regid=me", "--init-groups"], "/usr/local/bin/probe"]
    )
    while found["daemon"]["status"]["Pid"] == agent["status"]["Pid"]:
        found.clear()
        collect(vm, found, {"daemon"})
    mine.wait(check=False)
    freely = {what for what, why in found["daemon"]["tried"].items() if not why}
    assert freely - THEIR_OWN >= {
        "make a user namespace",
        "change the personality",
        "open an IPv4 socket",
        "open an IPv6 socket",
        "open a netlink socket",
        "open a crypto socket",
    }


@pytest.mark.parametrize(
    ("unit", "most"),
    [("cryptbackd.service", 25), ("cryptbackd-lengthen@.service", 10)],
)
def test_exposure(vm: Machine, unit: str, most: int) -> None:
    words = [f"--threshold={most}", "--offline=true", f"/usr/lib/systemd/system/{unit}"]
    vm.run(["systemd-analyze", "security", "--no-pager", *words])
