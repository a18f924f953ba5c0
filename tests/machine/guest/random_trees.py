"""Runs in a guest: random trees, random changes, and whether a quick run finds them all.

A tree is changed at random again and again. Each time a quick run makes a version, which is
compared with the tree: all that is to be kept of each file (by manifest.py, whose path is the
first argument). The other arguments: an empty directory on the filesystem to be copied to, an
empty one for the tree, the kind of versions (btrfs or links), a seed, the number of rounds and the
greatest number of changes in each.

With one more, a user's number, most runs read with that user's rights, and there are files that the
user can't read: they keep their last state, and come along as soon as somebody reads them who can.
"""

import json
import os
import random
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
import xxhash

from cryptbackd import manifest, manifest_writing
from cryptbackd.warned import Warnings
from cryptbackd.worker import listing
from cryptbackd.worker.control import Control
from cryptbackd.worker.quick.account import account
from cryptbackd.worker.quick.changes import changes
from cryptbackd.worker.quick.difference import difference
from cryptbackd.worker.quick.transfer import Place, transfer
from cryptbackd.worker.rights import Rights
from cryptbackd.worker.rsync_job import RSYNC, Job
from cryptbackd.worker.sync import sync
from cryptbackd.worker.versions.btrfs import BtrfsStore
from cryptbackd.worker.versions.hardlinks import HardLinkStore

EXCLUDE = ("*.iso", "cache/", "/src/home/secret")
NAMES = [
    b"a",
    b"b",
    b"c",
    b"d.iso",
    b"cache",
    b"e e",
    b"\xff\n",
    b"#f",
    b";g",
    b"-h",
    b"secret",
    b"[i]*?",
]
BIG = 17 << 20


class Source:
    """The tree, and what can happen to it."""

    def __init__(self, root: Path, dice: random.Random, reader: int | None) -> None:
        self.root = os.fsencode(root)
        self.dice = dice
        self.reader = reader

    def paths(self, want: str = "") -> list[bytes]:
        found = []
        for directory, names, files in os.walk(self.root):
            names.sort()
            for name in sorted(names + files):
                path = os.path.join(directory, name)
                mode = os.lstat(path).st_mode
                kind = "d" if stat.S_ISDIR(mode) else "f" if stat.S_ISREG(mode) else "o"
                if not want or kind in want:
                    found.append(path)
        return found

    def any(self, want: str = "") -> bytes | None:
        found = self.paths(want)
        return self.dice.choice(found) if found else None

    def fresh(self) -> bytes:
        directory = self.dice.choice([self.root, *self.paths("d")])
        while True:
            path = os.path.join(directory, self.dice.choice(NAMES))
            if not os.path.lexists(path):
                return path
            if stat.S_ISDIR(os.lstat(path).st_mode):
                directory = path
            else:
                directory = self.root
                path += b"%d" % self.dice.randrange(10**6)
                return path

    def content(self) -> bytes:
        return self.dice.randbytes(self.dice.choice([0, 1, 10, 10, 10, 5000]))

    def new_file(self) -> None:
        with open(self.fresh(), "wb") as file:
            file.write(self.content())

    def new_directory(self) -> None:
        os.mkdir(self.fresh())

    def new_link(self) -> None:
        os.symlink(self.dice.choice([b"a", b"..", b"/etc/passwd", b"gone"]), self.fresh())

    def new_fifo(self) -> None:
        os.mkfifo(self.fresh())

    def edit(self) -> None:
        if path := self.any("f"):
            with open(path, "ab") as file:
                file.write(b"x")

    def edit_slyly(self) -> None:
        """Another content of the same length, and the old time put back."""
        if path := self.any("f"):
            status = os.stat(path)
            with open(path, "r+b") as file:
                file.write(self.dice.randbytes(min(status.st_size, 1000)))
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    def edit_big(self) -> None:
        path = os.path.join(self.root, b"big")
        if not os.path.lexists(path):
            with open(path, "wb") as file:
                file.write(self.dice.randbytes(1 << 20) * 3)
                file.truncate(BIG + self.dice.randrange(1 << 20))
        elif os.path.isfile(path):
            with open(path, "r+b") as file:
                file.seek(self.dice.randrange(BIG))
                file.write(self.dice.randbytes(5000))
                file.truncate(BIG + self.dice.randrange(2 << 20))

    def rename(self) -> None:
        path = self.any()
        where = self.fresh()
        if path and not where.startswith(path + b"/"):
            os.rename(path, where)

    def rename_over(self) -> None:
        one, other = self.any("fo"), self.any("fo")
        if one and other:
            os.rename(one, other)

    def exchange(self) -> None:
        """Two names change places, whatever they are."""
        one, other = self.any(), self.any()
        if one and other and one != other:
            if one.startswith(other + b"/") or other.startswith(one + b"/"):
                return
            aside = os.path.join(self.root, b"aside")
            os.rename(one, aside)
            os.rename(other, one)
            os.rename(aside, other)

    def lock(self) -> None:
        """The reader can't read it any more."""
        path = self.any("f")
        if path and os.lstat(path).st_nlink == 1:
            if "user.x" in os.listxattr(path):
                os.removexattr(path, "user.x")
            subprocess.run(["/usr/bin/setfacl", "-b", "--", path], check=True)
            os.chown(path, 0, 0)
            os.chmod(path, self.dice.choice([0o600, 0o640]))

    def unlock(self) -> None:
        if locked := [path for path in self.paths("f") if self.is_locked(path)]:
            os.chmod(self.dice.choice(locked), 0o644)

    def is_locked(self, path: bytes) -> bool:
        status = os.lstat(path)
        mine = status.st_uid == self.reader and status.st_mode & 0o400
        return self.reader is not None and not mine and not status.st_mode & 0o004

    def link(self) -> None:
        if (path := self.any("f")) and not self.is_locked(path):
            os.link(path, self.fresh())

    def link_over(self) -> None:
        one, other = self.any("f"), self.any("f")
        if one and other and not os.path.samefile(one, other) and not self.is_locked(one):
            os.unlink(other)
            os.link(one, other)

    def part(self) -> None:
        """A file with several names becomes one with fewer, of the same content and times."""
        shared = [p for p in self.paths("f") if os.lstat(p).st_nlink > 1]
        if shared:
            path = self.dice.choice(shared)
            shutil.copy2(path, path + b"~")
            status = os.lstat(path)
            os.chown(path + b"~", status.st_uid, status.st_gid)
            os.rename(path + b"~", path)

    def remove(self) -> None:
        if path := self.any("fo"):
            os.unlink(path)

    def remove_tree(self) -> None:
        if (path := self.any("d")) and self.dice.random() < 0.3:
            shutil.rmtree(path)

    def to_file(self) -> None:
        """A directory becomes a file."""
        if path := self.any("d"):
            shutil.rmtree(path)
            with open(path, "wb") as file:
                file.write(b"was a directory")

    def to_directory(self) -> None:
        if path := self.any("fo"):
            os.unlink(path)
            os.mkdir(path)
            with open(os.path.join(path, b"in"), "wb") as file:
                file.write(b"was a file")

    def to_link(self) -> None:
        """A directory moves, and a symbolic link to it stands in its place."""
        if path := self.any("d"):
            where = self.fresh()
            if not where.startswith(path + b"/"):
                os.rename(path, where)
                os.symlink(os.path.relpath(where, os.path.dirname(path)), path)

    def mode(self) -> None:
        modes = [0o600, 0o644, 0o755, 0o4755, 0o2700, 0o1777]
        if self.reader is not None:
            modes = [0o755, 0o4755, 0o2755, 0o1777]
        if path := self.any("fd"):
            os.chmod(path, self.dice.choice(modes))

    def owner(self) -> None:
        if path := self.any():
            os.chown(path, self.dice.choice([0, 1000, 12345]), 7, follow_symlinks=False)

    def times(self) -> None:
        if path := self.any():
            when = self.dice.randrange(2 * 10**18)
            os.utime(path, ns=(when, when), follow_symlinks=False)

    def acl(self) -> None:
        if (path := self.any("fd")) and not self.is_locked(path):
            user = self.dice.choice([1, 2, 1000])
            subprocess.run(["/usr/bin/setfacl", "-m", f"u:{user}:rx", "--", path], check=True)

    def attribute(self) -> None:
        if (path := self.any("fd")) and not self.is_locked(path):
            os.setxattr(path, "user.x", self.dice.randbytes(5))

    def no_attribute(self) -> None:
        if (path := self.any("fd")) and "user.x" in os.listxattr(path):
            os.removexattr(path, "user.x")

    def change(self, number: int) -> list[str]:
        kinds = [
            self.new_file, self.new_file, self.new_directory, self.new_link, self.new_fifo,
            self.edit, self.edit_slyly, self.rename, self.rename_over, self.exchange, self.link,
            self.link_over, self.part, self.remove, self.remove_tree, self.to_file,
            self.to_directory, self.to_link, self.mode, self.owner, self.times, self.acl,
            self.attribute, self.no_attribute, self.edit_big,
        ]  # fmt: skip
        if self.reader is not None:
            kinds += [self.lock] * 4 + [self.unlock]
        done = []
        for _ in range(number):
            what = self.dice.choice(kinds)
            what()
            done.append(what.__name__)
        return done


class Copy:
    """What the runs make: `current`, and the versions."""

    def __init__(self, root: Path, source: Path, kind: str) -> None:
        self.root = root
        self.stage = source.parents[1]
        self.linked = kind != "btrfs"
        self.store = (HardLinkStore if self.linked else BtrfsStore)(root / "current")
        self.versions: list[Path] = []
        self.number = 0
        self.rights: Rights | None = None
        self.settled = False
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        threading.Thread(target=drain, args=(theirs,), daemon=True).start()
        self.control = Control(ours)

    def job(self) -> Job:
        return Job(
            stage=self.stage,
            target=self.store.target,
            exclude=EXCLUDE,
            own=("/src/home",),
            others=(),
            rights=self.rights,
        )

    def list(self) -> Path:
        out = self.root / "listing"
        listing.sources(self.job(), out, self.control)
        return out

    def begin(self) -> Path | None:
        last = self.versions[-1] if self.versions else None
        self.store.begin(last)
        return last

    def keep(self) -> Path:
        version = self.root / f"v{self.number}"
        self.number += 1
        self.store.keep(version)
        self.versions.append(version)
        return version

    def full(self) -> Path:
        last = self.begin()
        links = (last,) if last and self.linked else ()
        sync(attrs.evolve(self.job(), link_dest=links, contents=True), self.control)
        return self.keep()

    def first(self) -> None:
        listed = self.list()
        self.full()
        with listing.tree(self.versions[-1], self.root, self.control) as found:
            there = {raw.partition(b"//")[0] for raw in found}
        records = {raw.partition(b"//")[0]: raw for raw in listing.lines_of(listed)}
        status = os.lstat(self.stage / "src")
        upper = manifest.Record(b"src", "d", 0, status.st_mtime_ns, None, None, 0o755, 0, 0, 3)
        records[b"src"] = upper.raw()
        assert there <= records.keys(), there - records.keys()
        manifest_writing.write_raw(self.root / "manifest", sorted(records[path] for path in there))

    def quick(self) -> Path:
        listed = self.list()
        last = self.begin()
        assert last is not None
        if self.linked:
            self.store.fill(last)
        with manifest.opened(self.root / "manifest") as before:
            what = changes(
                difference(listed, before), ["/src/home"], EXCLUDE, self.root / "skeleton", RSYNC
            )
            place = Place((self.job(),), last, self.linked)
            done = transfer(place, what, self.control)
            told = account(what, done, place, 0 if self.settled else time.time() + 1000)
            manifest_writing.write_changed(self.root / "manifest.new", before, told)
        (self.root / "manifest.new").rename(self.root / "manifest")
        return self.keep()


def drain(sock: socket.socket) -> None:
    while sock.recv(1 << 20):
        pass


def main() -> None:
    tool, copies, place, kind, seed, rounds, number, *user = sys.argv[1:]
    reader = int(user[0]) if user else None
    dice = random.Random(int(seed))
    stage = Path(place)
    tree = stage / "src" / "home"
    tree.mkdir(parents=True)
    source = Source(tree, dice, reader)
    source.change(60)
    quick = Copy(Path(copies), tree, kind)
    quick.first()
    quick.settled = reader is not None
    for turn in range(int(rounds)):
        done = source.change(dice.randrange(int(number) + 1))
        if reader is not None:
            theirs = Rights("reader", reader, reader, (reader,), "/")
            quick.rights = dice.choice([theirs, theirs, theirs, None])
        locked = {path for path in source.paths("f") if source.is_locked(path)}
        if quick.rights is None:
            locked.clear()
        fault = _turn(tool, quick, stage, Path(copies) / "plain", locked)
        if fault:
            how = "as root" if quick.rights is None else "as a user"
            print(f"seed {seed}, turn {turn} ({how}): {done}", *fault, sep="\n")
            sys.exit(1)
    print("ok: seed", seed, len(list(manifest.read(quick.root / "manifest"))), "paths")


def _turn(tool: str, copy: Copy, stage: Path, plain: Path, locked: set[bytes]) -> list[str]:
    """One quick run, held against everything; what is wrong."""
    copy.control.warnings = Warnings()
    old = copy.versions[-1]
    before = look(tool, old)
    version = copy.quick()
    fault = list(copy.control.doubts)
    denied = "could not be read: Permission denied." if locked else "\0"
    fault += [told for told in copy.control.warnings if not told.endswith(denied)]
    # What is excluded, rsync tells by itself; the rest is compared with the source.
    shutil.rmtree(plain, ignore_errors=True)
    argv = [RSYNC, "-a", *(f"--exclude={pattern}" for pattern in EXCLUDE)]
    subprocess.run([*argv, f"{stage}/", f"{plain}/"], check=True)
    now, want = look(tool, version), only(look(tool, stage), look(tool, plain))
    names = [os.path.relpath(path, os.fsencode(stage)) for path in locked]
    unread = {name.decode("ascii", "backslashreplace") for name in names}
    want = [line for wanted in want for line in _kept(wanted, before, unread)]
    # A copy may have more holes than the source.
    dense = {json.loads(line)["name"] for line in want if '"sparse": false' in line}
    now = [
        line.replace('"sparse": true', '"sparse": false')
        if json.loads(line)["name"] in dense
        else line
        for line in now
    ]
    fault += [f"at the source: {line}" for line in want if line not in now]
    fault += [f"in the copy: {line}" for line in now if line not in want]
    if look(tool, old) != before:
        fault.append("the version before was changed")
    return fault + faults_of_manifest(copy.root / "manifest", version)


def _kept(wanted: str, before: list[str], locked: set[str]) -> list[str]:
    """What a full run makes of a file: one that can't be read keeps its last state."""
    now = json.loads(wanted)
    if now["name"] not in locked:
        return [wanted]
    for line in before:
        was = json.loads(line)
        if was["name"] == now["name"] and was["kind"] != oct(stat.S_IFDIR):
            was.pop("links", None)
            if all(was.get(what) == now[what] for what in ("kind", "size", "time")):
                was = {**now, "sha512": was["sha512"]}
            return [json.dumps(was, sort_keys=True)]
    return []


def look(tool: str, root: Path) -> list[str]:
    """Everything in a tree, a line each."""
    argv = [sys.executable, "-I", tool, str(root)]
    shown = subprocess.run(argv, stdout=subprocess.PIPE, check=True).stdout.decode()
    # The root's time is that of the last temporary directory in it.
    return [line for line in shown.splitlines() if '"name": "."' not in line]


def faults_of_manifest(path: Path, version: Path) -> list[str]:
    """Where the manifest tells something else than what is in the version."""
    kept = {record.path: record for record in manifest.read(path)}
    top = os.fsencode(version)
    there = {os.path.relpath(found, top) for found in walk(top)}
    fault = [f"manifest: {name!r}" for name in kept.keys() ^ there]
    for name in kept.keys() & there:
        record, found = kept[name], os.path.join(top, name)
        status = os.lstat(found)
        right = record.kind == "d" or status.st_mtime_ns == record.mtime_ns
        right &= record.kind != "f" or status.st_size == record.size
        right &= record.kind == "l" or stat.S_IMODE(status.st_mode) == record.mode
        if record.xxh128 is not None:
            with open(found, "rb") as file:
                right &= xxhash.xxh128_hexdigest(file.read()) == record.xxh128
        if not right:
            fault.append(f"manifest: {record}")
    return fault


def only(everything: list[str], there: list[str]) -> list[str]:
    """The lines of what is *there*, i.e. not excluded, without the names of what isn't."""
    names = {json.loads(line)["name"] for line in there}
    kept = [shown for line in everything if (shown := json.loads(line))["name"] in names]
    for shown in kept:
        links = [name for name in shown.pop("links", []) if name in names]
        if len(links) > 1:
            shown["links"] = links
    return [json.dumps(shown, sort_keys=True) for shown in kept]


def walk(top: bytes) -> Iterator[bytes]:
    for directory, directories, files in os.walk(top):
        for name in directories + files:
            yield os.path.join(directory, name)


main()
