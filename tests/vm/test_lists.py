"""A user's own list: what it names is read with that user's rights, and read anew each time."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests import hostile
from tests.machine import Machine
from tests.vm.container import TREE, opened
from tests.vm.runs import MIB, PATIENCE, STOP, copied, drive, ended, news, now, random_files

ENTRY = "/etc/cryptback/drives.d/home.toml"
LIST = "/home/me/.config/backup_list.txt"
PREPARE = """
set -e
cd /home/me
mkdir -p .config letters pictures inner/deep
echo dear > letters/first
echo root > letters/roots && chmod 600 letters/roots
echo deep > inner/deep/file
echo hers > inner/file
install -m 600 /dev/null /srv/secret && echo quicksilver > /srv/secret
mkdir -m 700 /srv/closed && echo quicksilver > /srv/closed/file
ln -s /srv/secret secret
ln -s letters by-link
chown -Rh me: . && chown root letters/roots
"""


def entry(vm: Machine, include: str) -> None:
    """Have the drive's entry name these sources, and the list."""
    head = vm.run(f"grep -E '^(uuid|container)' {ENTRY}").out
    vm.push(ENTRY, f'{head}[backup]\ninclude = [{include}]\ninclude_from = ["{LIST}"]\n', 0o600)


def write(vm: Machine, *lines: str) -> None:
    """Write the list as its user."""
    text = "".join(f"{line}\n" for line in lines)
    vm.run(["runuser", "-u", "me", "--", "tee", LIST], input=text.encode())


def warnings(vm: Machine, since: str) -> str:
    return "\n".join(str(each["MESSAGE"]) for each in vm.journal(since=since))


def back_up(vm: Machine, *options: str) -> str:
    """Back up; what the journal says of it."""
    since = now(vm)
    vm.run(["cryptback", "run", "home", *options], check=False, timeout=PATIENCE)
    ended(vm, since=since)
    return warnings(vm, since)


def inside(vm: Machine, script: str) -> list[str]:
    """The lines that a script prints in the newest version."""
    with opened(vm) as container:
        return vm.run(f"cd {container.newest()} && {script}").out.splitlines()


def test_a_list_gets_nobody_a_file_that_they_could_not_read(enrolled: Machine) -> None:
    vm = enrolled
    vm.run(PREPARE)
    entry(vm, '"/etc/hostname", "/home/me/inner/deep"')
    write(
        vm,
        "# what I care for",
        "~/letters",
        "/srv/secret",
        "/srv/closed",
        "/srv/closed/file",
        "~/secret",
        "~/inner",
        "~/by-link",
        "pictures",
    )
    since = now(vm)
    vm.stick("main").plug()
    end = ended(vm, since=since)
    assert end["CRYPTBACK_OUTCOME"] == "warnings"
    told = warnings(vm, since)
    assert 'Line 9 of the list "/home/me/.config/backup_list.txt" is left out: "pictures"' in told
    assert '"/home/me/letters/roots" could not be read: Permission denied.' in told
    files = inside(vm, "find . ! -type d | sort")
    assert files == [
        "./etc/hostname",
        "./home/me/by-link/first",
        "./home/me/inner/deep/file",
        "./home/me/inner/file",
        "./home/me/letters/first",
    ]
    with opened(vm):
        assert vm.run(["grep", "-rF", "quicksilver", f"{TREE}/versions"], check=False).code == 1

    # Changed, it counts at the next run, without a restart; what root includes stays.
    write(vm, "~/pictures")
    vm.run(["runuser", "-u", "me", "--", "sh", "-c", "echo sun > ~me/pictures/one"])
    back_up(vm)
    expected = ["./etc/hostname", "./home/me/inner/deep/file", "./home/me/pictures/one"]
    assert inside(vm, "find . ! -type d | sort") == expected
    assert inside(vm, "stat -c '%U %a' home/me home/me/pictures") == [
        *vm.run("stat -c '%U %a' /home/me /home/me/pictures").out.splitlines()
    ]

    # A list that is gone is not an order to forget.
    vm.run(["rm", LIST])
    assert f'The list "{LIST}" can\'t be read: No such file or directory.' in back_up(vm)
    assert inside(vm, "find . ! -type d | sort") == expected


def test_a_warning_for_each_of_very_many_files_hides_no_version(enrolled: Machine) -> None:
    vm = enrolled
    vm.run("mkdir -p /home/me/.config /home/me/many && chown -R me: /home/me && umask 077"
           " && cd /home/me/many && seq -f roots-own-%05g 4000 | xargs touch")  # fmt: skip
    entry(vm, '"/etc/hostname"')
    write(vm, "~/many")
    since = now(vm)
    vm.stick("main").plug()
    assert ended(vm, since=since)["CRYPTBACK_OUTCOME"] == "warnings"
    shown = json.loads(vm.run(["cryptback", "versions", "home", "--json"]).out)["versions"]
    told = shown[-1]["warnings"]
    named, more = told[:-1], re.fullmatch(r"… and ([\d,]+) more\.", told[-1])
    assert more is not None, told[-1]
    assert len(named) > 500
    assert len(named) + int(more[1].replace(",", "")) == 4000
    assert drive(vm)["warnings"] == told
    vm.run("rm -r /home/me/many/*")
    assert "than this computer remembers" not in back_up(vm)
    assert inside(vm, "ls home/me/many") == []


def test_no_list_ends_a_run(enrolled: Machine) -> None:
    """More paths than descriptors, or than arguments; names that are none; a file as directory."""
    vm = enrolled
    vm.run(
        "mkdir -p /home/me/.config /home/me/many /srv/other && touch /srv/other/file"
        " && cd /home/me/many && seq 1200 | xargs touch && chown -R me: /home/me"
    )
    entry(vm, '"/etc/hostname"')
    many = [f"~/many/{number}" for number in range(1, 1201)]
    long = "/home/me/" + "/".join(["y" * 200] * 20)
    write(
        vm,
        long,
        f"~/{'z' * 300}/file",
        "/srv/other/file/below",
        "~/many/7/below",
        *many,
    )
    since = now(vm)
    vm.stick("main").plug()
    assert ended(vm, since=since)["CRYPTBACK_OUTCOME"] == "warnings"
    told = warnings(vm, since)
    assert f'Line 1 of the list "{LIST}" is left out: "/home/me/yyy' in told
    assert "Too many open files" not in told
    assert len(inside(vm, "find home/me/many -type f")) == 1200

    write(vm, *many, *(f"~/{number:060}" for number in range(3000)))
    told = back_up(vm)
    assert f'The list "{LIST}" names too much: ' in told
    assert len(inside(vm, "find home/me/many -type f")) == 1200


def test_nobody_waits_for_a_filesystem_that_a_user_serves(enrolled: Machine) -> None:
    vm = enrolled
    stop = "/run/stop-serving"
    vm.run(["runuser", "-u", "me", "--", "mkdir", "-p", "/home/me/.config", "/home/me/served"])
    vm.run(["runuser", "-u", "me", "--", "ln", "-s", "served/file", "/home/me/by-link"])
    server = ["python3", "-I", "-", "serve", "/home/me/served", stop]
    serving = vm.spawn(server, input=Path(hostile.__file__).read_bytes(), user="me")
    vm.run("timeout 20 sh -c 'until grep -q /home/me/served /proc/mounts; do sleep 0.1; done'")
    entry(vm, '"/etc/hostname"')
    write(vm, "~/.config", "~/served", "~/by-link")
    since = now(vm)
    vm.stick("main").plug()
    assert ended(vm, since=since)["CRYPTBACK_OUTCOME"] == "warnings"
    told = warnings(vm, since)
    why = "can't be read: it lies on a user's own filesystem (FUSE)."
    assert f'The source "/home/me/served" {why}' in told
    assert f'The source "/home/me/by-link" {why}' in told
    write(vm, "~/.config", "~/served/below/it")
    assert f'The source "/home/me/served/below/it" {why}' in back_up(vm)
    vm.run(["sed", "-i", f"s|{LIST}|/home/me/served/list|", ENTRY])
    assert f'The list "/home/me/served/list" {why}' in back_up(vm)
    vm.run(f'sed -i \'s|"/etc/hostname"|"/home"|\' {ENTRY}')
    vm.run(f"echo 'cross_filesystems = true' >> {ENTRY}")
    left_out = '"/home/me/served" was left out, as it is a user\'s own filesystem (FUSE).'
    assert left_out in back_up(vm)
    vm.run(["touch", stop])
    serving.wait(timeout=PATIENCE)


def test_what_is_mounted_in_a_source_of_roots_is_read_where_a_list_names_it(
    enrolled: Machine,
) -> None:
    vm = enrolled
    disk = "truncate -s 16M /srv/disk && mkfs.ext4 -q /srv/disk && mkdir -p /home/me/disk"
    mount = "mount -o loop /srv/disk /home/me/disk"
    vm.run(f"{disk} && {mount} && cd /home/me && mkdir -p .config disk/data disk/other")
    vm.run("cd /home/me && touch disk/data/theirs disk/other/theirs && chown -R me: .config disk")
    vm.run("cd /home/me && echo quicksilver > disk/data/roots && chmod 600 disk/data/roots")
    vm.run("echo mine > /home/me/file && chmod 600 /home/me/file")
    entry(vm, '"/home/me"')
    write(vm, "~/disk/data", "~/file")
    since = now(vm)
    vm.stick("main").plug()
    assert ended(vm, since=since)["CRYPTBACK_OUTCOME"] == "warnings"
    assert '"/home/me/disk/data/roots" could not be read: Permission denied.' in warnings(vm, since)
    there = "find home/me/disk home/me/file ! -type d | sort"
    assert inside(vm, there) == ["home/me/disk/data/theirs", "home/me/file"]
    vm.run("rm /home/me/disk/data/roots && touch /home/me/disk/data/new /home/me/new")
    back_up(vm)
    both = "find home/me/disk home/me/file home/me/new ! -type d | sort"
    copied_now = ["home/me/disk/data/new", "home/me/disk/data/theirs", "home/me/file"]
    assert inside(vm, both) == [*copied_now, "home/me/new"]

    # An entry can name what lies there, too.
    entry(vm, '"/home/me", "/home/me/disk/other"')
    back_up(vm)
    assert inside(vm, both) == [
        *copied_now[:2],
        "home/me/disk/other/theirs",
        "home/me/file",
        "home/me/new",
    ]
    entry(vm, '"/home/me"')
    back_up(vm)
    assert inside(vm, both) == [*copied_now, "home/me/new"]

    # Not mounted, it keeps its last state, by a list that is gone, too.
    vm.run(["umount", "/home/me/disk"])
    assert 'The source "/home/me/disk/data" is missing. Its last state was kept.' in back_up(vm)
    assert inside(vm, both) == [*copied_now, "home/me/new"]
    vm.run(["rm", LIST])
    back_up(vm, "--full")
    assert inside(vm, both) == [*copied_now, "home/me/new"]


def test_nobody_takes_the_place_of_their_reader(enrolled: Machine) -> None:
    """A reader with a user's rights speaks to a writer that is root: the user can't trace it."""
    vm = enrolled
    random_files(vm, 20, 5, "/home/me/letters")
    vm.run("mkdir -p /home/me/.config && chown -R me: /home/me")
    entry(vm, "")
    write(vm, "~/letters")
    watcher = news(vm, copied(1), then=STOP)
    vm.stick("main").plug(bps=8 * MIB)
    watcher.wait(timeout=PATIENCE)
    reader = vm.run(["pgrep", "-f", "^/reader-rsync --server --sender"]).out.split()[0]
    status = dict(
        line.split(":\t", 1) for line in vm.run(["cat", f"/proc/{reader}/status"]).out.splitlines()
    )
    assert status["Uid"].split() == ["1000"] * 4
    assert status["Gid"].split() == ["1000"] * 4
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}
    assert status["NoNewPrivs"] == "1"
    for attempt in (
        ["strace", "-p", reader, "-o", "/dev/null"],
        ["cat", f"/proc/{reader}/mem"],
        ["ls", f"/proc/{reader}/fd/"],
    ):
        tried = vm.run(["runuser", "-u", "me", "--", *attempt], check=False)
        assert tried.code != 0
        assert "ermitted" in tried.err or "denied" in tried.err or "No such" in tried.err, tried.err
    vm.run("pkill -CONT rsync")
    assert ended(vm)["CRYPTBACK_OUTCOME"] == "done"
