"""What fails in a run is told with its name, and the rest is saved."""

from __future__ import annotations

import pytest

from tests.machine import Machine
from tests.machine.enroll import credential, init
from tests.vm.container import listing, opened
from tests.vm.failing import first_is_whole, succeeds_next, tells
from tests.vm.runs import MIB, PATIENCE, drive, ended, now

ENTRY = "/etc/cryptback/drives.d/home.toml"


@pytest.mark.parametrize(
    ("filesystem", "size"), [("ext4", 48), pytest.param("btrfs", 144, marks=pytest.mark.slow)]
)
def test_full_container_is_told_and_keeps_what_it_has(
    vm: Machine, filesystem: str, size: int
) -> None:
    vm.run("mkdir /home/me/letters && echo hello > /home/me/letters/first && chown -R me: /home/me")
    credential(vm, "home")
    stick = vm.stick("main", size=(size + 48) * MIB, fs="ext4")
    stick.plug()
    init(vm, stick.partition, "home", "--size", f"{size}M", "--filesystem", filesystem)
    stick.pull()
    files = listing(vm, "/home/me")
    vm.run(f"mkdir /home/me/more && head -c {size}M /dev/urandom > /home/me/more/big")
    since = now(vm)
    stick.plug()
    tells(vm, "There is no room left in the container.", since=since)
    assert vm.journal(since=since, MESSAGE="You may unplug home now.")
    assert len(first_is_whole(vm, files)) == 1
    vm.run("rm -r /home/me/more")
    succeeds_next(vm)
    assert len(first_is_whole(vm, files)) == 2


def test_full_container_lets_the_oldest_version_go_but_none_that_is_to_stay(vm: Machine) -> None:
    credential(vm, "home")
    stick = vm.stick("main", size=112 * MIB, fs="ext4")
    stick.plug()

    def new_file(megabytes: int) -> None:
        vm.run(f"head -c {megabytes}M /dev/urandom > /home/me/big && chown -R me: /home/me")

    new_file(11)  # of some 39 that there are: three have room
    init(vm, stick.partition, "home", "--size", "64M", "--filesystem", "ext4")
    for _ in range(2):
        new_file(11)
        vm.run(["cryptback", "run", "home"], timeout=120)
    with opened(vm) as container:
        first, second, third = container.versions()
        files = {name: container.listing(name) for name in (second, third)}

    new_file(11)
    since = now(vm)
    vm.run(["cryptback", "run", "home"], timeout=120)
    removed = vm.journal(since=since, MESSAGE_ID="dc21daf7fafd4d718a3d81c05c57ec2d")
    assert [entry["MESSAGE"] for entry in removed] == [
        f"home: version {first} removed: the container is full, and no rule of [keep] holds it."
    ]
    with opened(vm) as container:
        *names, fourth = container.versions()
        assert names == [second, third]
        files[fourth] = container.listing(fourth)
        assert files[fourth] == listing(vm, "/home/me")
        assert {name: container.listing(name) for name in files} == files

    vm.push(ENTRY, vm.pull(ENTRY).decode() + "\n[keep]\nlast = 3\n", 0o600)
    new_file(20)
    since = now(vm)
    vm.run(["cryptback", "run", "home"], check=False, timeout=120)
    tells(
        vm, r"There is no room left in the container\. About \S+ MiB more are needed\.", since=since
    )
    with opened(vm) as container:
        assert {name: container.listing(name) for name in container.versions()} == files
    # With no rule that holds them they could go, and it would not do.
    vm.push(ENTRY, vm.pull(ENTRY).decode().replace("last = 3", "last = 0"), 0o600)
    new_file(80)
    since = now(vm)
    vm.run(["cryptback", "run", "home"], check=False, timeout=120)
    tells(vm, "No version was given up for it, as that is more than the container", since=since)
    with opened(vm) as container:
        assert {name: container.listing(name) for name in container.versions()} == files
    new_file(1)
    succeeds_next(vm)


def test_container_that_is_full_of_directories_lets_the_oldest_version_go(vm: Machine) -> None:
    """A quick run finds no room before it copies anything: cp(1) meets it, and not rsync."""
    credential(vm, "home")
    stick = vm.stick("main", size=112 * MIB, fs="ext4")
    stick.plug()
    # A block and an inode each: a version takes 16 MiB of some 39 that there are.
    vm.run("mkdir -p $(seq -f /home/me/%04.0f/d 2000) && chown -R me: /home/me")
    init(vm, stick.partition, "home", "--size", "64M", "--filesystem", "ext4")
    vm.run(["cryptback", "run", "home"], timeout=120)
    with opened(vm) as container:
        first, second = container.versions()
    vm.run("echo more > /home/me/more && chown me: /home/me/more")
    since = now(vm)
    vm.run(["cryptback", "run", "home"], timeout=120)
    told = [entry["MESSAGE"] for entry in vm.journal(since=since, CRYPTBACK_DRIVE="home")]
    quick = "home: comparing with what this computer remembers of the drive: "
    assert any(line.startswith(quick) for line in told)
    assert "home: comparing in full, since the container was full." in told
    why = "the container is full, and no rule of [keep] holds it"
    assert f"home: version {first} removed: {why}." in told
    with opened(vm) as container:
        kept, newest = container.versions()
        assert kept == second
        assert container.listing(newest) == listing(vm, "/home/me")


def test_container_cut_short_is_told(enrolled: Machine) -> None:
    vm = enrolled
    vm.expect_journal("^cryptbackd: home: failed: ")
    vm.run(["systemctl", "mask", "--runtime", "--now", "cryptbackd.service"])
    stick = vm.stick("main")
    stick.plug()
    vm.run(
        f"mkdir -p /mnt/drive && mount {stick.partition} /mnt/drive"
        " && truncate -s 200M /mnt/drive/backup.luks && umount /mnt/drive"
        " && systemctl unmask --runtime cryptbackd && systemctl start cryptbackd"
    )
    tells(vm, "The container was cut short: its filesystem takes .* of it are there.")
    assert vm.journal(MESSAGE="You may unplug home now.")


def test_file_that_changes_while_it_is_read_is_a_warning(enrolled: Machine) -> None:
    vm = enrolled
    vm.run("mkdir /home/me/more && echo 1 > /home/me/more/calm")
    append = "while echo more; do :; done >> /home/me/more/restless"
    writer = vm.spawn(["/bin/sh", "-c", f"exec timeout 280 sh -c '{append}'"])
    vm.stick("main").plug()
    sentence = '"/home/me/more/restless" changed while it was read'
    end = tells(vm, sentence, outcome="warnings")
    vm.run(["pkill", "-x", "timeout"])
    writer.wait(check=False)
    assert "home: finished with 1 warning: " in end["MESSAGE"]
    assert vm.journal(MESSAGE="You may unplug home now.")
    with opened(vm) as container:
        newest = container.versions()[-1]
        shown = vm.run(f"cd /mnt/tree/versions/{newest}/home/me/more && cat calm && ls")
        assert shown.out.split() == ["1", "calm", "restless"]
    vm.run("rm /home/me/more/restless")
    succeeds_next(vm)


BAD_DISK = """
set -e
truncate -s 16M /var/disk.img
mkdir -p /srv/disk
loop=$(losetup --find --show /var/disk.img)
mkfs.ext4 -q $loop
mount $loop /srv/disk
head -c 64K /dev/urandom > /srv/disk/bad
head -c 64K /dev/urandom > /srv/disk/good
sync
first=$(filefrag -b512 -e /srv/disk/bad | awk '$1 == "0:" { sub(/[.][.]/, "", $4); print $4 }')
umount /srv/disk
end=$((16 * 2048))
after=$((first + 64))
dmsetup create disk << TABLE
0 $first linear $loop 0
$first 64 error
$after $((end - after)) linear $loop $after
TABLE
mount -r /dev/mapper/disk /srv/disk
"""


def test_file_that_cannot_be_read_is_a_warning(enrolled: Machine) -> None:
    vm = enrolled
    vm.expect_journal("^kernel: .*(I/O error|EXT4-fs|dm-)")
    vm.run(BAD_DISK)
    vm.expect_leftovers("^mapping disk$")
    vm.expect_leftovers("^loop device .*/var/disk.img")
    vm.expect_leftovers(" on /srv/disk ")
    assert vm.run(["cat", "/srv/disk/bad"], check=False).code == 1
    vm.run(f"""sed -i 's|^include = .*|include = ["/home/me", "/srv/disk"]|' {ENTRY}""")
    vm.stick("main").plug()
    sentence = '"/srv/disk/bad" could not be read: Input/output error'
    end = tells(vm, sentence, outcome="warnings")
    assert "home: finished with 1 warning: " in end["MESSAGE"]
    vm.expected_leftovers.clear()
    vm.run(["umount", "/srv/disk"])
    with opened(vm) as container:
        newest = container.versions()[-1]
        assert container.listing(newest) == listing(vm, "/home/me")
        assert vm.run(f"ls /mnt/tree/versions/{newest}/srv/disk").out.split() == [
            "good",
            "lost+found",
        ]
    vm.run("dmsetup remove --retry disk && losetup --detach-all")


def test_bad_entry_is_told_and_harms_no_other(enrolled: Machine) -> None:
    vm = enrolled
    bad = "/etc/cryptback/drives.d/broken.toml"
    vm.push(bad, 'uuid = "1A2B-3C4D"\n[backup]\ninclude = "/home/me"\n', 0o600)
    vm.push("/etc/cryptback/drives.d/worse.toml", "this is = = not TOML\n", 0o600)
    vm.stick("main").plug()
    told = 'backup.include: found "/home/me", wanted a list'
    vm.wait_journal(f"broken.toml: {told}")
    assert ended(vm)["CRYPTBACK_OUTCOME"] == "done"
    broken = drive(vm, "broken")
    assert broken["state"] == "bad"
    assert f"{bad}: {told}." in broken["problem"]
    assert "this is not TOML" in drive(vm, "worse")["problem"]
    shown = vm.run(["cryptback", "status"]).out
    assert told in shown
    service = vm.run(["systemctl", "show", "--property=StatusText", "--value", "cryptbackd"]).out
    assert "2 bad entries" in service
    refused = vm.run(["cryptback", "run", "broken"], check=False)
    assert refused.code == 1
    assert told in refused.err

    head = vm.run(f"grep ^uuid {ENTRY}").out
    vm.push(bad, f'{head}container = "other"\n[backup]\ninclude = ["/etc"]\n', 0o600)
    assert drive(vm, "broken")["state"] != "bad"


TOO_LARGE = """
import os

os.mkdir("/srv/large")
os.system("mount -t tmpfs tmpfs /srv/large")
with open("/srv/large/file", "w") as file:
    print("content", file=file)
os.setxattr("/srv/large/file", "user.large", bytes(20_000))
"""


def test_an_attribute_that_is_too_large_for_the_container_costs_no_version(
    enrolled: Machine,
) -> None:
    """Btrfs says that there is no room, and would with all versions gone."""
    vm = enrolled
    files = listing(vm, "/home/me")
    vm.run(["python3", "-I", "-c", TOO_LARGE])
    entry = "/etc/cryptback/drives.d/home.toml"
    vm.run(["sed", "-i", 's|include = \\[|&"/srv/large", |', entry])
    since = now(vm)
    vm.stick("main").plug()
    lost = "was copied without user.large: No space left on device."
    tells(vm, f'A file that is called "file" {lost}', outcome="warnings", since=since)
    since = now(vm)
    vm.run(["cryptback", "run", "home"], check=False, timeout=PATIENCE)
    tells(vm, f'"/srv/large/file" {lost}', outcome="warnings", since=since)
    names = first_is_whole(vm, files)
    assert len(names) == 3
    with opened(vm) as container:
        assert vm.run(["cat", f"{container.newest()}/srv/large/file"]).out == "content\n"
