"""The computer's other users: what they can read, change, and put in the way."""

from __future__ import annotations

import re

from tests.machine import Machine
from tests.vm.container import opened
from tests.vm.failing import succeeds_next
from tests.vm.runs import PATIENCE, drive, ended, go_on, hold, now, random_files
from tests.vm.test_killed import drop_in

ENTRY = "/etc/cryptback/drives.d/home.toml"
OURS = "/etc/cryptback /var/lib/cryptbackd /run/cryptbackd /run/cryptsetup"
SECRET = "of nobody but root"
SWAP = """
cd /home/me
mv letters-z aside
ln -s ../../etc/private letters-z
"""


def test_nobody_else_reads_or_changes_what_the_service_keeps(backed_up: Machine) -> None:
    vm = backed_up
    for user in ("me", "daemon"):
        for test in ("-readable -type f", "-writable ! -type l"):
            found = vm.run(f"find {OURS} {test} 2>/dev/null", check=False, user=user).out
            assert found == "", (user, test)
    for place in ("/var/lib/cryptbackd", "/run/cryptbackd"):
        assert vm.run(["stat", "-c", "%U %a", place]).out == "root 700\n"
    assert vm.run(f"find {OURS} -type f -perm /077").out == ""
    assert vm.run(["stat", "-c", "%U %a", "/run", "/etc/cryptback/drives.d"]).out == (
        "root 755\nroot 755\n"
    )


def test_an_entry_that_others_may_change_is_refused(enrolled: Machine) -> None:
    vm = enrolled
    vm.stick("main").plug()
    assert ended(vm)["CRYPTBACK_OUTCOME"] == "done"
    vm.expect_journal(f"{ENTRY}: it belongs to user")
    for spoil, mend in (
        (f"chmod o+w {ENTRY}", f"chmod 600 {ENTRY}"),
        (f"chmod g+w {ENTRY}", f"chmod 600 {ENTRY}"),
        (f"chown me {ENTRY}", f"chown root {ENTRY}"),
    ):
        vm.run(spoil)
        refused = vm.run(["cryptback", "run", "home"], check=False)
        assert refused.code == 1
        assert "wanted: root's, writable by nobody else." in refused.err
        assert drive(vm)["state"] == "bad"
        vm.run(mend)
    vm.run(f"mv {ENTRY} /home/me/entry && ln -s /home/me/entry {ENTRY}")
    assert vm.run(["cryptback", "run", "home"], check=False).code == 1
    vm.run(f"mv /home/me/entry {ENTRY}")
    succeeds_next(vm)


def test_a_source_that_becomes_a_link_while_it_is_read_leads_nowhere(enrolled: Machine) -> None:
    """Into another source least of all, which the reader sees and may read."""
    vm = enrolled
    vm.run(
        f"mkdir -m 700 /etc/private && echo '{SECRET}' > /etc/private/file && cd /home/me"
        " && mkdir letters-z && head -c 19 /dev/zero | tr '\\0' x > letters-z/file"
        " && chown -R me: letters-z"
    )
    random_files(vm, 4, 8, "/home/me/letters-a")
    hold(vm, vm.stick("main"))
    vm.run(["/bin/sh", "-c", SWAP], user="me")
    go_on(vm)
    end = ended(vm)
    assert end["CRYPTBACK_OUTCOME"] == "warnings"
    told = " ".join(drive(vm)["warnings"])
    assert '"/home/me/letters-z/file" could not be read: Too many levels of symbolic links.' in told
    with opened(vm) as container:
        found = vm.run(["grep", "-rlF", SECRET, container.newest()], check=False).out
        assert found.split() == [f"{container.newest()}/etc/private/file"]


FOREIGN = """
mkdir -p /usr/local/evil
for name in rsync mount umount cryptsetup dmsetup btrfs find sort bwrap env blkid python3 sh; do
    printf '#!/bin/sh\\necho > /run/cryptbackd/ran; echo > /run/ran\\n' \\
        > /usr/local/evil/$name
done
chmod 755 /usr/local/evil/*
for name in sitecustomize usercustomize cryptbackd click attr json; do
    echo 'open("/run/cryptbackd/ran", "w"); open("/run/ran", "w")' > /usr/local/evil/$name.py
done
"""
ENVIRONMENT = (
    "PATH=/usr/local/evil PYTHONPATH=/usr/local/evil PYTHONHOME=/usr/local/evil"
    " PYTHONSTARTUP=/usr/local/evil/json.py PYTHONINSPECT=1"
    " RSYNC_RSH=/usr/local/evil/rsync RSYNC_CONNECT_PROG=/usr/local/evil/rsync"
    " RSYNC_CHECKSUM_LIST=none RSYNC_PARTIAL_DIR=/usr/local/evil LD_LIBRARY_PATH=/usr/local/evil"
)


def test_the_environment_changes_nothing(enrolled: Machine) -> None:
    """Neither the service's nor that of whoever types `cryptback`."""
    vm = enrolled
    vm.run(FOREIGN)
    drop_in(vm, f"Environment={ENVIRONMENT}")
    vm.run(["systemctl", "restart", "cryptbackd"])
    random_files(vm, 4, 8)
    held = hold(vm, vm.stick("main"))
    for pid in (held.stub, held.worker, held.writer, held.reader):
        around = vm.pull(f"/proc/{pid}/environ").decode()
        assert "evil" not in around
        assert not re.search(r"^(LD_|PYTHON|RSYNC_)", around.replace("\0", "\n"), re.MULTILINE)
    go_on(vm)
    assert ended(vm)["CRYPTBACK_OUTCOME"] == "done"
    since = now(vm)
    command = f"/usr/bin/env {ENVIRONMENT.replace('LD_LIBRARY_PATH=/usr/local/evil', '')}"
    vm.run(f"{command} /usr/bin/cryptback restore home /home/me/documents --to /srv", timeout=120)
    assert vm.journal(since=since, MESSAGE="You may unplug home now.")
    assert vm.run("diff -r --no-dereference /srv/documents /home/me/documents").out == ""
    assert vm.run("find /run/ran /run/cryptbackd/ran 2> /dev/null", check=False).out == ""


def test_the_names_of_files_are_told_to_whom_the_drive_is_for(enrolled: Machine) -> None:
    vm = enrolled
    entry = vm.pull(ENTRY).decode().replace('"/etc"', '"/etc", "/home/private/diary"')
    assert "diary" in entry
    vm.push(ENTRY, f'owner = "daemon"\n{entry}', 0o600)
    vm.run("useradd --no-create-home other")
    told = {
        user: vm.spawn(
            ["timeout", "100", "cryptback", "status", "home", "--watch", "--json"], user=user
        )
        for user in ("other", "daemon")
    }
    ask = ["cryptback", "history", "home", "--json"]
    vm.stick("main").plug()
    assert ended(vm)["CRYPTBACK_OUTCOME"] == "warnings"
    heard = {
        user: watching.wait(timeout=PATIENCE, check=False).out for user, watching in told.items()
    }
    for user, knows in (("other", False), ("daemon", True)):
        assert '"outcome": "warnings"' in vm.run(ask, user=user).out
        assert ("diary" in vm.run(ask, user=user).out) is knows
        assert ("diary" in vm.run(["cryptback", "status", "home"], user=user).out) is knows
        assert '"warned": 1' in heard[user]
        assert ("diary" in heard[user]) is knows
    assert "1 warning, for daemon alone" in vm.run(["cryptback", "status", "home"], user="me").out
    assert "diary" in vm.run(["cryptback", "run", "home"], check=False, timeout=PATIENCE).out
