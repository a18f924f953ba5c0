"""Files come back by `cryptback restore`: as they were, to whom they belong, and nothing else."""

from __future__ import annotations

import json

import pytest

from tests import by_hand
from tests.machine import Machine
from tests.machine.guest import Result, Running
from tests.vm import seat
from tests.vm.failing import KERNEL_MISSES_IT, locked_in_time, nothing_left
from tests.vm.failing import clock as clock_of
from tests.vm.runs import (
    MIB,
    PATIENCE,
    STOP,
    drive,
    ended,
    go_on,
    history,
    news,
    random_files,
)
from tests.vm.seat import at_the_seat
from tests.vm.test_by_hand import MORE_FILES

NASTY = (
    MORE_FILES
    + r"""
mkdir links
for n in $(seq 64); do ln tagged links/$n; done
mkdir "$(printf 'new\nline \377 \033[1m * ? [x] \\#012 -')"
python3 -I -c "import socket; socket.socket(socket.AF_UNIX).bind('socket')"
echo for ever > immutable
chattr +i immutable
chown -h 4321:1234 dangling pipe
setfacl -m d:g:daemon:rx,g:daemon:rwx private
"""
)
UNDO = """
chattr -i /home/me/immutable
"""


def restore(vm: Machine, *words: str, code: int = 0, timeout: float = 120) -> Result:
    """`cryptback restore home` as root."""
    done = vm.run(["cryptback", "restore", "home", *words], check=False, timeout=timeout)
    assert done.code == code, done.out + done.err
    return done


def backed_up(vm: Machine) -> None:
    """The stick is in, and was backed up to."""
    vm.stick("main").plug()
    assert ended(vm)["CRYPTBACK_OUTCOME"] == "done"


def test_root_gets_everything_back_as_it_was(enrolled: Machine) -> None:
    vm = enrolled
    vm.run(NASTY)
    backed_up(vm)
    before = by_hand.manifest(vm, "/home/me")
    restore(vm, "/home/me", "--to", "/srv", "--setuid")
    assert by_hand.difference(before, by_hand.manifest(vm, "/srv/me")) == ""

    vm.run(UNDO + "rm -r /home/me/* && chmod 777 /home/me && chown root /home/me")
    done = restore(vm, "/home/me", "--setuid")
    assert by_hand.difference(before, by_hand.manifest(vm, "/home/me")) == ""
    assert "of the version" in done.out
    assert "You may unplug home now." in done.out
    run = history(vm)[0]
    assert (run["job"], run["outcome"], run["safe"]) == ("restore", "done", True)


def test_a_user_gets_what_they_could_read_and_writes_what_they_could_write(
    enrolled: Machine,
) -> None:
    vm = enrolled
    vm.run(
        "cd /home/me && cp /bin/true setuid-program && chown me setuid-program"
        " && chmod 4755 setuid-program && echo root > roots && chmod 600 roots"
        " && echo for all > readable && mkdir -m 755 theirs && mkdir -m 777 /srv/open"
    )
    backed_up(vm)
    vm.run("rm -r /home/me/documents /home/me/private")
    command = ["cryptback", "restore", "home", "--json", "/home/me/documents", "/home/me/private"]
    done = at_the_seat(vm, *command)
    assert vm.run("cat /home/me/documents/letters/first.txt /home/me/private/diary").out == (
        "Dear reader\nsecret\n"
    )
    assert vm.run("stat -c '%U %a' /home/me/private /home/me/private/diary").out == (
        "me 700\nme 640\n"
    )
    events = [json.loads(line) for line in done.out.splitlines()]
    assert events[-1]["outcome"] == "done"
    assert events[-1]["safe"]

    told = at_the_seat(
        vm, "cryptback", "restore", "home", "/etc/shadow", "/etc/passwd", "/home/me/roots",
        "/home/me/readable", "/home/me/setuid-program", "--to", "/srv/open/mine", check=False,
    )  # fmt: skip
    assert told.code == 3, told.out + told.err
    assert "not restored: /etc/shadow: Permission denied" in told.out
    assert "not restored: /home/me/roots: Permission denied" in told.out
    shown = vm.run("cd /srv/open/mine && stat -c '%n %U:%G %a' *").out
    assert shown.splitlines() == [
        "passwd me:me 644",
        "readable me:me 644",
        "setuid-program me:me 755",
    ]
    assert "2 files of other users belong to you here." in told.out
    refused = at_the_seat(
        vm, "cryptback", "restore", "home", "/home/me/tagged", "--to", "/etc", check=False
    )
    assert refused.code == 1
    assert "not restored: /etc/tagged: Permission denied" in refused.out


def test_files_as_they_were_at_some_time(enrolled: Machine) -> None:
    """And as long as a backup goes on, a restore waits for its turn."""
    vm = enrolled
    vm.run("echo first > /home/me/tagged && touch -d '3 days ago' /home/me/tagged")
    backed_up(vm)
    first = history(vm)[0]["version"]
    vm.run("echo second > /home/me/tagged && touch -d '2 days ago' /home/me/tagged")
    random_files(vm, 2, 8)
    backup = vm.spawn(["cryptback", "run", "home", "--json"])
    news(vm, '"state": "running"').wait(timeout=PATIENCE)
    restore(vm, "/home/me/tagged", "--to", "/srv")
    assert backup.wait(timeout=PATIENCE).code == 0
    assert vm.run("cat /srv/tagged").out == "second\n"

    kept = restore(vm, "/home/me/tagged", "--at", first[:-1], code=3)
    assert "left as it is, being newer: /home/me/tagged" in kept.out
    assert vm.run("cat /home/me/tagged").out == "second\n"
    shown = restore(vm, "/home/me/tagged", "--at", first, "--overwrite", "--dry-run")
    assert "  replace  /home/me/tagged (6 B)" in shown.out
    assert vm.run("cat /home/me/tagged").out == "second\n"
    restore(vm, "/home/me/tagged", "--at", first, "--overwrite")
    assert vm.run("cat /home/me/tagged").out == "first\n"
    early = restore(vm, "/home/me/tagged", "--at", "last year", code=1)
    assert 'There is no version from "last year" or before' in early.err
    gone = restore(vm, "/home/me/nope", code=1)
    assert "not restored: /home/me/nope: it is not in that version" in gone.out
    assert "You may unplug home now." in gone.out


# In the middle of it

UNDER_WAY = r'"phase": "restoring", "done": [1-9]'
COMPLETE = """
cd /home/me/random && for f in *; do
    if cmp "$f" "/srv/random/$f" 2>/dev/null; then echo whole
    elif test -e "/srv/random/$f"; then echo half; fi
done | sort | uniq -c
"""


def stopped(vm: Machine, *command: str, number: int = 4, megabytes: int = 8) -> Running:
    """A restore of random files to /srv that is stopped in the middle."""
    random_files(vm, number, megabytes)
    backed_up(vm)
    vm.stick("main").throttle(4 * MIB)
    watcher = news(vm, UNDER_WAY, then=STOP)
    restoring = vm.spawn(
        command or ["cryptback", "restore", "home", "/home/me/random", "--to", "/srv"]
    )
    watcher.wait(timeout=PATIENCE, check=False)  # who told it may have gone by itself
    assert drive(vm)["phase"] == "restoring", "it was too fast: give it more to copy"
    return restoring


def none_is_half(vm: Machine, at_most: int) -> None:
    """Each file that has its name is complete, and they are not all there."""
    shown = dict(line.split()[::-1] for line in vm.run(COMPLETE).out.splitlines())
    assert "half" not in shown
    assert int(shown.get("whole", "0")) <= at_most


def test_ctrl_c_stops_it_and_the_drive_is_locked(enrolled: Machine) -> None:
    vm = enrolled
    restoring = stopped(vm)
    vm.run(["pkill", "-INT", "-f", "[b]in/cryptback restore"])
    go_on(vm)
    done = restoring.wait(timeout=PATIENCE, check=False)
    assert done.code == 130, done.out + done.err
    assert "home was cancelled: It was stopped when" in done.err
    assert "You may unplug home now." in done.out
    none_is_half(vm, 3)
    assert vm.run("ls -A /srv/random | grep '^[.]'", check=False).out == ""
    nothing_left(vm)


def test_pulled_in_mid_restore(enrolled: Machine) -> None:
    vm = enrolled
    restoring = stopped(vm)
    vm.expect_journal("^cryptbackd: home: failed: The drive was pulled out")
    vm.expect_journal(KERNEL_MISSES_IT)
    time = clock_of(vm)
    vm.stick("main").pull()
    locked_in_time(vm, time)
    vm.run("pkill -CONT rsync", check=False)
    done = restoring.wait(timeout=PATIENCE, check=False)
    assert done.code == 75, done.out + done.err
    assert "The drive was pulled out in the middle of the restore" in done.err
    none_is_half(vm, 3)


def test_a_target_without_room_is_told(enrolled: Machine) -> None:
    vm = enrolled
    random_files(vm, 4, 2)
    backed_up(vm)
    vm.run("mkdir -p /srv/small && mount -t tmpfs -o size=5M tmpfs /srv/small")
    vm.expect_journal("^cryptbackd: home: failed: The files could not be written")
    done = restore(vm, "/home/me/random", "--to", "/srv/small", code=1)
    assert "No space left on device" in done.err
    assert "You may unplug home now." in done.out
    assert history(vm)[0]["sentence"].startswith("The files could not be written")
    assert int(vm.run("ls -A /srv/small/random | wc -l").out) <= 2
    vm.run("umount /srv/small")


def test_the_reader_has_the_callers_rights_and_is_not_looked_into(enrolled: Machine) -> None:
    """Not even by the user whose rights it has: who holds its files would keep the drive open."""
    vm = enrolled
    vm.run("usermod -aG audio,video me && mkdir -m 777 /srv/open")
    random_files(vm, 4, 8)
    vm.run("chown -R me: /home/me/random")
    backed_up(vm)
    vm.stick("main").throttle(4 * MIB)
    watcher = news(vm, UNDER_WAY, then=STOP)
    command = ("cryptback", "restore", "home", "/home/me/random", "--to", "/srv/open")
    restoring = vm.spawn(seat.words(vm, *command))
    watcher.wait(timeout=PATIENCE, check=False)  # who told it may have gone by itself
    reader = vm.run(["pgrep", "-f", "^/rsync --server --sender"]).out.strip()
    status = dict(
        line.split(":", 1) for line in vm.run(["cat", f"/proc/{reader}/status"]).out.splitlines()
    )
    assert status["Uid"].split() == status["Gid"].split() == ["1000"] * 4
    groups = vm.run(["id", "-G", "me"]).out.split()
    assert sorted(map(int, status["Groups"].split())) == sorted(map(int, groups))
    assert {status[f"Cap{kind}"].strip() for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {
        "0" * 16
    }
    root = f"/proc/{reader}/root"
    links = {"bin", "sbin", "lib", "lib32", "lib64"}
    assert set(vm.run(["ls", "-A", root]).out.split()) - links == {"usr", "source", "rsync"}
    for what in ("root", "cwd", "fd", "mem", "maps"):
        tried = vm.run(["head", "-c1", f"/proc/{reader}/{what}"], check=False, user="me")
        assert "Permission denied" in tried.err, what
    fds = vm.run(f"ls /proc/{reader}/fd | wc -l && readlink /proc/{reader}/fd/*").out.split()
    assert all(what.startswith(("socket:", "pipe:", "/source/")) for what in fds[1:]), fds
    go_on(vm)
    assert restoring.wait(timeout=PATIENCE).code == 0
    assert vm.run("diff -r /home/me/random /srv/open/random").out == ""


def test_nobody_leads_roots_restore_elsewhere(enrolled: Machine) -> None:
    """Who owns the directory puts links in the way all the time, and none is followed."""
    vm = enrolled
    vm.run(
        "mkdir -p /home/me/many/deep /root/safe/deep && touch /root/safe/mine && cd /home/me/many"
        " && for n in $(seq 400); do echo $n > deep/$n; done && chown -R me: /home/me/many"
    )
    backed_up(vm)
    vm.run("rm -r /home/me/many/deep")
    race = (
        "cd /home/me/many && while test -e .; do rm -rf deep; ln -sT /root/safe/deep deep;"
        " sleep 0.01; mv -T deep link; mkdir deep; sleep 0.01; done 2>/dev/null"
    )
    vm.run(["chmod", "711", "/root", "/root/safe"])
    racing = vm.spawn(["/bin/sh", "-c", race], user="me")
    tried = [
        vm.run(
            ["cryptback", "restore", "home", "/home/me/many/deep", "--overwrite"],
            check=False,
            timeout=PATIENCE,
        )
        for _turn in range(3)
    ]
    assert not racing.done()
    assert any("400 files" in each.out for each in tried)
    assert all(each.code == 0 or "not restored" in each.out + each.err for each in tried)
    vm.run(["mv", "/home/me/many", "/home/me/over"])
    vm.run(["pkill", "-u", "me", "-x", "sh"], check=False)
    assert vm.run("find /root/safe -type f").out == "/root/safe/mine\n"
    assert vm.run("stat -c %U /root/safe /root/safe/deep").out == "root\nroot\n"
    # A link that stands there is not followed either: it is what is restored over.
    vm.run("mkdir -p /home/me/many && ln -sT /root/safe/deep /home/me/many/deep")
    restore(vm, "/home/me/many/deep", "--overwrite")
    assert vm.run("find /root/safe -type f").out == "/root/safe/mine\n"
    assert vm.run("test -d /home/me/many/deep && ! test -L /home/me/many/deep").code == 0


@pytest.mark.timeout(1500, func_only=True)
def test_a_directory_of_50_000_entries_comes_back(enrolled: Machine) -> None:
    vm = enrolled
    vm.run(
        "mkdir /home/me/wide && cd /home/me/wide && seq -f entry-%05.0f 50000 | xargs touch"
        " && chown -R me: .",
        timeout=300,
    )
    vm.stick("main").plug()
    assert ended(vm, timeout=900)["CRYPTBACK_OUTCOME"] == "done"
    before = by_hand.manifest(vm, "/home/me")
    restore(vm, "/home/me", "--to", "/srv", "--setuid", timeout=900)
    assert by_hand.difference(before, by_hand.manifest(vm, "/srv/me")) == ""


@pytest.mark.timeout(2000, func_only=True)
def test_a_sparse_file_of_10_gib_comes_back_sparse(enrolled: Machine) -> None:
    vm = enrolled
    vm.run("cd /home/me && echo begin > holes && truncate -s 10G holes && echo end >> holes")
    vm.stick("main").plug()
    assert ended(vm, timeout=900)["CRYPTBACK_OUTCOME"] == "done"
    restore(vm, "/home/me/holes", "--to", "/srv", timeout=900)
    shown = "stat -c '%s %b' holes && head -c 5 holes && tail -c 4 holes"
    assert vm.run(f"cd /srv && {shown}").out == vm.run(f"cd /home/me && {shown}").out
    assert int(vm.run("stat -c %b /srv/holes").out) <= 64


@pytest.mark.timeout(2000, func_only=True)
def test_a_file_that_fat32_does_not_take_is_named_and_the_others_come_back(
    enrolled: Machine,
) -> None:
    vm = enrolled
    vm.run("cd /home/me && mkdir mixed && cd mixed && echo a > a && echo z > z && truncate -s 4G m")
    vm.stick("main").plug()
    assert ended(vm, timeout=900)["CRYPTBACK_OUTCOME"] == "done"
    vm.run(
        "truncate -s 64M /srv/fat && mkfs.vfat -F 32 /srv/fat && mkdir /srv/small"
        " && mount -o loop /srv/fat /srv/small"
    )
    # rsync can't give an owner to what lies there; what is asked is what comes back.
    done = vm.run(
        ["cryptback", "restore", "home", "/home/me/mixed", "--to", "/srv/small"], check=False
    )
    assert "not restored: /srv/small/mixed/m: on FAT32 no file has 4 GiB" in done.out
    assert vm.run("cd /srv/small/mixed && cat a z && ls").out == "a\nz\na\nz\n"
    vm.run("umount /srv/small")


def test_all_that_could_not_be_restored_is_counted(enrolled: Machine) -> None:
    vm = enrolled
    vm.run("mkdir -m 755 /home/me/roots && cd /home/me/roots && touch $(seq 500) && chmod 600 *")
    vm.run("cd /home/me/roots && touch readable && chmod 644 readable && mkdir -m 777 /srv/open")
    backed_up(vm)
    done = at_the_seat(
        vm, "cryptback", "restore", "home", "/home/me/roots", "--to", "/srv/open", check=False
    )
    assert done.code == 3, done.out + done.err
    assert "… and 480 more" in done.out
    assert "500 files could not be restored." in history(vm)[0]["warnings"]
