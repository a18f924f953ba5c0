"""The contenders: each can make a first backup in a machine, and another one."""

from __future__ import annotations

import shlex
from abc import ABC, abstractmethod
from dataclasses import dataclass

from tests.machine import Machine, Stick, enroll
from tests.machine.enroll import PASSPHRASE

SOURCE = "/srv/bench"
MIB = 1 << 20


@dataclass(frozen=True)
class Cost:
    """What one backup took, from the locked drive to the locked drive."""

    requests: int
    """Read requests that reached the stick."""
    written: int
    """Bytes that were written to it."""
    seconds: float
    cpu: float
    """Processor seconds of the programs, without the kernel's threads."""


class Contender(ABC):
    """One way to back up, with a stick of its own, which stays plugged in."""

    def __init__(self, vm: Machine, name: str, filesystem: str, size: int) -> None:
        self.vm = vm
        self.name = name
        self.filesystem = filesystem
        self.size = size
        self.stick: Stick = vm.stick(
            name.replace(" ", "-"), size=size * 5 // 4 + 128 * MIB, fs="ext4", partitioned=True
        )

    @abstractmethod
    def first(self) -> None:
        """Make what it backs up to, and the first backup."""

    @abstractmethod
    def command(self) -> str:
        """A shell script that makes another backup."""

    @abstractmethod
    def cpu(self) -> str:
        """A shell script that prints the processor seconds used so far, or since the last."""

    def again(self) -> Cost:
        """Another backup, with cold caches, and what it took."""
        assert self.stick.device
        disk = self.stick.device.rsplit("/", 1)[1]
        script = f"""
sync; echo 3 > /proc/sys/vm/drop_caches
{self.cpu()} > /run/cpu-before
before=$(cat /sys/block/{disk}/stat); begun=$(date +%s.%N)
{{ {self.command()}
}} > /run/bench.log 2>&1 || {{ cat /run/bench.log >&2; exit 1; }}
sync -f /mnt/bench 2> /dev/null
after=$(cat /sys/block/{disk}/stat); over=$(date +%s.%N)
{self.cpu()} > /run/cpu-after
echo $begun $over $before $after $(cat /run/cpu-before) $(cat /run/cpu-after)
"""
        words = self.vm.run(["/bin/bash", "-c", script], timeout=3600).out.split()
        begun, over = map(float, words[:2])
        count = (len(words) - 4) // 2
        before, after = words[2 : 2 + count], words[2 + count : 2 + 2 * count]
        cpu = [float(word) for word in words[-2:]]
        return Cost(
            int(after[0]) - int(before[0]),
            (int(after[6]) - int(before[6])) * 512,
            over - begun,
            cpu[1] - cpu[0],
        )


class Ours(Contender):
    """`cryptback run`."""

    def __init__(self, vm: Machine, name: str, filesystem: str, size: int, every: int) -> None:
        super().__init__(vm, name, filesystem, size)
        self._entry = name.replace(" ", "-")
        self._every = every

    def first(self) -> None:
        self.stick.plug()
        enroll.credential(self.vm, self._entry)
        options = ("--size", f"{self.size // MIB}M", "--filesystem", self.filesystem, "--no-run")
        enroll.init(self.vm, self.stick.partition, self._entry, *options, include=(SOURCE,))
        entry = f"/etc/cryptback/drives.d/{self._entry}.toml"
        # The others read nothing back either.
        more = f'\n[verify]\nsample = "0%"\nfull_every = {self._every}\n'
        self.vm.run(["/bin/sh", "-c", 'printf "%s" "$1" >> "$2"', "sh", more, entry])
        self.vm.run(self.command(), timeout=3600)

    def command(self) -> str:
        return f"cryptback run {self._entry}"

    def cpu(self) -> str:
        statistics = "/sys/fs/cgroup/system.slice/cryptbackd.service/cpu.stat"
        return f"awk '$1 == \"usage_usec\" {{ print $2 / 1e6 }}' {statistics}"


class ByHand(Contender):
    """The same stack, put up and taken down by a script, with another program in the middle."""

    def __init__(
        self, vm: Machine, name: str, filesystem: str, size: int, begin: str, program: str
    ) -> None:
        super().__init__(vm, name, filesystem, size)
        self._begin = begin
        self._program = program

    def first(self) -> None:
        self.stick.plug()
        key = shlex.quote(PASSPHRASE)
        file = "/mnt/bench/hand.luks"
        self.vm.run(
            f"""set -e
mkdir -p /mnt/bench /mnt/inside
printf %s {key} > /run/bench.key
mount {self.stick.partition} /mnt/bench
fallocate -l {self.size} {file}
cryptsetup luksFormat -q --sector-size 4096 --pbkdf-memory 1024 --pbkdf-force-iterations 4 \
    --pbkdf-parallel 1 --key-file /run/bench.key {file}
cryptsetup open --key-file /run/bench.key {file} bench
mkfs.{self.filesystem} -q /dev/mapper/bench
mount /dev/mapper/bench /mnt/inside
{self._begin}
umount /mnt/inside
cryptsetup close bench
umount /mnt/bench
""",
            timeout=300,
        )
        self.vm.run(["/bin/bash", "-c", self.command()], timeout=3600)

    def command(self) -> str:
        script = f"""
mount {self.stick.partition} /mnt/bench
cryptsetup open --key-file /run/bench.key /mnt/bench/hand.luks bench
mount -o noatime /dev/mapper/bench /mnt/inside
{self._program}
umount /mnt/inside
cryptsetup close bench
umount /mnt/bench
times > /run/bench.times
"""
        return shlex.join(["/bin/bash", "-ec", script])

    def cpu(self) -> str:
        # Two lines, the shell's own and its children's, each as "0m0.004s 0m0.001s".
        add = "{ n += $1 * 60 + $2 + $3 * 60 + $4 } END { print n + 0 }"
        return f"awk -F '[ms ]+' '{add}' /run/bench.times"

    def again(self) -> Cost:
        self.vm.run(": > /run/bench.times")
        return super().again()


RSYNC = f"rsync -a --delete {SOURCE}/ /mnt/inside/copy/"
LINK_DEST = f"""last=$(ls -d /mnt/inside/2* 2> /dev/null | tail -n 1)
    rsync -a ${{last:+--link-dest=$last}} {SOURCE}/ /mnt/inside/$(date +2%s%N)/"""
BORG_ENVIRONMENT = "export BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK=yes HOME=/root"
BORG_INIT = f"{BORG_ENVIRONMENT}; borg init -e none /mnt/inside/borg"
BORG = f"{BORG_ENVIRONMENT}; borg create /mnt/inside/borg::$(date +%s%N) {SOURCE}"
RESTIC_ENVIRONMENT = "export RESTIC_PASSWORD=x HOME=/root"
RESTIC_INIT = f"{RESTIC_ENVIRONMENT}; restic -q init -r /mnt/inside/restic"
RESTIC = f"{RESTIC_ENVIRONMENT}; restic -q backup -r /mnt/inside/restic {SOURCE}"


def contenders(vm: Machine, filesystem: str, size: int) -> list[Contender]:
    """All of them, none with a backup yet; what brings its own versions is there once."""
    found: list[Contender] = [
        Ours(vm, "quick run", filesystem, size, 0),
        Ours(vm, "full run", filesystem, size, 1),
        ByHand(vm, "rsync -a", filesystem, size, "", RSYNC),
        ByHand(vm, "rsync --link-dest", filesystem, size, "", LINK_DEST),
    ]
    if filesystem == "btrfs":
        found += [
            ByHand(vm, "borg", filesystem, size, BORG_INIT, BORG),
            ByHand(vm, "restic", filesystem, size, RESTIC_INIT, RESTIC),
        ]
    return found
