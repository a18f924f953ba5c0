"""A container without a header: what is on the drive is random bytes to everybody else."""

from __future__ import annotations

import collections
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import by_hand
from tests.machine import Machine, Stick
from tests.machine.enroll import PASSPHRASE, credential, init, make_files
from tests.machine.stick import START
from tests.vm.failing import succeeds_next
from tests.vm.runs import history
from tests.vm.test_enrol import untouched
from tests.vm.test_kit import HEADER, KIT, PAGE, follow, same, taken_to
from tests.vm.test_passphrase import NEW, change, header

SIGNATURES = (b"LUKS", b"SKUL", b"_BHRfS_M", b"aes-xts-plain64", b"argon2", b"lost+found",
              b"cryptback", b"systemd-", b"keyslots", b"/home/me")  # fmt: skip
"""What LUKS headers, filesystems and we ourselves write in clear."""
CONTROLS = 20_000
"""Random files that tell what file(1) calls random bytes."""
BLOCK = 1 << 16
DEGREES = 255


def chi_square(counts: collections.Counter[int]) -> float:
    """How far the bytes are from being equally frequent, in standard deviations."""
    wanted = counts.total() / 256
    found = sum((counts[byte] - wanted) ** 2 / wanted for byte in range(256))
    return float((found - DEGREES) / (2 * DEGREES) ** 0.5)


def kind(name: str) -> str:
    """What file(1) calls something, without what it reads from further bytes."""
    return re.split(r"[,(\d]", name)[0]


def random_kinds(where: Path) -> set[str]:
    """What file(1) calls random bytes: by a byte or two, it takes one in twenty for something,
    mostly for an OpenPGP key. All of those are what a container may be called, too.
    """
    where.mkdir()
    paths = [where / str(number) for number in range(CONTROLS)]
    for path in paths:
        path.write_bytes(os.urandom(4096))
    command = ["file", "--brief", "--files-from", "-"]
    names = "\n".join(map(str, paths))
    shown = subprocess.run(command, input=names, capture_output=True, check=True, text=True)
    shutil.rmtree(where)
    return {kind(line) for line in shown.stdout.splitlines()} - {""}


def signs(data: bytes, where: Path) -> list[str]:
    """What tells these bytes from random ones."""
    where.write_bytes(data)
    # A signature of four bytes is in so much noise by chance; of five and more it is not.
    found = [repr(word) for word in SIGNATURES if len(word) > 4 and word in data]
    sectors = {data[at : at + 4] for at in range(0, len(data), 512)}
    found += [repr(word) for word in (b"LUKS", b"SKUL", b"XFSB", b"NTFS") if word in sectors]
    shown = subprocess.run(["file", "--brief", where], capture_output=True, text=True, check=True)
    name = shown.stdout.strip()
    if name != "data" and kind(name) not in random_kinds(where.parent / "controls"):
        found.append(f"file: {name}")
    probed = subprocess.run(["/usr/sbin/blkid", "-p", where], capture_output=True, check=False)
    if probed.returncode != 2:
        found.append(f"blkid: {probed.stdout!r}")
    every: collections.Counter[int] = collections.Counter()
    for at in range(0, len(data), BLOCK):
        counts = collections.Counter(data[at : at + BLOCK])
        every += counts
        if abs(chi_square(counts)) > 7:
            found.append(f"chi-square of the block at {at}")
    if abs(chi_square(every)) > 5:
        found.append("chi-square of all")
    return found


def container(vm: Machine, where: Path) -> bytes:
    """The container file on the pulled stick, read without the machine."""
    part, file = where / "part", where / "container"
    with vm.stick("main").path.open("rb") as stick:
        stick.seek(START)
        part.write_bytes(stick.read())
    command = ["/usr/sbin/debugfs", "-R", f"dump backup.luks {file}", str(part)]
    subprocess.run(command, check=True, capture_output=True)
    part.unlink()
    return file.read_bytes()


OPTIONS = ["--size", "64M", "--filesystem", "ext4", "--detached-header", "--kit", KIT]
STORED = "/var/lib/cryptbackd/headers/home"


def init_words(stick: Stick, *options: str) -> list[str]:
    """`cryptback init` as a script calls it."""
    words = ["cryptback", "init", stick.partition, "--name", "home", "--include", "/home/me"]
    return [*words, "--passphrase-fd", "0", "--yes", *options]


def changed(vm: Machine) -> None:
    """Change the passphrase, and see that nobody wants a header on the drive."""
    before = header(vm)
    done = change(vm, "change", PASSPHRASE, NEW)
    assert "The recovery kit has the header from before" in done.out
    assert header(vm) != before
    repair = vm.run(["cryptback", "doctor", "--repair", "home"])
    assert "no header of its own" in repair.out
    adopt = ["cryptback", "passphrase", "home", "--adopt", "--passphrase-fd", "0", "--yes"]
    assert vm.run(adopt, NEW.encode(), check=False).code == 1
    credential(vm, "home", NEW)
    succeeds_next(vm)


@pytest.mark.timeout(600, func_only=True)
def test_without_a_header_the_container_is_random_bytes(
    vm: Machine, bare_vm: Machine, tmp_path: Path
) -> None:
    """Also after backups, and after its passphrase was changed; the kit opens it anywhere."""
    stick = vm.stick("main", size=96 << 20, fs="ext4", partitioned=True)
    make_files(vm)
    with untouched(stick):
        refused = vm.run(init_words(stick, *OPTIONS), b"secret\n", check=False)
        assert refused.code == 1
        assert "can't be written" in refused.err  # there is no such directory
        assert vm.run("ls -A /var/lib/cryptbackd/headers", check=False).out == ""
    stick.plug()
    vm.run(["mkdir", "-p", KIT])
    credential(vm, "home")
    shown = init(vm, stick.partition, "home", *OPTIONS)
    assert "NO HEADER is written to the drive" in shown
    assert vm.run(["stat", "-c", "%a", PAGE, HEADER]).out == "600\n600\n"
    assert [run["outcome"] for run in history(vm)] == ["done"]
    changed(vm)
    files = by_hand.manifest(vm, "/home/me")

    page = vm.pull(PAGE).decode()
    other = taken_to(bare_vm, vm)
    data = container(vm, tmp_path)
    assert len(data) == 64 << 20
    assert signs(data, tmp_path / "looked-at") == []
    assert len(signs(vm.pull(STORED), tmp_path / "looked-at")) > 5  # so these would be seen

    # The kit is that from before the change: it goes with the passphrase from before.
    follow(bare_vm, page, other, PASSPHRASE, "mount", "loop", "open")
    assert same(bare_vm, files)
    follow(bare_vm, page, other, PASSPHRASE, "close")

    told = json.loads(vm.run(["cryptback", "forget", "home", "--yes", "--json"]).out)
    assert told["kept"] == [STORED]
    assert "there is none on the drive" in told["why"]
    vm.run(["rm", STORED])  # this computer lost that, too
    stick.plug()
    adopt = init_words(stick, "--adopt")
    assert vm.run(adopt, PASSPHRASE.encode(), check=False).code == 1  # none is on the drive
    again = vm.run([*adopt, "--no-run", "--header", HEADER], PASSPHRASE.encode(), timeout=300)
    assert "what is on it is as it was" in again.out
    assert "You may unplug home now." in again.out
    assert re.findall(r"\b[0-9a-f]{64}\b", page)[0] in again.out
