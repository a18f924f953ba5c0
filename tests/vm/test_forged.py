"""Headers that were forged, set back, or are another one at each look: none is ever believed."""

from __future__ import annotations

import hashlib
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import forge
from tests.machine import Machine, Stick
from tests.machine.enroll import CHEAP, PASSPHRASE, credential
from tests.machine.guest import Result
from tests.vm import lying
from tests.vm.failing import succeeds_next
from tests.vm.runs import MIB, ended, now
from tests.vm.test_drive_lies import CONTAINER, tamper
from tests.vm.test_passphrase import HEADER, NEW, change, header, opens, opens_here, plugged

BARE = "/var/lib/cryptbackd/headers/bare"
FORGE = """
import sys

sys.path.insert(0, "/tmp")
import forge

honest = open("/root/honest", "rb").read()
kind = sys.argv[2]
wanted = forge.FORGERIES[kind].make(honest) if kind else honest
with open(sys.argv[1], "r+b") as drive:
    for at in range(0, len(honest), 4096):
        drive.seek(at)
        block = wanted[at : at + 4096]
        if drive.read(4096) != block:
            drive.seek(at)
            drive.write(block)
"""
UNASKED = "rm -f /tmp/unasked && mkfifo /tmp/unasked && exec 3<> /tmp/unasked && exec {} 3<&3"
"""Whoever reads the passphrase from the descriptor 3 waits for ever."""
OPENED = """
import ctypes, os, socket, sys

libc = ctypes.CDLL(None)
queue = libc.inotify_init()
assert libc.inotify_add_watch(queue, sys.argv[1].encode(), 0x20) > 0  # IN_OPEN, inotify(7)
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
    manager.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
while os.read(queue, 4096):
    print("opened", flush=True)
"""
"""Says so in the journal when somebody, in whatever namespace, opens a file."""
TOKEN = "/usr/lib/x86_64-linux-gnu/cryptsetup/libcryptsetup-token-evil.so"


@pytest.fixture
def bare(enrolled: Machine) -> Stick:
    """A partition that is encrypted itself and enrolled as "bare"; its header is /root/honest."""
    vm = enrolled
    stick = vm.stick("bare", size=64 * MIB, partitioned=True)
    stick.plug()
    credential(vm, "bare")
    words = ["cryptback", "init", stick.partition, "--name", "bare", "--include", "/etc/systemd"]
    words += ["--format", "luks", "--filesystem", "ext4", "--passphrase-fd", "0", "--yes", *CHEAP]
    vm.run(words, PASSPHRASE.encode(), timeout=180)
    vm.run(f"head -c {forge.HEADER} {stick.partition} > /root/honest")
    vm.push("/tmp/forge.py", Path(forge.__file__).read_text())
    return stick


def put(vm: Machine, stick: Stick, kind: str) -> None:
    """Have the drive show a forged header; none: the honest one."""
    vm.run(["python3", "-I", "-c", FORGE, stick.partition, kind])
    vm.run(["udevadm", "settle"])


def unasked(vm: Machine, *words: str) -> str:
    """What a command says that fails, and reads no passphrase."""
    script = UNASKED.format(shlex.join([*words, "--passphrase-fd", "3", "--yes"]))
    failed = vm.run(["/bin/bash", "-c", script], check=False)
    assert failed.code not in (0, 12, 75), failed.out + failed.err
    return failed.out + failed.err


def kept(vm: Machine) -> str:
    """What the computer knows of drives."""
    return vm.run("cd /var/lib/cryptbackd && sha256sum headers/*; ls headers").out


@pytest.mark.timeout(900, func_only=True)
def test_a_forged_header_is_adopted_by_nothing(enrolled: Machine, bare: Stick) -> None:
    """Neither for the entry that knows the drive, nor by a computer that does not."""
    vm = enrolled
    before = kept(vm)
    for kind, forgery in forge.FORGERIES.items():
        if kind == "an odd UUID":
            continue  # it is another drive then
        put(vm, bare, kind)
        told = unasked(vm, "cryptback", "passphrase", "bare", "--adopt")
        assert forgery.sentence in told, kind
        assert "It can't be adopted" in told, kind
    assert kept(vm) == before

    # With the stored header the drive is opened all the same, and no plugin for the token is.
    vm.run(f"mkdir -p {Path(TOKEN).parent} && : > {TOKEN}")
    watch = ["systemd-run", "--quiet", "--collect", "--unit=opened", "--service-type=notify"]
    vm.run([*watch, "python3", "-I", "-c", OPENED, TOKEN])
    for kind in ("an unknown token", "4 MiB of brackets"):
        put(vm, bare, kind)
        since = now(vm)
        vm.run(["cryptback", "run", "bare"], check=False, timeout=120)
        end = ended(vm, "bare", since=since)
        assert end["CRYPTBACK_OUTCOME"] == "warnings"
        assert forge.FORGERIES[kind].sentence in end["MESSAGE"]

    vm.run("rm /etc/cryptback/drives.d/bare.toml /var/lib/cryptbackd/headers/bare*")
    before = kept(vm)
    for kind, forgery in forge.FORGERIES.items():
        put(vm, bare, kind)
        told = unasked(vm, "cryptback", "init", bare.partition, "--adopt")
        if kind == "an odd UUID":
            assert "wanted the filesystem UUID" in told
        else:
            assert forgery.sentence in told, kind
        assert all(c.isprintable() or c == "\n" for c in told), kind
        assert "cryptbackd: forged" not in told.splitlines()
    assert kept(vm) == before
    assert not vm.journal(MESSAGE="opened")
    vm.run(["cat", TOKEN])
    vm.wait_journal(timeout=10, MESSAGE="opened")
    vm.run(["systemctl", "stop", "opened"])
    put(vm, bare, "")
    words = ["cryptback", "init", bare.partition, "--adopt", "--name", "bare", "--yes"]
    vm.run([*words, "--include", "/etc/systemd", "--passphrase-fd", "0"], PASSPHRASE.encode(),
           timeout=180)  # fmt: skip
    vm.run(f"cmp /root/honest {BARE}")


RENUMBER = """
import sys

sys.path.insert(0, "/tmp")
import forge

with open("/root/old", "rb") as old, open("/root/renumbered", "wb") as new:
    new.write(forge.renumbered(old.read(), 1000))
"""


def test_a_revoked_passphrase_comes_back_by_no_old_header(enrolled: Machine) -> None:
    """Somebody who knows an old passphrase has a copy of the drive's header from then."""
    vm = enrolled
    vm.push("/tmp/forge.py", Path(forge.__file__).read_text())
    vm.run(f"cp {HEADER} /root/old && python3 -I - ", input=RENUMBER.encode())
    plugged(vm)
    change(vm, "change", PASSPHRASE, NEW)
    credential(vm, "home", NEW)
    before = header(vm)
    adopt = ["cryptback", "passphrase", "home", "--adopt"]
    for old, told in (
        ("old", "It is older than the stored one, as of a drive that was set back, or a copy"),
        ("renumbered", "the passphrase may have been changed on another computer."),
    ):
        vm.stick("main").pull()
        tamper(vm, f"dd if=/root/{old} of={CONTAINER} bs=1M conv=notrunc,fsync status=none")
        assert opens(vm, PASSPHRASE)  # by hand, as it did when the header was copied
        since = now(vm)
        vm.run(["systemctl", "start", "cryptbackd"])
        end = ended(vm, since=since)
        assert end["CRYPTBACK_OUTCOME"] == "warnings"
        assert told in end["MESSAGE"]
        if old == "old":
            assert "It can't be adopted" in unasked(vm, *adopt)
        else:  # nothing tells it from a newer one but that what opens the drive now does not
            words = [*adopt, "--yes", "--passphrase-fd", "0"]
            assert vm.run(words, NEW.encode(), check=False).code == 12
        assert header(vm) == before
    vm.run(["cryptback", "doctor", "--repair", "home", "--yes"], timeout=120)
    assert (opens(vm, PASSPHRASE), opens_here(vm, PASSPHRASE)) == (False, False)
    succeeds_next(vm)


def honest_header(bare: Stick) -> bytes:
    """The one that is on the stick."""
    with bare.path.open("rb") as image:
        image.seek(bare.start)
        return image.read(forge.HEADER)


def made_elsewhere(tmp_path: Path, honest: bytes) -> tuple[Path, Path]:
    """Two headers that are as they must be: of the same volume, and of another with its UUID."""
    changed, other = tmp_path / "changed", tmp_path / "other"
    changed.write_bytes(honest.ljust(len(honest) + MIB, b"\0"))
    other.write_bytes(bytes(len(honest) + MIB))
    cost = ["--pbkdf", "argon2id", "--pbkdf-memory", "1024", "--pbkdf-force-iterations", "4"]
    uuid = honest[168:208].rstrip(b"\0").decode()
    plain = ["--type", "luks2", "--cipher", "aes-xts-plain64", "--key-size", "512"]
    words = [*plain, "--sector-size", "4096", "--uuid", uuid, str(other)]
    for action, typed in (
        (["luksFormat", *cost, *words], PASSPHRASE),
        (["luksChangeKey", *cost, str(changed)], f"{PASSPHRASE}\n{NEW}\n"),
    ):
        command = ["/usr/sbin/cryptsetup", *action, "--batch-mode"]
        subprocess.run(command, input=typed.encode(), check=True, capture_output=True)
    for file in (changed, other):
        file.write_bytes(file.read_bytes()[: len(honest)])
    return changed, other


@contextmanager
def waiting(vm: Machine, words: list[str], for_: str, passphrase: str) -> Iterator[list[Result]]:
    """While the block runs, the command has said *for_*, and waits for the passphrase."""
    vm.run("rm -f /tmp/passphrase /tmp/said && mkfifo /tmp/passphrase")
    script = f"{shlex.join(words)} --yes --passphrase-fd 3 3< /tmp/passphrase > /tmp/said 2>&1"
    running = vm.spawn(["/bin/bash", "-c", script])
    results: list[Result] = []
    holding = vm.spawn(["/bin/bash", "-c", "exec 3> /tmp/passphrase; sleep infinity"])
    vm.run(f"until grep -q '{for_}' /tmp/said; do sleep 0.1; done")
    yield results
    vm.run(["tee", "/tmp/passphrase"], passphrase.encode() + b"\n")
    vm.run(["kill", str(holding.pid)])
    results.append(running.wait(check=False, timeout=120))


def test_a_drive_that_shows_pieces_of_two_headers(
    enrolled: Machine, bare: Stick, tmp_path: Path
) -> None:
    """They are refused, and the stored one opens the drive as before."""
    vm = enrolled
    vm.expect_journal("^cryptbackd: bare: failed: Its LUKS2 header is not one that cryptbackd made")
    bare.pull()
    _changed, other = made_elsewhere(tmp_path, honest_header(bare))
    with lying.drive(bare, tmp_path) as liar:
        since = now(vm)
        bare.plug(bridge=liar.socket)
        assert ended(vm, "bare", since=since)["CRYPTBACK_OUTCOME"] == "done"
        before = kept(vm)
        liar.shows(other, mixed=True)
        words = ["cryptback", "passphrase", "bare", "--adopt", "--yes", "--passphrase-fd", "0"]
        for _turn in range(3):
            told = liar.lies()
            said = vm.run(words, PASSPHRASE.encode(), check=False, timeout=120)
            assert liar.lies() > told
            assert said.code != 0, said.out + said.err
            assert kept(vm) == before
        liar.shows(None)
        since = now(vm)
        vm.run(["cryptback", "run", "bare"], timeout=120)
        assert ended(vm, "bare", since=since)["CRYPTBACK_OUTCOME"] == "done"
        bare.pull()


def test_a_drive_that_shows_another_header_at_the_next_look(
    enrolled: Machine, bare: Stick, tmp_path: Path
) -> None:
    vm = enrolled
    vm.expect_journal("^cryptbackd: bare: failed: ")
    bare.pull()
    honest = honest_header(bare)
    changed, other = made_elsewhere(tmp_path, honest)
    with lying.drive(bare, tmp_path) as liar:
        since = now(vm)
        bare.plug(bridge=liar.socket)
        assert ended(vm, "bare", since=since)["CRYPTBACK_OUTCOME"] == "done"
        adopt = ["cryptback", "passphrase", "bare", "--adopt"]
        liar.shows(changed)
        before = kept(vm)
        with waiting(vm, adopt, "opens the drive from then on", NEW) as ends:
            liar.shows(other)
        said = vm.pull("/tmp/said").decode()
        assert ends[0].code == 1, said
        assert "The header on the drive belongs to another volume key" in said
        assert kept(vm) == before

        liar.shows(None)
        vm.run("rm /etc/cryptback/drives.d/bare.toml /var/lib/cryptbackd/headers/bare*")
        before = kept(vm)
        init = ["cryptback", "init", bare.partition, "--adopt", "--name", "bare"]
        init += ["--include", "/etc/systemd"]
        with waiting(vm, init, "go on only if you know", PASSPHRASE) as ends:
            liar.shows(other)
        said = vm.pull("/tmp/said").decode()
        assert ends[0].code == 1, said
        assert "The drive shows another header than a moment ago; nothing was changed." in said
        assert kept(vm) == before

        # By turns, at each reading: what is stored is what was looked at, or nothing is.
        for _turn in range(3):
            told = liar.lies()
            liar.shows(other, by_turns=True)
            words = [*init, "--no-run", "--yes", "--passphrase-fd", "0"]
            done = vm.run(words, PASSPHRASE.encode(), check=False, timeout=120)
            if done.code == 0:
                stored = vm.run(["sha256sum", BARE]).out.split()[0]
                whole = [hashlib.sha256(raw).hexdigest() for raw in (honest, other.read_bytes())]
                assert stored in whole
                vm.run(["rm", "/etc/cryptback/drives.d/bare.toml", BARE])
            assert kept(vm) == before, done.out + done.err
            assert liar.lies() > told
        bare.pull()
