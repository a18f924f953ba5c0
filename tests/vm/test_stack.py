"""The worker and its stack, looked at from outside while a run is held in mid-sync."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.machine import Machine, enroll, layers, oracle
from tests.vm.container import TREE, opened
from tests.vm.runs import MIB, Held, ended, go_on, hold, random_files

CAPABILITIES = {
    "CHOWN": 0,
    "DAC_OVERRIDE": 1,
    "DAC_READ_SEARCH": 2,
    "FOWNER": 3,
    "FSETID": 4,
    "SETGID": 6,
    "SETUID": 7,
    "SETPCAP": 8,
    "SYS_ADMIN": 21,
    "MKNOD": 27,
    "SETFCAP": 31,
}
"""What the service may have at most (capabilities(7), linux/capability.h)."""
READ_ALL = 1 << CAPABILITIES["DAC_READ_SEARCH"]
WORKSPACE = "/run/cryptbackd/home"

# Looks for a text in all memory that a process can write to; arguments: PIDs, or "self".
SEARCH_MEMORY = r"""
import sys
text = sys.stdin.buffer.read()
for pid in sys.argv[1:]:
    found = looked = 0
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps.readlines():
            place, mode, *_ = line.split()
            start, end = (int(number, 16) for number in place.split("-"))
            if "rw" in mode:
                memory.seek(start)
                data = memory.read(end - start)
                looked += len(data)
                found += data.count(text)
    assert looked > 100_000, looked
    print(found)
"""


@dataclass(frozen=True)
class Stopped:
    """A machine with a run that is held in mid-sync."""

    vm: Machine
    held: Held
    disk: str

    def read(self, path: str) -> str:
        return self.vm.pull(path).decode()

    def status(self, pid: int) -> dict[str, str]:
        """/proc/PID/status."""
        lines = self.read(f"/proc/{pid}/status").splitlines()
        return dict(line.split(":\t", 1) for line in lines if ":\t" in line)

    def namespace(self, pid: int, kind: str) -> str:
        return self.vm.run(["readlink", f"/proc/{pid}/ns/{kind}"]).out

    def mounts(self, pid: int) -> dict[str, list[str]]:
        """The options of what is mounted in the eyes of a process, by mount point."""
        rows = [line.split() for line in self.read(f"/proc/{pid}/mountinfo").splitlines()]
        return {row[4]: row[5].split(",") for row in rows}

    def processes(self) -> list[int]:
        """All of the service."""
        group = self.vm.run(["systemctl", "show", "-P", "ControlGroup", "cryptbackd"]).out.strip()
        return [int(pid) for pid in self.read(f"/sys/fs/cgroup{group}/cgroup.procs").split()]


@pytest.fixture(scope="module")
def stopped() -> Iterator[Stopped]:
    """A run held in mid-sync, for all tests that only look; it ends well after the last one."""
    with layers.resume(layers.ENROLLED) as vm:
        random_files(vm, 4, 8)
        stick = vm.stick("main")
        held = hold(vm, stick)
        assert stick.device
        yield Stopped(vm, held, stick.device)
        go_on(vm)
        assert ended(vm)["CRYPTBACK_OUTCOME"] == "done"
        oracle.check(vm)


def test_the_worker_is_in_namespaces_of_its_own(stopped: Stopped) -> None:
    for kind in ("mnt", "pid"):
        own = stopped.namespace(stopped.held.worker, kind)
        assert own not in (stopped.namespace(1, kind), stopped.namespace(stopped.held.daemon, kind))
    assert stopped.status(stopped.held.worker)["NSpid"].split()[-1] == "1"


def test_nothing_that_the_worker_mounts_is_seen_outside(stopped: Stopped) -> None:
    assert f"{WORKSPACE}/tree" in stopped.mounts(stopped.held.worker)
    for pid in (1, stopped.held.daemon):
        assert not [place for place in stopped.mounts(pid) if place.startswith("/run/cryptbackd/")]
    assert stopped.vm.run(["ls", "-A", WORKSPACE]).out == ""


def test_what_is_mounted_outside_later_reaches_the_worker_but_not_the_reverse(
    stopped: Stopped,
) -> None:
    """Slave propagation: a worker with private mounts would pin what others unmount."""
    enter = ["nsenter", f"--mount=/proc/{stopped.held.worker}/ns/mnt"]
    stopped.vm.run("mkdir -p /mnt/later && mount -t tmpfs later /mnt/later")
    assert "/mnt/later" in stopped.mounts(stopped.held.worker)
    stopped.vm.run(["umount", "/mnt/later"])
    assert "/mnt/later" not in stopped.mounts(stopped.held.worker)
    stopped.vm.run([*enter, "mount", "-t", "tmpfs", "within", "/mnt/later"])
    assert "/mnt/later" not in stopped.mounts(1)
    stopped.vm.run([*enter, "umount", "/mnt/later"])


def test_the_loop_device_goes_by_itself_and_writes_directly(stopped: Stopped) -> None:
    assert stopped.read("/sys/block/loop0/loop/backing_file") == f"{WORKSPACE}/drive/backup.luks\n"
    assert stopped.read("/sys/block/loop0/loop/autoclear") == "1\n"
    assert stopped.read("/sys/block/loop0/loop/dio") == "1\n"
    assert stopped.read("/sys/block/loop0/loop/partscan") == "0\n"


def test_the_mapping_is_armed(stopped: Stopped) -> None:
    """It is marked for removal at its last close, and only the worker and the mount hold it."""
    assert "(DEFERRED REMOVE)" in stopped.vm.run(["dmsetup", "info", "cryptback-home"]).out
    assert stopped.vm.run("ls /sys/block/dm-0/slaves").out == "loop0\n"


def test_the_mapping_has_the_table_of_the_stored_header(stopped: Stopped) -> None:
    table = stopped.vm.run(["dmsetup", "table", "cryptback-home"]).out.split()
    assert table[2:4] == ["crypt", "aes-xts-plain64"]
    assert "sector_size:4096" in table


def test_mounts_follow_nothing_and_run_nothing(stopped: Stopped) -> None:
    mounts = stopped.mounts(stopped.held.worker)
    safe = {"nosuid", "nodev", "noexec"}
    assert safe <= set(mounts[f"{WORKSPACE}/tree"])
    assert {*safe, "nosymfollow"} <= set(mounts[f"{WORKSPACE}/drive"])


def test_the_drives_dirty_pages_are_capped(stopped: Stopped) -> None:
    number = stopped.read(f"/sys/class/block/{stopped.disk.removeprefix('/dev/')}/dev").strip()
    inside = stopped.vm.run("ls -d /sys/class/bdi/btrfs-*").out.strip()
    for bdi in (f"/sys/class/bdi/{number}", inside):
        assert stopped.read(f"{bdi}/strict_limit") == "1\n"
        # The kernel keeps it as a share of all memory, so that it comes out a little different.
        assert 0 < int(stopped.read(f"{bdi}/max_bytes")) < 36 * MIB


def test_the_reader_sees_nothing_but_usr_and_the_sources(stopped: Stopped) -> None:
    root = f"/proc/{stopped.held.reader}/root"
    links = {"bin", "sbin", "lib", "lib32", "lib64"}
    assert set(stopped.vm.run(["ls", "-A", root]).out.split()) - links == {"usr", "source"}
    assert stopped.vm.run(["ls", "-A", f"{root}/source"]).out.split() == ["etc", "home"]
    assert stopped.vm.run(["ls", "-A", f"{root}/source/home"]).out == "me\n"
    assert "hostname" in stopped.vm.run(["ls", f"{root}/source/etc"]).out.split()
    mounts = stopped.mounts(stopped.held.reader)
    # Its root is a tmpfs that is empty but for these; the service itself hides the modules.
    hidden = {"/usr/lib/modules"}
    assert set(mounts) - hidden == {"/", "/usr", "/source", "/source/home/me", "/source/etc"}
    assert [place for place, options in mounts.items() if "ro" not in options] in ([], ["/"])
    assert all("nosymfollow" in mounts[f"/source/{path}"] for path in ("home/me", "etc"))


def test_the_reader_can_read_everything_and_do_nothing_else(stopped: Stopped) -> None:
    status = stopped.status(stopped.held.reader)
    assert int(status["CapEff"], 16) == READ_ALL
    assert int(status["CapPrm"], 16) == READ_ALL
    assert int(status["CapInh"], 16) | int(status["CapAmb"], 16) | READ_ALL == READ_ALL
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


def test_the_reader_is_in_namespaces_of_its_own(stopped: Stopped) -> None:
    for kind in ("mnt", "pid"):
        own = stopped.namespace(stopped.held.reader, kind)
        assert own != stopped.namespace(stopped.held.worker, kind)


@pytest.mark.parametrize("place", ["/source/home/me", "/source/etc", "/source", "/usr"])
def test_not_even_root_could_write_where_the_reader_is(stopped: Stopped, place: str) -> None:
    """With all rights, but in the reader's mount namespace."""
    enter = ["nsenter", f"--target={stopped.held.reader}", "--mount", "--root"]
    tried = stopped.vm.run([*enter, "/usr/bin/touch", f"{place}/written"], check=False)
    assert tried.code == 1
    assert "Read-only file system" in tried.err
    assert stopped.vm.run([*enter, "/usr/bin/ls", place]).code == 0


def test_no_process_has_read_the_passphrase(stopped: Stopped) -> None:
    """It went from the credential to cryptsetup; neither daemon, worker nor rsync has it."""
    command = ["python3", "-I", "-c", SEARCH_MEMORY]
    passphrase = enroll.PASSPHRASE.encode()
    assert int(stopped.vm.run([*command, "self"], input=passphrase).out) > 0
    pids = [str(pid) for pid in stopped.processes()]
    assert len(pids) >= 7
    found = stopped.vm.run([*command, *pids], input=passphrase).out.split()
    assert found == ["0"] * len(pids)


def test_no_descriptor_leaks(stopped: Stopped) -> None:
    """The reader has its three ends, the writer no device; nobody holds a key's pipe or file."""
    listing = "for p; do for f in /proc/$p/fd/*; do echo $p ${f##*/} $(readlink $f); done; done"
    pids = [str(pid) for pid in stopped.processes()]
    shown = stopped.vm.run(["/bin/sh", "-c", listing, "sh", *pids]).out.splitlines()
    descriptors = [line.split(" ", 2) for line in shown]
    reader = {number: what for pid, number, what in descriptors if int(pid) == stopped.held.reader}
    ends = [reader.pop(number) for number in "012"]
    assert all(what.startswith(("socket:", "pipe:")) for what in ends), ends
    assert all(f"{what}/".startswith("/source/") for what in reader.values()), reader
    assert not [what for _pid, _number, what in descriptors if "credstore" in what]
    devices = {int(pid) for pid, _number, what in descriptors if what.startswith("/dev/sd")}
    assert devices == {stopped.held.worker}


def test_the_services_settings_are_effective(stopped: Stopped) -> None:
    wanted = sum(1 << bit for bit in CAPABILITIES.values())
    for pid in (stopped.held.daemon, stopped.held.stub, stopped.held.worker):
        status = stopped.status(pid)
        assert int(status["CapBnd"], 16) == wanted
        assert int(status["CapEff"], 16) | wanted == wanted
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        assert stopped.read(f"/proc/{pid}/limits").split("Max core file size")[1].split()[0] == "0"


@pytest.mark.parametrize(
    "path",
    [
        "/proc/sys/kernel/core_pattern",
        "/sys/kernel/mm/transparent_hugepage/enabled",
        "/sys/module/loop/parameters/max_part",
        "/etc/new",
        "/home/new",
    ],
)
def test_the_worker_cant_write_to_the_system(stopped: Stopped, path: str) -> None:
    worker = stopped.held.worker
    enter = ["nsenter", f"--target={worker}", "--mount", "/bin/sh", "-c"]
    tried = stopped.vm.run([*enter, f": >> {path}"], check=False)
    assert tried.code != 0
    assert "Read-only file system" in tried.err


def test_the_worker_cant_open_the_systems_disk(stopped: Stopped) -> None:
    """The service's device policy: what joins its control group can't either."""
    group = stopped.vm.run(["systemctl", "show", "-P", "ControlGroup", "cryptbackd"]).out.strip()
    script = f"echo $$ > /sys/fs/cgroup{group}/cgroup.procs; head -c 1 $1 > /dev/null"
    refused = stopped.vm.run(["/bin/sh", "-c", script, "sh", "/dev/vda"], check=False)
    assert "Operation not permitted" in refused.err
    stopped.vm.run(["/bin/sh", "-c", script, "sh", stopped.disk])


def test_a_partition_that_is_luks_itself_needs_no_loop_device(enrolled: Machine) -> None:
    random_files(enrolled, 4, 4)
    stick = enrolled.stick("bare", size=96 * MIB, partitioned=True)
    stick.plug()
    enroll.credential(enrolled, "bare")
    options = ["--format", "luks", "--filesystem", "ext4", "--no-run"]
    enroll.init(enrolled, stick.partition, "bare", *options)
    cursor = ended(enrolled, "bare")["__CURSOR"]
    stick.pull()
    hold(enrolled, stick, "bare")
    name = stick.partition.removeprefix("/dev/")
    assert enrolled.run("ls /sys/block/dm-0/slaves").out == f"{name}\n"
    assert enrolled.run(["losetup", "--list", "--noheadings"]).out == ""
    assert "(DEFERRED REMOVE)" in enrolled.run(["dmsetup", "info", "cryptback-bare"]).out
    go_on(enrolled)
    last = ended(enrolled, "bare", since=cursor)
    assert last["CRYPTBACK_OUTCOME"] == "done"
    told = [entry["MESSAGE"] for entry in enrolled.journal(since=cursor, CRYPTBACK_DRIVE="bare")]
    assert "You may unplug bare now." in told


def test_a_version_is_a_read_only_snapshot_with_its_record(enrolled: Machine) -> None:
    stick = enrolled.stick("main")
    stick.plug()
    started = time.time()
    ended(enrolled)
    with opened(enrolled):
        names, read_only, identity = [], [], []
        for name in enrolled.run(["ls", f"{TREE}/versions"]).out.split():
            if name.endswith("Z"):
                path = f"{TREE}/versions/{name}"
                names.append(name)
                read_only.append(enrolled.run(["btrfs", "property", "get", path, "ro"]).out)
                identity.append(enrolled.run(["stat", "-c", "%i", path]).out)
        records: list[dict[str, Any]] = [
            json.loads(enrolled.pull(f"{TREE}/versions/{name}.json")) for name in names
        ]
        files = int(enrolled.run(f"find {TREE}/versions/{names[1]} -mindepth 1 | wc -l").out)
        entry = enrolled.pull("/etc/cryptback/drives.d/home.toml").decode()

    assert len(names) == 2
    assert read_only == ["ro=true\n"] * 2
    assert identity == ["256\n"] * 2, "not the root of a subvolume"
    assert [record["sequence"] for record in records] == [1, 2]
    assert len({record["nonce"] for record in records}) == 2
    first, last = records
    assert last["version"] == names[1]
    assert last["host"] == "machine"
    assert set(last["sources"]) == {"/home/me", "/etc"}
    assert last["files"] - files in (0, 1), "rsync counts the top directory, find does not"
    assert last["bytes"] >= first["bytes"] > 20 * MIB, "with the sparse file's whole size"
    assert last["warnings"] == []
    assert {"cryptbackd", "rsync", "linux"} == set(last["programs"])
    assert all(last["programs"].values())
    assert last["entry"] == entry
    assert started - 5 < last["started"] <= last["finished"] <= time.time() + 1
