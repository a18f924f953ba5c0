"""What is in a version is what was asked for: no more, no less, and nothing lost by mistake."""

from __future__ import annotations

import json

import pytest

from tests.machine import Machine
from tests.vm.container import TREE, opened

CURRENT = f"{TREE}/current"


def look_inside(vm: Machine, script: str) -> str:
    """What *script* prints with the container opened by hand by hand at `TREE`."""
    with opened(vm):
        return vm.run(script).out


def back_up(vm: Machine, *options: str, code: int = 0) -> str:
    ended = vm.run(["cryptback", "run", "home", *options], check=False, timeout=120)
    assert ended.code == code, ended.out + ended.err
    return ended.out + ended.err


def plugged(vm: Machine) -> None:
    """Plug the stick in and let the backup that this means come to its end."""
    vm.stick("main").plug()
    vm.wait_journal("^home: finished", CRYPTBACK_DRIVE="home")


def entry(vm: Machine, text: str) -> None:
    head = vm.run("grep -E '^(uuid|container)' /etc/cryptback/drives.d/home.toml").out
    vm.push("/etc/cryptback/drives.d/home.toml", head + text, 0o600)


def test_deletions_exclusions_and_odd_patterns(enrolled: Machine) -> None:
    """What was deleted, newly excluded or no longer included is gone from the next version.

    A pattern is a pattern: nothing in it is filter syntax of its own.
    """
    vm = enrolled
    plugged(vm)
    vm.run(
        "cd /home/me && rm -r photos && mkdir -p 'a[b]*?c' keep && echo 1 > 'a[b]*?c/x'"
        " && echo 1 > keep/film.iso && echo 1 > keep/film.txt && echo 1 > keep/-leading"
    )
    back_up(vm)
    shown = look_inside(vm, f"cd {CURRENT} && ls -A . home/me home/me/keep && ls -d etc")
    assert "photos" not in shown
    assert "film.iso" in shown
    assert "a[b]*?c" in shown

    entry(
        vm,
        '[backup]\ninclude = ["/home/me"]\n'
        'exclude = ["*.iso", "!", "merge /etc/passwd", "/home/me/private", ". /etc/shadow"]\n',
    )
    back_up(vm)
    shown = look_inside(
        vm, f"cd {CURRENT} && find . -maxdepth 4 -printf '%P\\n'; ls /mnt/tree/versions"
    )
    names = shown.splitlines()
    assert "etc" not in names
    assert "home/me/keep/film.iso" not in names
    assert "home/me/keep/film.txt" in names
    assert "home/me/keep/-leading" in names
    assert "home/me/private" not in names
    assert len([name for name in names if name.endswith("Z")]) == 4


def test_parents_look_like_the_real_ones(enrolled: Machine) -> None:
    vm = enrolled
    vm.run(
        "mkdir -p /srv/team/private/files && echo 1 > /srv/team/private/files/a"
        " && chown me:me /srv/team/private && chmod 2750 /srv/team/private"
        " && touch -d '2011-01-01 01:01:01.5' /srv/team/private /srv/team"
    )
    entry(vm, '[backup]\ninclude = ["/srv/team/private/files"]\n')
    vm.stick("main").plug()
    vm.wait_journal("^home: finished", CRYPTBACK_DRIVE="home")
    form = "--format='%n %a %U:%G %.9Y'"
    real = vm.run(f"cd / && stat {form} srv srv/team srv/team/private srv/team/private/files").out
    copy = look_inside(
        vm, f"cd {CURRENT} && stat {form} srv srv/team srv/team/private srv/team/private/files"
    )
    assert copy == real


def test_missing_or_suddenly_empty_source_keeps_its_last_state(enrolled: Machine) -> None:
    vm = enrolled
    vm.run("mkdir -p /srv/a /srv/b && echo 1 > /srv/a/one && echo 2 > /srv/b/two")
    entry(vm, '[backup]\ninclude = ["/home/me", "/srv/a", "/srv/b"]\n')
    plugged(vm)
    vm.run("rm -r /srv/a && rm /srv/b/two && echo new > /home/me/new")
    told = back_up(vm, code=3)
    assert 'The source "/srv/a" is missing.' in told
    assert 'The source "/srv/b" is empty, and was not before.' in told
    kept = f"cat {CURRENT}/srv/a/one {CURRENT}/srv/b/two {CURRENT}/home/me/new"
    assert look_inside(vm, kept) == "1\n2\nnew\n"

    back_up(vm, "--accept-changes", code=3)
    shown = look_inside(vm, f"find {CURRENT}/srv -type f")
    assert shown.split() == [f"{CURRENT}/srv/a/one"]


@pytest.mark.slow
def test_source_on_another_filesystem_keeps_its_last_state(enrolled: Machine) -> None:
    """A mount point whose disk isn't mounted is not an empty directory to be copied."""
    vm = enrolled
    vm.run(
        "truncate -s 16M /var/disk.img && mkfs.ext4 -q /var/disk.img && mkdir -p /srv/disk"
        " && echo below > /srv/disk/below && mount -o loop /var/disk.img /srv/disk"
        " && echo precious > /srv/disk/precious"
    )
    entry(vm, '[backup]\ninclude = ["/home/me", "/srv/disk"]\n')
    plugged(vm)
    vm.run("umount /srv/disk")
    told = back_up(vm, code=3)
    assert 'The source "/srv/disk" is on another filesystem than before.' in told
    shown = look_inside(vm, f"cd {CURRENT}/srv/disk && cat precious && ls")
    assert shown.split() == ["precious", "lost+found", "precious"]


@pytest.mark.slow
def test_source_in_another_one_keeps_its_last_state_without_its_disk(enrolled: Machine) -> None:
    """The one that it lies in has an empty directory there, or nothing at all."""
    vm = enrolled
    vm.run("echo 1 > /srv/else && mkdir /srv/disk && mount -t tmpfs tmpfs /srv/disk")
    vm.run("echo precious > /srv/disk/it")
    entry(vm, '[backup]\ninclude = ["/srv", "/srv/disk"]\n')
    plugged(vm)
    vm.run("umount /srv/disk")
    assert 'The source "/srv/disk" is on another filesystem than before.' in back_up(vm, code=3)
    vm.run("rmdir /srv/disk")
    assert 'The source "/srv/disk" is missing.' in back_up(vm, code=3)
    assert look_inside(vm, f"cat {CURRENT}/srv/disk/it") == "precious\n"

    vm.run("mkdir /srv/disk && echo 1 > /srv/disk/below")
    back_up(vm, "--accept-changes")
    assert look_inside(vm, f"ls {CURRENT}/srv/disk") == "below\n"


def test_mount_points_below_a_source_are_left_out_and_named_once(enrolled: Machine) -> None:
    vm = enrolled
    vm.run(
        "mkdir -p /home/me/mnt && mount -t tmpfs tmpfs /home/me/mnt && echo 1 > /home/me/mnt/inside"
    )
    vm.stick("main").plug()
    ended = vm.wait_journal("^home: finished", CRYPTBACK_DRIVE="home")
    assert ended["CRYPTBACK_OUTCOME"] == "warnings"
    assert '"/home/me/mnt" is another filesystem and was left out' in ended["MESSAGE"]
    assert look_inside(vm, f"ls -A {CURRENT}/home/me/mnt") == ""
    back_up(vm)
    head = vm.run("cat /etc/cryptback/drives.d/home.toml").out
    vm.push("/etc/cryptback/drives.d/home.toml", head + "cross_filesystems = true\n", 0o600)
    back_up(vm)
    assert look_inside(vm, f"ls -A {CURRENT}/home/me/mnt") == "inside\n"
    vm.run("umount /home/me/mnt")


def test_another_subvolume_below_a_source_is_left_out_and_named(enrolled: Machine) -> None:
    """All that is mounted of one btrfs shows one device number."""
    vm = enrolled
    vm.run(
        "truncate -s 256M /var/disk.img && mkfs.btrfs -q /var/disk.img && mkdir /srv/disk"
        " && mount -o loop /var/disk.img /srv/disk && cd /srv/disk"
        " && btrfs -q subvolume create one && btrfs -q subvolume create other"
        " && mkdir one/other && echo 1 > one/file && echo 1 > other/inside"
    )
    vm.run(
        "loop=$(findmnt -nvo SOURCE /srv/disk) && mkdir -p /srv/one"
        " && mount -o subvol=one $loop /srv/one && mount -o subvol=other $loop /srv/one/other"
        " && umount /srv/disk"
    )
    entry(vm, '[backup]\ninclude = ["/home/me", "/srv/one"]\n')
    vm.stick("main").plug()
    ended = vm.wait_journal("^home: finished", CRYPTBACK_DRIVE="home")
    assert '"/srv/one/other" is another filesystem and was left out' in ended["MESSAGE"]
    assert look_inside(vm, f"cd {CURRENT}/srv/one && find . | sort").split() == [
        ".",
        "./file",
        "./other",
    ]
    entry(vm, '[backup]\ninclude = ["/home/me", "/srv/one", "/srv/one/other"]\n')
    back_up(vm)
    assert look_inside(vm, f"cat {CURRENT}/srv/one/other/inside") == "1\n"
    vm.run("umount /srv/one/other /srv/one")


def test_full_finds_an_edit_that_kept_size_and_time(enrolled: Machine) -> None:
    vm = enrolled
    vm.run("echo AAAA > /home/me/sly && touch -d '2020-02-02' /home/me/sly")
    plugged(vm)
    vm.run("echo BBBB > /home/me/sly && touch -d '2020-02-02' /home/me/sly")
    back_up(vm, "--full")
    assert look_inside(vm, f"cat {CURRENT}/home/me/sly") == "BBBB\n"


def test_versions_stay_as_they_were(enrolled: Machine) -> None:
    """A version is read-only, complete, and not changed by the runs after it."""
    vm = enrolled
    plugged(vm)
    vm.run("echo changed > /home/me/tagged && chmod 600 /home/me/tagged")
    back_up(vm)
    shown = look_inside(
        vm,
        "cd /mnt/tree/versions && for v in *Z; do cat $v/home/me/tagged; btrfs property get $v ro;"
        " done; cat *.json | grep -E '^ \"sequence\"'",
    )
    assert shown.split("\n")[:6] == ["tagged", "ro=true"] * 2 + ["changed", "ro=true"]
    assert [
        json.loads(f"[{line.split(':')[1].strip(' ,')}]")[0] for line in shown.splitlines()[6:]
    ] == [
        1,
        2,
        3,
    ]
