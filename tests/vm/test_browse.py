"""The versions, looked at as an ordinary user does."""

from __future__ import annotations

import re

import pytest

from tests.machine import Machine
from tests.machine.enroll import credential, init
from tests.machine.guest import Result, Running
from tests.vm.failing import KERNEL_MISSES_IT, NO_HOLES_ON_FAT, kill, nothing_left, tells
from tests.vm.runs import MIB, drive, ended, history, now, settled
from tests.vm.seat import sit_down
from tests.vm.session import as_user

ENTRY = "/etc/cryptback/drives.d/home.toml"
ROOTS = "/run/cryptback-browse/home"
PLACE = "/run/user/1000/cryptback/home"
NASTY = """
cd /home/me
ln -s /etc/shadow to-shadow
ln -s ../../../../../../../../etc/shadow up-to-shadow
mknod disk b 8 0 && chown me disk && chmod 666 disk
echo "of root alone" > roots && chmod 600 roots
"""
IN_A_SESSION = ["systemd-run", "--user", "--quiet", "--wait", "--pipe", "--collect"]
IN_A_SESSION += ["--property=KillMode=process", "--"]
HOLD_OPEN = """
exec 3< "$1" && touch /tmp/opened || exit
until [ -e /tmp/read-on ]; do sleep 0.1; done
head -c 1000 <&3 | wc -c
"""
GONE = f"until ! grep -q {PLACE} /proc/mounts && [ ! -e {PLACE} ]; do sleep 0.1; done"


def at_home(vm: Machine) -> None:
    """The user `me` sits there, and the stick is in and was backed up to."""
    sit_down(vm)
    vm.stick("main").plug()
    assert ended(vm)["CRYPTBACK_OUTCOME"] == "done"


def me(vm: Machine, *command: str, check: bool = True) -> Result:
    """A command of the user `me`, begun as a desktop begins it."""
    told = as_user(vm, [*IN_A_SESSION, *command], check=check)
    assert isinstance(told, Result)
    return told


def browse(vm: Machine, *options: str) -> str:
    """Open the versions; the path."""
    return me(vm, "cryptback", "browse", "home", *options).out.strip()


def opened(vm: Machine, path: str) -> Running:
    """Somebody who has a file of the newest version open."""
    vm.run(["rm", "-f", "/tmp/opened", "/tmp/read-on"])
    reader = vm.spawn(["sh", "-c", HOLD_OPEN, "sh", path], user="me")
    vm.run("timeout 20 sh -c 'until [ -e /tmp/opened ]; do sleep 0.1; done'", timeout=30)
    return reader


def fails(vm: Machine, reader: Running) -> None:
    """What they read then is an error, and not something else."""
    vm.run(["touch", "/tmp/read-on"])
    told = reader.wait()
    assert told.out == "0\n"
    assert re.search("not connected|connection abort", told.err), told.err


def gone(vm: Machine) -> None:
    """The mount is taken away."""
    vm.run(["timeout", "20", "sh", "-c", GONE])


def test_the_versions_are_open_until_that_is_closed(enrolled: Machine) -> None:
    vm = enrolled
    vm.run(f"printf '[when]\\nat_most = \"1d\"\\n' >> {ENTRY}")
    vm.stick("main").plug()
    assert ended(vm)["CRYPTBACK_OUTCOME"] == "skipped"
    path = vm.run(["cryptback", "browse", "home", "--at", "newest"]).out.strip()
    vm.run(["diff", "-r", "--no-dereference", f"{path}/home/me/photos", "/home/me/photos"])
    assert vm.run(["touch", f"{path}/new"], check=False).code == 1
    assert vm.run(["ls", path], user="me", check=False).code == 2
    assert "open for browsing by root" in vm.run(["cryptback", "status"]).out
    assert "You may unplug home now." in vm.run(["cryptback", "close", "home"]).out
    nothing_left(vm)
    vm.run(["timeout", "10", "sh", "-c", f"while [ -e {ROOTS} ]; do sleep 0.1; done"])


def test_a_user_reads_in_the_versions_what_they_may_read_and_nobody_else_does(
    enrolled: Machine,
) -> None:
    vm = enrolled
    vm.run(NASTY)
    at_home(vm)
    path = browse(vm, "--at", "newest")
    assert path.startswith(f"{PLACE}/20")
    assert drive(vm)["shown_to"] == "me"
    assert "open for browsing by me" in vm.run(["cryptback", "status"]).out
    script = f"""
    cd {path}/home/me || exit
    cmp photos/one.jpg /home/me/photos/one.jpg && cat private/diary
    getfattr --only-values -n user.comment tagged; echo
    stat -c '%F %a %U' photos/one.jpg pipe disk roots
    readlink to-shadow
    for file in to-shadow up-to-shadow disk roots {path}/etc/shadow; do
        cat $file && echo BROKEN
    done
    touch new; rm -f tagged; echo more >> tagged
    """
    shown = vm.run(["bash", "-c", script], user="me", check=False)
    assert shown.out.splitlines() == [
        "secret", "an attribute",
        "regular file 644 me", "fifo 644 me", "block special file 666 me", "regular file 600 root",
        "/etc/shadow",
    ]  # fmt: skip
    assert shown.err.count("Permission denied") == 5
    assert shown.err.count("Read-only file system") == 3
    for user in ("daemon", "root"):
        assert "Permission denied" in vm.run(["ls", path], user=user, check=False).err
    assert "nosuid,nodev,noexec" in vm.run(["grep", PLACE, "/proc/mounts"]).out
    closed = me(vm, "cryptback", "close")
    assert "You may unplug home now." in closed.out
    gone(vm)
    nothing_left(vm)
    assert settled(vm)["safe"]


def test_files_that_are_open_keep_nothing_from_being_locked(enrolled: Machine) -> None:
    vm = enrolled
    at_home(vm)
    for end in ("close", "kill", "eject"):
        reader = opened(vm, f"{browse(vm, '--at', 'today')}/home/me/photos/two.jpg")
        since = now(vm)
        if end == "kill":
            daemon = vm.run(["systemctl", "show", "-P", "MainPID", "cryptbackd"]).out.strip()
            stub = vm.run(["pgrep", "-P", daemon]).out.strip()
            kill(vm, int(vm.run(["pgrep", "-P", stub]).out))
            tells(vm, "The worker was killed by SIGKILL while browsing", since=since)
            vm.expect_journal("home: failed: The worker was killed")
        else:
            assert "You may unplug home now." in me(vm, "cryptback", end, "home").out
        nothing_left(vm)
        fails(vm, reader)
        gone(vm)
    assert [run["job"] for run in history(vm)][:3] == ["browse"] * 3
    assert settled(vm)["safe"]


def test_it_ends_with_the_login_and_with_the_drive(enrolled: Machine) -> None:
    vm = enrolled
    at_home(vm)
    reader = opened(vm, f"{browse(vm, '--at', 'newest')}/home/me/photos/two.jpg")
    since = now(vm)
    vm.expect_journal(KERNEL_MISSES_IT)
    vm.stick("main").pull()
    tells(vm, "pulled out while its versions were open for browsing", since=since)
    fails(vm, reader)
    gone(vm)
    # Nothing on it was written meanwhile.
    since = now(vm)
    vm.stick("main").plug()
    assert ended(vm, since=since)["CRYPTBACK_OUTCOME"] == "done"
    browse(vm)
    since = now(vm)
    vm.run(["systemctl", "stop", "seat"])
    end = ended(vm, since=since)
    assert end["MESSAGE"] == "home: finished: Its versions were open for browsing by me."
    nothing_left(vm)
    gone(vm)


def test_others_wait_for_it_and_the_end_of_the_service_is_its_end(enrolled: Machine) -> None:
    vm = enrolled
    vm.stick("main").plug()
    ended(vm)
    assert vm.run(["cryptback", "browse", "home"]).out == f"{ROOTS}\n"
    assert vm.run(["cryptback", "browse", "home"]).out == f"{ROOTS}\n"  # it is there
    newest = vm.run(["cryptback", "browse", "home", "--at", "newest"]).out.strip()
    vm.run(["cmp", f"{newest}/home/me/photos/one.jpg", "/home/me/photos/one.jpg"])
    vm.run(["cmp", f"{newest}/etc/shadow", "/etc/shadow"])
    busy = vm.run(["cryptback", "run", "home"], check=False)
    assert busy.code == 11
    assert "cryptback close home" in busy.err
    for when in ("2001-01-01", "soon"):
        assert vm.run(["cryptback", "browse", "home", "--at", when], check=False).code == 1
    assert drive(vm)["shown_to"] == "root"  # it was open before
    vm.run(["systemctl", "stop", "cryptbackd"])
    nothing_left(vm)
    vm.run(f"until [ ! -e {ROOTS} ]; do sleep 0.1; done")
    vm.run(["systemctl", "start", "cryptbackd"])
    wrong = vm.run(["cryptback", "browse", "home", "--at", "soon"], check=False)
    assert wrong.code == 1
    assert "neither a time nor a version" in wrong.err
    assert settled(vm)["safe"]
    # Whoever was to take the mount away is killed.
    vm.run(["cryptback", "browse", "home"])
    since = now(vm)
    vm.run(["pkill", "-KILL", "-f", "cryptback browse"])
    assert ended(vm, since=since)["CRYPTBACK_OUTCOME"] == "done"
    assert "not connected" in vm.run(["ls", ROOTS], check=False).err
    assert "Nothing is open for browsing." in vm.run(["cryptback", "close"]).out
    vm.run(["test", "!", "-e", ROOTS])


@pytest.mark.parametrize(
    ("outside", "inside"), [("exfat", "ext4"), ("vfat", "xfs"), ("ext4", "ext4"), ("luks", "btrfs")]
)
def test_nothing_is_written_where_versions_are_looked_at(
    vm: Machine, outside: str, inside: str
) -> None:
    """Whatever the filesystems are, which write something at each mount if they may."""
    vm.run("echo hello > /home/me/first && chown me: /home/me/first")
    credential(vm, "home")
    size = 400 * MIB if inside == "xfs" else 192 * MIB
    stick = vm.stick("main", size=size + 64 * MIB, fs=None if outside == "luks" else outside,
                     partitioned=True)  # fmt: skip
    stick.plug()
    vm.expect_journal(NO_HOLES_ON_FAT)
    chosen = ["--format", "luks"] if outside == "luks" else ["--size", str(size)]
    init(vm, stick.partition, "home", *chosen, "--filesystem", inside)
    before = vm.run(["sha256sum", stick.partition], timeout=120).out
    place = vm.run(["cryptback", "browse", "home"]).out.strip()
    assert vm.run(f"cat {place}/*/home/me/first").out == "hello\n"
    told = vm.run(["cryptback", "close", "home"]).out
    assert "You may unplug home now." in told
    nothing_left(vm)
    assert vm.run(["sha256sum", stick.partition], timeout=120).out == before
