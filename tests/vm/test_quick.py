"""A quick run finds whatever has changed, and touches nothing else on the drive."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import by_hand
from tests.machine import Machine
from tests.vm.container import TREE, opened
from tests.vm.runs import ended

GUEST = Path(__file__).parents[1] / "machine" / "guest"
BEFORE = """
cd /home/me && echo AAAA > sly && touch -d '2020-02-02' sly && echo 1 > one && ln one two
"""
CHANGES = """
cd /home/me
echo more >> documents/letters/first.txt
echo BBBB > sly && touch -d '2020-02-02' sly
cp -p one x && mv x one
mkdir new && echo 1 > new/file && ln new/file new/another
mv photos pictures
rm -r private && echo 'a file now' > private
setfacl -m u:daemon:rw tagged
chmod 0600 documents/old
"""


def ways(vm: Machine) -> list[str]:
    """Which way each run went, by the journal, in order."""
    told = [entry["MESSAGE"] for entry in vm.journal(CRYPTBACK_DRIVE="home")]
    return [line for line in told if line.startswith("home: comparing ")]


def run(vm: Machine, *options: str, code: int = 0) -> str:
    done = vm.run(["cryptback", "run", "home", *options], check=False, timeout=120)
    assert done.code == code, done.out + done.err
    return done.out


def difference(vm: Machine) -> str:
    """How /home/me and its newest version differ."""
    ours = by_hand.manifest(vm, "/home/me")
    with opened(vm) as container:
        return by_hand.difference(ours, by_hand.manifest(vm, f"{container.newest()}/home/me"))


def test_a_run_is_quick_and_finds_what_has_changed(enrolled: Machine) -> None:
    vm = enrolled
    vm.run(BEFORE)
    vm.stick("main").plug()
    assert ended(vm)["CRYPTBACK_OUTCOME"] == "done"
    vm.run(CHANGES)
    run(vm)
    quick = "home: comparing with what this computer remembers of the drive: "
    assert ways(vm)[-1].startswith(quick)
    assert difference(vm) == ""


def test_in_doubt_a_run_compares_in_full(enrolled: Machine) -> None:
    vm = enrolled
    vm.stick("main").plug()
    ended(vm)
    run(vm, "--full")
    vm.run("printf '[verify]\\nfull_every = 3\\n' >> /etc/cryptback/drives.d/home.toml")
    run(vm)
    run(vm)
    run(vm)
    run(vm)
    with opened(vm):
        vm.run(f"mount -o remount,rw {TREE} && touch {TREE}/current/home/me/by-hand")
    run(vm)
    vm.run("cd /home/me && mkdir many && cd many && seq 6000 | xargs touch")
    run(vm)
    told = [line.removeprefix("home: comparing ").partition(":")[0] for line in ways(vm)]
    assert told[1:] == [
        "in full, since it was asked for.",
        "in full, since the entry was changed.",
        "with what this computer remembers of the drive",
        "with what this computer remembers of the drive",
        "in full, since one in 3 runs is.",
        "in full, since the last run was interrupted, or something else has written to the drive.",
        "in full, since much has changed.",
    ]
    assert difference(vm) == ""


ENTRY = "/etc/cryptback/drives.d/home.toml"
DEEP = "/home/me/" + "/".join(["d"] * 1000)


def test_a_quick_run_goes_as_deep_as_rsync_does(enrolled: Machine) -> None:
    """Deeper than Python recurses: a new file is asked about, and the whole is removed."""
    vm = enrolled
    vm.run(f"sed -i '/^include/a exclude = [\"*.tmp\"]' {ENTRY} && mkdir -p {DEEP}")
    vm.stick("main").plug()
    assert ended(vm)["CRYPTBACK_OUTCOME"] == "done"
    vm.run(f"touch {DEEP}/new {DEEP}/new.tmp")
    run(vm)
    with opened(vm) as container:
        found = vm.run(
            f"find {container.newest()}/home/me -name 'new*' -printf '%f\\n'"
        ).out.split()
    assert found == ["new"]
    vm.run("rm -r /home/me/d")
    run(vm)
    quick = "home: comparing with what this computer remembers of the drive: "
    assert all(way.startswith(quick) for way in ways(vm)[-2:])
    assert difference(vm) == ""


UNREADABLE = """
mkdir /srv/gone /srv/shared && echo 1 > /srv/gone/file
cd /srv/shared && echo 1 > open && echo 1 > closed && chmod 0600 closed
echo /srv/shared > /home/me/list && chown me: /home/me/list
"""


def test_a_run_is_quick_although_something_can_never_be_read(enrolled: Machine) -> None:
    """A file that its reader may not read, and a source that is missing."""
    vm = enrolled
    vm.run(UNREADABLE)
    head = vm.run(f"grep -E '^(uuid|container)' {ENTRY}").out
    sources = 'include = ["/home/me", "/srv/gone"]\ninclude_from = ["/home/me/list"]\n'
    vm.push(ENTRY, f"{head}[backup]\n{sources}", 0o600)
    vm.stick("main").plug()
    assert ended(vm)["CRYPTBACK_OUTCOME"] == "warnings"
    vm.run("rm -r /srv/gone && echo 22 > /srv/shared/open && rm /home/me/documents/old")
    told = run(vm, code=3)
    assert '"/srv/shared/closed" could not be read: Permission denied.' in told
    assert 'The source "/srv/gone" is missing. Its last state was kept.' in told
    vm.run("chmod 0644 /srv/shared/closed")
    told = run(vm, code=3)
    assert "could not be read" not in told
    quick = "home: comparing with what this computer remembers of the drive: "
    assert all(way.startswith(quick) for way in ways(vm)[-2:])
    assert difference(vm) == ""
    with opened(vm) as container:
        shown = vm.run(f"cd {container.newest()}/srv && cat gone/file shared/open shared/closed")
    assert shown.out.split() == ["1", "22", "1"]


@pytest.mark.timeout(600, func_only=True)
@pytest.mark.parametrize("kind", ["btrfs", "ext4", "xfs"])
def test_quick_runs_find_random_changes(enrolled: Machine, kind: str) -> None:
    """All kinds of changes to random trees, over and over; see random_trees.py."""
    vm = enrolled
    vm.push("/root/random_trees.py", (GUEST / "random_trees.py").read_bytes())
    vm.push("/root/look.py", (GUEST / "manifest.py").read_bytes())
    vm.run(
        f"mkdir -p /run/source /run/copies && truncate -s 600M /var/copies.img"
        f" && mkfs.{kind} -q /var/copies.img && mount -o loop,noatime /var/copies.img /run/copies"
    )
    vm.run("mkdir /run/copies/c /run/source/s")
    script = "python3 /root/random_trees.py /root/look.py /run/copies/c /run/source/s"
    how = "btrfs" if kind == "btrfs" else "links"
    done = vm.run(f"{script} {how} 1 5 25", check=False, timeout=250)
    assert done.code == 0, done.out + done.err
    # Last, as a user that can't read everything.
    vm.run("mkdir -p /run/copies/u /run/theirs/s")
    script = "python3 /root/random_trees.py /root/look.py /run/copies/u /run/theirs/s"
    done = vm.run(f"{script} {how} 2 4 25 1000", check=False, timeout=250)
    assert done.code == 0, done.out + done.err
    vm.run("umount /run/theirs/reader /run/copies && rm /var/copies.img")


def test_large_file_costs_what_has_changed_in_it(enrolled: Machine) -> None:
    """On btrfs: a disk image of which a little changes, in a quick run and in a full one."""
    vm = enrolled
    image = "/home/me/disk.img"
    vm.run(f"head -c 32M /dev/urandom > {image} && truncate -s 40M {image}")
    vm.stick("main").plug()
    ended(vm)
    write = f"dd if=/dev/urandom of={image} bs=1M count=1 conv=notrunc status=none seek="
    for number, options in ((10, ()), (20, ("--full",))):
        vm.run(f"{write}{number}")
        run(vm, *options)
    assert difference(vm) == ""
    with opened(vm) as container:
        paths = [f"{TREE}/versions/{name}{image}" for name in container.versions()[1:]]
        used = vm.run(f"btrfs filesystem du --raw -s {' '.join(paths)}").out.splitlines()
    exclusive = [int(line.split()[1]) for line in used[1:]]
    assert len(exclusive) == 3
    assert all(size < 4 << 20 for size in exclusive), exclusive
