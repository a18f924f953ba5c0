"""What the service finds when it starts: its own, whoever left it, is locked, and nothing else."""

from __future__ import annotations

from tests.machine import Machine
from tests.vm.failing import nothing_left, succeeds_next
from tests.vm.runs import UNIT, now

SOME = "0123456789abcdef0123456789abcdef"
OURS = {
    # Of a version of cryptbackd that knew another entry, and of each kind that there is.
    "cryptback-home": f"CRYPT-LUKS2-{SOME}-cryptback-home",
    "cryptback-long_gone-1": f"CRYPT-LUKS2-{SOME}-cryptback-long_gone-1",
    "cryptback-home-parts": "CRYPTBACK-PARTS-home",
    "cryptback-home.redo": "CRYPTBACK-REDO-cryptback-home.redo",
}
THEIRS = {
    "luks-data": f"CRYPT-LUKS2-{SOME}-luks-data",
    "cryptback-theirs": f"CRYPT-LUKS2-{SOME}-theirs",
    "cryptback-luks1": f"CRYPT-LUKS1-{SOME}-cryptback-luks1",
    "cryptback-plain": "CRYPT-PLAIN-cryptback-plain",
    "cryptback-lvm": "LVM-cryptback-lvm",
    "cryptback-Upper": f"CRYPT-LUKS2-{SOME}-cryptback-Upper",
    "cryptback-more-parts": "CRYPTBACK-PARTS-other",
    "cryptback-more.redo": "CRYPTBACK-REDO-cryptback-other.redo",
    "xcryptback-home": f"CRYPT-LUKS2-{SOME}-xcryptback-home",
}
NAMES = "dmsetup info -c --noheadings -o name | sort"
HELD = """
set -e
truncate -s 8M /root/held
mkfs.ext4 -q -F /root/held
loop=$(losetup -f --show /root/held)
echo "0 16384 linear $loop 0" | dmsetup create cryptback-held --uuid {uuid}
losetup -d $loop
"""


def test_what_is_ours_is_locked_at_the_start_and_nothing_of_others(enrolled: Machine) -> None:
    vm = enrolled
    vm.expect_journal("^cryptbackd: The volume cryptback-held could not be locked")
    vm.expect_leftovers(f"^mapping ({'|'.join(map(str, THEIRS))})$")
    vm.run(["systemctl", "stop", "cryptbackd"])
    for name, uuid in {**OURS, **THEIRS}.items():
        vm.run(["dmsetup", "create", name, "--uuid", uuid, "--table", "0 2048 zero"])
    # One that a process still has mounted in a namespace of its own, where nobody else sees it.
    vm.run(HELD.format(uuid=f"CRYPT-LUKS2-{SOME}-cryptback-held"))
    script = "mount /dev/mapper/cryptback-held /mnt && touch /run/mounted && exec sleep infinity"
    holder = vm.spawn(["unshare", "--mount", "sh", "-c", script])
    vm.run("until [ -e /run/mounted ]; do sleep 0.1; done; udevadm settle")

    since = now(vm)
    vm.run(["systemctl", "start", "cryptbackd"])
    told = {entry["MESSAGE"] for entry in vm.journal(UNIT, since=since)}
    assert "The volume cryptback-home had been left open and was locked." in told
    assert "The mapping cryptback-home-parts had been left open and was locked." in told
    assert "The volume cryptback-held could not be locked: something else uses it." in told
    assert vm.run(NAMES).out.split() == sorted(["cryptback-held", *THEIRS])
    vm.run(["kill", "-KILL", str(holder.pid)])
    vm.run("while dmsetup info cryptback-held; do sleep 0.1; done 2>/dev/null >/dev/null")
    nothing_left(vm)
    assert vm.run(NAMES).out.split() == sorted(THEIRS)
    succeeds_next(vm)
