"""What the computer remembers of each version, and what lies beside it on the drive."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.machine import Machine
from tests.machine.enroll import credential, init
from tests.vm.container import TREE, opened
from tests.vm.runs import MIB, PATIENCE, ended, go_on, hold, now, random_files

CATALOGUE = "/var/lib/cryptbackd/catalogue/home"
NASTY = r"""
set -e
mkdir -p /home/me/nasty/deep && cd /home/me/nasty
: > "$(printf 'line\nfeed -  \377')" && echo dash > ./-dash && echo star > 'a*[b]'
echo linked > one && for i in 2 3 4; do ln one deep/$i; done
ln -s "a // b -" link && mkfifo fifo && truncate -s 3M sparse
touch -d "1960-01-01 00:00:00.25" old"""
# SIGTERM waits for a process that stands: bit 14 of what is pending (proc_pid_status(5)).
UNTIL_TERMINATED = r"""
until grep -q '^ShdPnd:.*[4-7c-f][0-9a-f]\{3\}$' "/proc/$1/status"; do sleep 0.05; done"""
UNTIL_COPIED = r"""
cd "/proc/$1/root/run/cryptbackd/home/tree"
until [ "$(find . -path '*/random/*' | wc -l)" -ge 10 ]; do sleep 0.1; done"""
LOST = rf"""
set -e
name=$(tr '\0' '\n' < {CATALOGUE}/.copied | grep -a -m 1 '/random/')
mount -o remount,rw {TREE} && cd {TREE}/current
name=${{name%%//*}}
touch -r "$name" /run/was
head -c 4M /dev/zero | dd of="$name" conv=notrunc status=none
touch -r /run/was "$name"
"""
COMPARE = r"""
import gzip, hashlib, json, os, stat, sys
import xxhash

tree, manifest, record = map(os.fsencode, sys.argv[1:])
raw = open(manifest, "rb").read()
told = json.load(open(record))
wrong = []
if hashlib.sha256(raw).hexdigest() != told["manifest_sha256"]:
    wrong.append("the record has another sum")
records = {}
for line in gzip.decompress(raw).split(b"\0")[:-1]:
    path, _, rest = line.partition(b"//")
    records[path] = rest.split(b" ", 9)
found = set()
for at, folders, names in os.walk(tree):
    for name in folders + names:
        full = os.path.join(at, name)
        path = os.path.relpath(full, tree)
        found.add(path)
        status = os.lstat(full)
        kind = {"d": stat.S_ISDIR, "f": stat.S_ISREG, "l": stat.S_ISLNK, "p": stat.S_ISFIFO}
        kind = next(letter for letter, fits in kind.items() if fits(status.st_mode))
        if path not in records:
            continue
        is_kind, mode, uid, gid, links, size, mtime, ctime, inode, last = records[path]
        target, _, checksum = last.rpartition(b" ")
        seconds, _, rest = mtime.partition(b".")
        is_so = (kind, status.st_mode & 0o7777, status.st_uid, status.st_gid, status.st_mtime_ns)
        moment = int(seconds) * 10**9 + int(rest[:9])
        says = (is_kind.decode(), int(mode, 8), int(uid), int(gid), moment)
        if is_so != says:
            wrong.append((path, is_so, says))
        if kind == "f" and (status.st_size, xxhash.xxh128_hexdigest(open(full, "rb").read())) != (
            int(size), checksum.decode()
        ):
            wrong.append((path, "content", checksum))
        if kind == "l" and os.readlink(full) != target:
            wrong.append((path, "target", target))
        source = os.lstat(b"/" + path) if os.path.lexists(b"/" + path) else None
        if b"-" not in (ctime, inode) and source is not None and int(inode) != source.st_ino:
            wrong.append((path, "inode", inode))
        if kind == "f" and ctime == b"-":
            wrong.append((path, "nothing of the source"))
if found != set(records):
    wrong.append((found - set(records), set(records) - found))
if list(records) != sorted(records, key=lambda path: path + b"//"):
    wrong.append("out of order")
print(json.dumps({"paths": len(found), "wrong": [repr(each) for each in wrong]}))
"""


def compare(vm: Machine, version: str, manifest: str = "") -> dict[str, Any]:
    """The manifest of a version against what is in it, by a program of the test's own."""
    path = f"{TREE}/versions/{version}"
    words = ["python3", "-", path, manifest or f"{path}.manifest", f"{path}.json"]
    answer: dict[str, Any] = json.loads(vm.run(words, input=COMPARE.encode()).out)
    return answer


def back_up(vm: Machine, code: int = 0) -> None:
    ended = vm.run(["cryptback", "run", "home"], check=False, timeout=PATIENCE)
    assert ended.code == code, ended.out + ended.err


def modes(vm: Machine) -> set[str]:
    """Owner and mode of all that is in the catalogue."""
    shown = vm.run(r"find /var/lib/cryptbackd/catalogue -printf '%y %u:%g %m\n'").out
    return set(shown.splitlines())


@pytest.mark.parametrize("filesystem", ["btrfs", "ext4"])
def test_manifest_tells_of_every_path_of_a_version_and_of_nothing_else(
    vm: Machine, filesystem: str
) -> None:
    vm.run(f"mkdir -p /home/me/.cache/left-out && {NASTY} && chown -hR me: /home/me")
    credential(vm, "home")
    stick = vm.stick("main", size=200 * MIB, fs="ext4")
    stick.plug()
    kind = ("--filesystem", filesystem, "--size", "150M", "--exclude", ".cache")
    init(vm, stick.partition, "home", *kind)
    # Unchanged, changed, chmod alone, a broken and a new link, gone, and an edit that hides itself.
    vm.run(
        "cd /home/me/nasty && echo more >> old && chmod 0600 sparse 'a*[b]' && rm deep/3"
        " && ln one deep/5 && rm fifo && echo new > new && cp --attributes-only -p -- -dash /tmp/t"
        " && printf 'hash\n' > ./-dash && touch -r /tmp/t ./-dash && rm /tmp/t"
    )
    back_up(vm)
    with opened(vm) as container:
        names = container.versions()
        assert len(names) == 2
        for name in names:
            told = compare(vm, name)
            assert [each for each in told["wrong"] if "nothing of the source" not in each] == []
            vm.run(["cmp", f"{TREE}/versions/{name}.manifest", f"{CATALOGUE}/{name}.manifest"])
            vm.run(["cmp", f"{TREE}/versions/{name}.json", f"{CATALOGUE}/{name}.json"])
        wrong = compare(vm, names[0])["wrong"]
        assert wrong == []
        assert told["paths"] >= 14
        # Either it has that edit, or does not say that it knows of it.
        content = vm.run(f"cat {TREE}/versions/{names[1]}/home/me/nasty/-dash").out
        doubtful = {each.split("'")[1] for each in told["wrong"]}
        assert content == "hash\n" or "home/me/nasty/-dash" in doubtful
    assert modes(vm) == {"d root:root 700", "f root:root 600"}


def test_what_is_lost_of_the_catalogue_comes_back_from_the_other_side(enrolled: Machine) -> None:
    vm = enrolled
    vm.stick("main").plug()
    ended(vm)
    for _ in range(2):
        vm.run("date > /home/me/date")
        back_up(vm)
    with opened(vm) as container:
        names = container.versions()
        vm.run(f"mount -o remount,rw {TREE}")
        vm.run(["rm", f"{TREE}/versions/{names[2]}.manifest"])
        vm.run(f": > {TREE}/versions/{names[3]}.manifest")
    before = vm.run(f"cd {CATALOGUE} && sha256sum *").out
    vm.run(
        f"cd {CATALOGUE} && rm -f {names[1]}.json {names[0]}.manifest"
        f" && printf x | dd of={names[1]}.manifest bs=1 seek=300 conv=notrunc status=none"
    )
    since = now(vm)
    back_up(vm)
    assert vm.journal(since=since, MESSAGE="You may unplug home now.")
    after = vm.run(f"cd {CATALOGUE} && sha256sum *").out
    assert set(before.splitlines()) < set(after.splitlines())
    with opened(vm) as container:
        for name in container.versions():
            vm.run(["cmp", f"{TREE}/versions/{name}.manifest", f"{CATALOGUE}/{name}.manifest"])

    vm.run("rm -r /var/lib/cryptbackd/catalogue")
    back_up(vm)
    again = vm.run(f"cd {CATALOGUE} && sha256sum *").out
    assert set(after.splitlines()) < set(again.splitlines())


def test_manifest_on_hard_links_outlives_an_interruption(vm: Machine) -> None:
    """Checksums of what an interrupted run copied are not lost."""
    vm.run(f"mkdir -p /home/me && {NASTY}")
    random_files(vm, 12, 4)
    vm.run("chown -hR me: /home/me")
    credential(vm, "home")
    stick = vm.stick("main", size=160 * MIB, fs="ext4")
    stick.plug()
    init(vm, stick.partition, "home", "--size", "120M", "--filesystem", "ext4", "--no-run")
    stick.pull()
    since = now(vm)
    writer = hold(vm, stick, at_least=12 * MIB).writer
    cancelling = vm.spawn(["cryptback", "cancel", "home"])
    vm.run(["/bin/sh", "-c", UNTIL_TERMINATED, "sh", str(writer)])
    go_on(vm)  # so that it ends in order
    cancelling.wait()
    assert ended(vm, since=since)["CRYPTBACK_OUTCOME"] == "cancelled"
    back_up(vm)
    with opened(vm) as container:
        (name,) = container.versions()
        assert compare(vm, name)["wrong"] == []


def test_what_a_killed_worker_had_copied_gets_its_checksums(enrolled: Machine) -> None:
    """They have their names, and nobody has read what rsync said of them."""
    vm = enrolled
    vm.expect_journal("^cryptbackd: home: failed: The worker was killed by SIGKILL")
    random_files(vm, 12, 4)
    vm.run("cd /home/me/random && ln 1 twin")
    writer = hold(vm, vm.stick("main"), at_least=4 * MIB)
    vm.run(["kill", "-STOP", str(writer.worker)])
    go_on(vm)
    vm.run(["/bin/sh", "-c", UNTIL_COPIED, "sh", str(writer.worker)], timeout=PATIENCE)
    since = now(vm)
    vm.run(["kill", "-KILL", str(writer.worker)])
    assert ended(vm, since=since)["CRYPTBACK_OUTCOME"] == "failed"
    back_up(vm)
    assert vm.journal(since=since, MESSAGE="You may unplug home now.")
    with opened(vm) as container:
        assert compare(vm, container.versions()[-1])["wrong"] == []


def test_what_did_not_reach_the_drive_before_it_was_pulled_is_copied_again(
    enrolled: Machine,
) -> None:
    """A file may have its length and time by then, and nothing in it."""
    vm = enrolled
    vm.expect_journal("^cryptbackd: home: failed: The worker was killed by SIGKILL")
    random_files(vm, 12, 4)
    writer = hold(vm, vm.stick("main"), at_least=12 * MIB)
    since = now(vm)
    vm.run(["kill", "-KILL", str(writer.worker)])
    assert ended(vm, since=since)["CRYPTBACK_OUTCOME"] == "failed"
    with opened(vm):
        vm.run(LOST)
    back_up(vm)
    told = "home: of what an interrupted run had copied, 1 file did not reach the drive."
    assert vm.journal(since=since, MESSAGE=told)
    with opened(vm) as container:
        assert compare(vm, container.versions()[-1])["wrong"] == []
