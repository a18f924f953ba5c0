"""What `cryptback init` makes, asks and refuses, and what it leaves when it is interrupted."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.machine import Machine, Stick, layers
from tests.machine.enroll import CHEAP, PASSPHRASE, credential, make_files
from tests.machine.guest import Result, Running
from tests.machine.machine import Entry
from tests.vm.container import TREE, opened
from tests.vm.failing import KERNEL_MISSES_IT, NO_HOLES_ON_FAT
from tests.vm.runs import ended

MIB = 1 << 20
SMALL = ["--size", "64M", "--filesystem", "ext4"]
"""A container that is made quickly."""

TERMINAL = """
import json, os, pty, sys, termios, time

argv, answers = json.loads(sys.argv[1])
pid, terminal = pty.fork()
if pid == 0:
    os.execvp(argv[0], argv)
seen, at = b"", 0
while True:
    try:
        data = os.read(terminal, 4096)
    except OSError:  # nobody has the other end any more
        break
    seen += data
    if answers and answers[0][0].encode() in seen[at:]:
        at = len(seen)
        # What is typed before the terminal's echo is off would be shown.
        while answers[0][0] != "Go on?" and termios.tcgetattr(terminal)[3] & termios.ECHO:
            time.sleep(0.01)
        os.write(terminal, answers.pop(0)[1].encode() + b"\\n")
sys.stdout.buffer.write(seen)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
"""Runs a command on a terminal; each prompt that is waited for gets its answer."""

ENROLMENTS = "find /etc/cryptback /var/lib/cryptbackd -printf '%p %m %s %T@\\n' | sort"
"""Shows whether an entry, a header, a marker or the history has changed."""


@pytest.fixture(scope="module")
def shared() -> Iterator[Machine]:
    """A machine with the package installed, for tests that leave nothing in it."""
    with layers.resume(layers.INSTALLED) as vm:
        vm.run("mkdir -p /home/me/letters && echo Dear > /home/me/letters/first")
        yield vm


def command(device: str, *options: str, name: str = "home", include: str = "/home/me") -> list[str]:
    return ["cryptback", "init", device, "--name", name, "--include", include, *CHEAP, *options]


def init(
    vm: Machine,
    device: str,
    *options: str,
    passphrase: bytes = PASSPHRASE.encode() + b"\n",
    name: str = "home",
    include: str = "/home/me",
    check: bool = True,
) -> Result:
    """`cryptback init` as a script calls it."""
    words = command(device, "--yes", "--passphrase-fd", "0", *options, name=name, include=include)
    return vm.run(words, passphrase, check=check, timeout=180)


def on_terminal(vm: Machine, words: list[str], *answers: tuple[str, str]) -> Result:
    """A command as a person types it, and their answers to its prompts."""
    return vm.run(
        ["python3", "-I", "-c", TERMINAL, json.dumps([words, answers])], check=False, timeout=180
    )


def finished(vm: Machine, since: str | None = None) -> Entry:
    """Wait for the end of a run that went well."""
    return vm.wait_journal("^home: finished", CRYPTBACK_DRIVE="home", timeout=150, since=since)


def plugged_again(vm: Machine, stick: Stick) -> None:
    """Pull the stick, plug it in, and wait until it is backed up to."""
    vm.run(["journalctl", "--sync"])
    shown = vm.run(["journalctl", "--lines=1", "--output=json"]).out
    stick.replug()
    ended = finished(vm, json.loads(shown)["__CURSOR"])
    assert ended["CRYPTBACK_OUTCOME"] == "done"


@contextmanager
def mounted(vm: Machine, stick: Stick) -> Iterator[None]:
    """The stick's own filesystem at /mnt."""
    vm.run(["mount", stick.partition, "/mnt"])
    try:
        yield
    finally:
        vm.run("umount /mnt && udevadm settle")


def prepare(vm: Machine, stick: Stick, script: str) -> None:
    """Put something onto the stick, and pull it out."""
    stick.plug()
    with mounted(vm, stick):
        vm.run(f"cd /mnt && {script}")
    stick.pull()


def content(stick: Stick) -> str:
    """A hash of the whole image; a hole and zeros are the same."""
    assert not stick.plugged
    total = hashlib.sha256(str(stick.path.stat().st_size).encode())
    with open(stick.path, "rb") as image:
        end = 0
        while True:
            try:
                start = os.lseek(image.fileno(), end, os.SEEK_DATA)
            except OSError:  # no data behind this
                return total.hexdigest()
            end = os.lseek(image.fileno(), start, os.SEEK_HOLE)
            for at in range(start - start % 4096, end, 4096):
                image.seek(at)
                block = image.read(4096)
                if block.count(0) != len(block):
                    total.update(at.to_bytes(8, "little") + block)


@contextmanager
def untouched(stick: Stick, *, read_only: bool = False) -> Iterator[None]:
    """The stick, plugged in for the block, is afterwards what it was, bit by bit."""
    before = content(stick)
    stick.plug(read_only=read_only)
    yield
    stick.pull()
    assert content(stick) == before


def refused(vm: Machine, device: str, *options: str, told: str, name: str = "home") -> None:
    """A plain refusal, after which the computer is what it was."""
    before = vm.run(ENROLMENTS).out
    ended = init(vm, device, *options, name=name, check=False)
    assert ended.code == 1, ended.out + ended.err
    assert told in ended.err
    assert vm.run(ENROLMENTS).out == before


def nothing_enrolled(vm: Machine) -> None:
    found = "find /etc/cryptback/drives.d /var/lib/cryptbackd/headers /var/lib/cryptbackd/uuids"
    assert vm.run(f"{found} -type f 2> /dev/null", check=False).out == ""
    assert "No drive is enrolled" in vm.run(["cryptback", "status"]).out


def luks_metadata(vm: Machine, path: str) -> dict[str, dict[str, dict[str, object]]]:
    shown = vm.run(["cryptsetup", "luksDump", "--dump-json-metadata", path]).out
    found: dict[str, dict[str, dict[str, object]]] = json.loads(shown)
    return found


# What it makes


def test_shows_what_is_on_the_device_and_leaves_it_there(vm: Machine) -> None:
    stick = vm.stick("main", fs="ext4", label="VACATION", partitioned=True)
    prepare(vm, stick, "head -c 5M /dev/urandom > film && sha256sum film > sum")
    stick.plug()
    told = init(vm, stick.partition, *SMALL, "--no-run").out
    assert f"{stick.partition}: QEMU" in told
    assert f'holds ext4 "VACATION", UUID {stick.uuid}; 5.' in told
    assert "An encrypted file backup.luks of 64.0 MiB will be made on it, with ext4" in told
    assert "Backed up will be: /home/me" in told
    with mounted(vm, stick):
        vm.run("cd /mnt && sha256sum --check --status sum")
        assert vm.run("ls -A /mnt").out.split() == ["backup.luks", "film", "lost+found", "sum"]


def test_makes_the_first_backup_and_says_what_happens_next(vm: Machine) -> None:
    make_files(vm)
    stick = vm.stick("main", fs="ext4", partitioned=True)
    stick.plug()
    told = init(vm, stick.partition, "--size", "160M").out
    assert "You may unplug home now." in told
    assert "home is enrolled: whenever it is plugged in, it is backed up to." in told
    assert "cryptback passphrase home remember" in told
    ended = finished(vm)
    assert ended["CRYPTBACK_OUTCOME"] == "done"
    shown = json.loads(vm.run(["cryptback", "status", "home", "--json"]).out)
    assert (shown["state"], shown["last_outcome"], shown["safe"]) == ("idle", "done", True)
    with opened(vm, stick.partition) as container:
        vm.run(f"diff -r --no-dereference --exclude=pipe /home/me {container.newest()}/home/me")
        assert len(vm.run(f"ls -d {TREE}/versions/*Z").out.split()) == 1


def test_no_run_leaves_the_first_backup_to_the_next_plug(vm: Machine) -> None:
    vm.run("echo new > /home/me/new")
    stick = vm.stick("main", fs="ext4")
    stick.plug()
    told = init(vm, stick.partition, *SMALL, "--no-run", "--json").out
    lines = [json.loads(line) for line in told.splitlines()]
    assert [line["event"] for line in lines if line["event"] != "progress"] == [
        "survey",
        "begun",
        "result",
    ]
    assert lines[-1]["version"] == ""
    with opened(vm, stick.partition) as container:
        assert "new" not in vm.run(f"find {TREE}").out
    credential(vm, "home")
    plugged_again(vm, stick)
    with opened(vm, stick.partition) as container:
        assert vm.run(f"cat {container.newest()}/home/me/new").out == "new\n"


def test_entry_names_drive_container_and_sources(enrolled: Machine) -> None:
    entry = tomllib.loads(enrolled.pull("/etc/cryptback/drives.d/home.toml").decode())
    assert entry == {
        "uuid": enrolled.stick("main").uuid,
        "container": "backup.luks",
        "backup": {"include": ["/home/me", "/etc"]},
    }
    shown = enrolled.run("stat -c '%U:%G %a' /etc/cryptback/drives.d/home.toml").out
    assert shown == "root:root 600\n"


def test_header_is_stored_for_root_alone_and_is_that_of_the_drive(enrolled: Machine) -> None:
    vm = enrolled
    where = "/var/lib/cryptbackd/headers"
    shown = vm.run(f"stat -c '%U:%G %a' {where}/home {where} /var/lib/cryptbackd").out
    assert shown.splitlines() == ["root:root 600", "root:root 700", "root:root 700"]
    stick = vm.stick("main")
    stick.plug()
    finished(vm)
    with mounted(vm, stick):
        size = vm.run(f"stat -c %s {where}/home").out.strip()
        vm.run(f"cmp --bytes={size} {where}/home /mnt/backup.luks")


def test_container_is_luks2_with_big_sectors_argon2id_and_no_partitions(vm: Machine) -> None:
    stick = vm.stick("main", fs="ext4")
    stick.plug()
    init(vm, stick.partition, *SMALL, "--no-run")
    with mounted(vm, stick):
        assert vm.run("stat -c '%s %a %h' /mnt/backup.luks").out == f"{64 * MIB} 600 1\n"
        assert int(vm.run("stat -c %b /mnt/backup.luks").out) * 512 >= 64 * MIB
        found = luks_metadata(vm, "/mnt/backup.luks")
        shown = vm.run("blkid --probe --output export /mnt/backup.luks").out
    assert "TYPE=crypto_LUKS" in shown
    assert "PTTYPE" not in shown
    (segment,) = found["segments"].values()
    assert (segment["type"], segment["encryption"]) == ("crypt", "aes-xts-plain64")
    assert (segment["sector_size"], segment["size"]) == (4096, "dynamic")
    (slot,) = found["keyslots"].values()
    assert isinstance(slot["kdf"], dict)
    assert (slot["kdf"]["type"], slot["kdf"]["memory"]) == ("argon2id", 1024)
    assert found["tokens"] == {}
    with opened(vm, stick.partition):
        shown = vm.run("blkid --probe --output export /dev/mapper/byhand").out
        assert "TYPE=ext4" in shown
        assert "PTTYPE" not in shown


def test_key_derivation_costs_what_this_computer_can_pay(vm: Machine) -> None:
    """Without an option it is cryptsetup's own benchmark that decides."""
    stick = vm.stick("main", fs="ext4")
    stick.plug()
    words = command(stick.partition, "--yes", "--passphrase-fd", "0", "--no-run", *SMALL)
    words = [word for word in words if word not in CHEAP]
    vm.run(words, PASSPHRASE.encode(), timeout=240)
    (slot,) = luks_metadata(vm, "/var/lib/cryptbackd/headers/home")["keyslots"].values()
    assert isinstance(slot["kdf"], dict)
    assert slot["kdf"]["type"] == "argon2id"
    assert slot["kdf"]["memory"] > 32 * 1024


@pytest.mark.parametrize(
    ("filesystem", "size"), [("ext4", 64), pytest.param("xfs", 400, marks=pytest.mark.slow)]
)
def test_filesystem_inside_is_the_one_asked_for(vm: Machine, filesystem: str, size: int) -> None:
    vm.run("echo hello > /home/me/hello")
    stick = vm.stick("main", size=512 * MIB, fs="ext4", partitioned=True)
    stick.plug()
    init(vm, stick.partition, "--filesystem", filesystem, "--size", f"{size}M")
    with opened(vm, stick.partition) as container:
        assert vm.run(f"findmnt --noheadings --output=FSTYPE {TREE}").out == f"{filesystem}\n"
        assert vm.run(f"cat {container.newest()}/home/me/hello").out == "hello\n"


@pytest.mark.parametrize("kind", ["exfat", pytest.param("ext4", marks=pytest.mark.slow)])
def test_format_makes_a_blank_drive_usable(vm: Machine, kind: str) -> None:
    vm.run("echo hello > /home/me/hello")
    stick = vm.stick("main", partitioned=True)
    stick.plug()
    told = init(vm, stick.partition, "--format", kind, *SMALL, "--no-run").out
    assert "holds no filesystem that is known" in told
    assert f"ALL THAT IS ON {stick.partition} WILL BE ERASED ({kind})." in told
    shown = vm.run(f"blkid --probe --output value --match-tag TYPE {stick.partition}").out
    assert shown == f"{kind}\n"
    entry = tomllib.loads(vm.pull("/etc/cryptback/drives.d/home.toml").decode())
    assert entry["uuid"] == stick.uuid
    credential(vm, "home")
    plugged_again(vm, stick)
    with opened(vm, stick.partition) as container:
        assert vm.run(f"cat {container.newest()}/home/me/hello").out == "hello\n"


def test_format_luks_makes_a_partition_that_is_backed_up_to(vm: Machine) -> None:
    """Without a container file: the partition itself is encrypted."""
    vm.run("echo hello > /home/me/hello")
    stick = vm.stick("main", size=96 * MIB, partitioned=True)
    stick.plug()
    init(vm, stick.partition, "--format", "luks", "--filesystem", "ext4")
    entry = tomllib.loads(vm.pull("/etc/cryptback/drives.d/home.toml").decode())
    assert "container" not in entry
    assert entry["uuid"] == stick.uuid
    credential(vm, "home")
    vm.run("echo again > /home/me/again")
    plugged_again(vm, stick)
    with opened(vm, stick.partition, "") as container:
        assert vm.run(f"cat {container.newest()}/home/me/*").out == "again\nhello\n"
        assert len(vm.run(f"ls -d {TREE}/versions/*Z").out.split()) == 2


@pytest.mark.parametrize(
    "outside",
    [
        "exfat",
        pytest.param("vfat", marks=pytest.mark.slow),
        pytest.param("xfs", marks=pytest.mark.slow),
    ],
)
def test_container_is_written_through_to_its_end(vm: Machine, outside: str) -> None:
    """A later write near its end writes just that, and not what lies before it as well."""
    vm.expect_journal(NO_HOLES_ON_FAT)
    stick = vm.stick("main", size=448 * MIB if outside == "xfs" else 256 * MIB, fs=outside)
    stick.plug()
    init(vm, stick.partition, "--size", "128M", "--filesystem", "ext4", "--no-run")
    script = f"""
        set -e
        written() {{ awk '{{print $7}}' /sys/block/{os.path.basename(stick.partition)}/stat; }}
        cd /mnt
        test $(stat -c %s backup.luks) = {128 * MIB}
        sync -f .
        before=$(written)
        dd if=backup.luks of=/run/block bs=4096 count=1 skip=32766 status=none
        dd if=/run/block of=backup.luks bs=4096 count=1 seek=32766 conv=notrunc,fsync status=none
        sync -f .
        echo $(($(written) - before))
    """
    with mounted(vm, stick):
        sectors = int(vm.run(script).out)
    assert 8 <= sectors < 2048, f"{sectors * 512} bytes were written"


# What it asks


def test_asks_before_anything_is_changed(shared: Machine) -> None:
    vm = shared
    stick = vm.stick("asks", fs="ext4")
    before = vm.run(ENROLMENTS).out
    with untouched(stick):
        words = command(stick.partition, *SMALL)
        ended = vm.run([*words, "--passphrase-fd", "0"], PASSPHRASE.encode(), check=False)
        assert ended.code == 1
        assert "Nobody can be asked whether to go on" in ended.err
        ended = on_terminal(vm, words, ("Go on?", "n"))
        assert ended.code == 1
        assert "holds ext4" in ended.out.split("Go on?")[0]
        assert "Nothing was changed." in ended.out
        typed = ("Passphrase for the drive", "one"), ("The same again", "other")
        ended = on_terminal(vm, words, ("Go on?", "y"), *typed)
        assert ended.code == 1
        assert "The two are not the same; nothing was changed." in ended.out
    assert vm.run(ENROLMENTS).out == before


def test_goes_on_when_a_person_says_so(vm: Machine) -> None:
    stick = vm.stick("main", fs="ext4")
    stick.plug()
    ended = on_terminal(
        vm,
        command(stick.partition, *SMALL),
        ("Go on?", "y"),
        ("Passphrase for the drive", PASSPHRASE),
        ("The same again", PASSPHRASE),
    )
    assert ended.code == 0, ended.out
    assert PASSPHRASE not in ended.out
    assert "You may unplug home now." in ended.out
    with opened(vm, stick.partition) as container:
        vm.run(f"ls {container.newest()}/home/me")


def test_without_an_entry_there_is_no_container(vm: Machine) -> None:
    """Nothing can be written in /etc; on the drive there is nothing then that must be removed."""
    vm.expect_journal("^cryptbackd: home: failed: The entry could not be written")
    stick = vm.stick("main", fs="ext4")
    stick.plug()
    vm.run("mkdir -p /etc/cryptback/drives.d && chattr +i /etc/cryptback/drives.d")
    failed = init(vm, stick.partition, *SMALL, check=False)
    assert failed.code != 0
    assert "The entry could not be written" in failed.err
    vm.run(["chattr", "-i", "/etc/cryptback/drives.d"])
    nothing_enrolled(vm)
    with mounted(vm, stick):
        assert vm.run("ls -A /mnt").out.split() == ["lost+found"]
    init(vm, stick.partition, *SMALL)


# What it refuses


def test_a_drive_that_was_not_shown_is_not_erased(vm: Machine) -> None:
    """Another stick is plugged in at the same name before somebody has typed the passphrase."""
    shown, other = vm.stick("shown", fs="ext4"), vm.stick("other", fs="ext4")
    node = (shown.plug(), shown.partition)
    words = shlex.join([*command(shown.partition, "--format", "ext4", *SMALL), "--yes", "--json"])
    typed = f"until test -e /run/go-on; do sleep 0.1; done; echo {PASSPHRASE}"
    script = f"{{ {typed}; }} | {words} --passphrase-fd 0 > /run/told"
    running = vm.spawn(["/bin/bash", "-c", script])
    vm.run("until grep -q survey /run/told; do sleep 0.1; done", timeout=60)
    shown.pull()
    with untouched(other):
        assert (other.device, other.partition) == node
        vm.run("touch /run/go-on")
        ended = running.wait(check=False, timeout=60)
        assert ended.code == 1
        assert "is not the drive any more that was shown" in ended.err
    nothing_enrolled(vm)


@pytest.mark.parametrize(
    ("fs", "size", "told"),
    [
        ("ext4", "2G", "A container of 2.0 GiB does not fit"),
        pytest.param("exfat", "2G", "does not fit", marks=pytest.mark.slow),
        pytest.param("vfat", "256M", "does not fit", marks=pytest.mark.slow),
        pytest.param("vfat", "20M", "20.0 MiB is too small", marks=pytest.mark.slow),
    ],
)
def test_size_that_does_not_fit_is_refused(shared: Machine, fs: str, size: str, told: str) -> None:
    stick = shared.stick(f"{fs}-{size}", fs=fs)
    with untouched(stick):
        refused(shared, stick.partition, "--size", size, told=told)


def test_read_only_stick_is_refused(shared: Machine) -> None:
    stick = shared.stick("protected", fs="ext4", partitioned=True)
    with untouched(stick, read_only=True):
        refused(shared, stick.partition, told="can only be read")


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("echo important > backup.luks", 'The file "backup.luks" exists on the drive already.'),
        (
            "truncate -s 32M backup.luks && echo theirs | cryptsetup luksFormat --batch-mode"
            " --pbkdf pbkdf2 --pbkdf-force-iterations 1000 backup.luks",
            "it is a LUKS2 container, with somebody's data perhaps.",
        ),
        pytest.param("mkdir backup.luks", "is not a regular file", marks=pytest.mark.slow),
        pytest.param("ln -s /etc/passwd backup.luks", "backup.luks", marks=pytest.mark.slow),
        pytest.param("ln -s nowhere backup.luks", "backup.luks", marks=pytest.mark.slow),
    ],
    ids=["file", "container", "directory", "link", "dangling"],
)
def test_existing_container_is_refused(
    shared: Machine, request: pytest.FixtureRequest, script: str, told: str
) -> None:
    stick = shared.stick(request.node.callspec.id, size=96 * MIB, fs="ext4")
    prepare(shared, stick, script)
    with untouched(stick):
        refused(shared, stick.partition, *SMALL, told=told)


@pytest.mark.parametrize("forgotten", [pytest.param(False, marks=pytest.mark.slow), True])
def test_enrolled_container_is_refused(enrolled: Machine, forgotten: bool) -> None:
    vm = enrolled
    stick = vm.stick("main")
    if forgotten:
        vm.run(["rm", "/etc/cryptback/drives.d/home.toml"])
        told = 'it is the container enrolled as "home"'
        with untouched(stick):
            refused(vm, stick.partition, told=told, name="other")
    else:
        stick.plug()
        finished(vm)
        told = 'This drive is enrolled already, as "home", with the same container.'
        refused(vm, stick.partition, told=told, name="other")


def test_existing_name_is_refused(enrolled: Machine) -> None:
    stick = enrolled.stick("other", size=96 * MIB, fs="ext4")
    with untouched(stick):
        refused(enrolled, stick.partition, *SMALL, told='There is an entry "home" already.')


@pytest.mark.parametrize("hidden", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_mounted_partition_is_refused(shared: Machine, hidden: bool) -> None:
    """Also one that is mounted where we can't see it."""
    vm = shared
    stick = vm.stick(f"mounted-{hidden}", fs="ext4")
    with untouched(stick):
        mount = f"mount -o ro,noload {stick.partition} /mnt"
        if not hidden:
            vm.run(mount)
            refused(vm, stick.partition, told=f"{stick.partition} is mounted at /mnt.")
            vm.run(["umount", "/mnt"])
            return
        inside = f"{mount} && echo $$ > /run/holder && exec sleep 600"
        vm.run("rm -f /run/holder && mkfifo /run/holder")
        holder = vm.spawn(["unshare", "--mount", "sh", "-c", inside])
        pid = vm.run("cat /run/holder").out.strip()
        assert vm.run("findmnt /mnt", check=False).out == ""
        refused(vm, stick.partition, told="is in use by something else")
        vm.run(["kill", pid])
        holder.wait(check=False)


@pytest.mark.parametrize(
    "format_",
    [
        pytest.param("", marks=pytest.mark.slow),
        "ext4",
        pytest.param("luks", marks=pytest.mark.slow),
    ],
)
def test_device_of_the_running_system_is_refused(shared: Machine, format_: str) -> None:
    options = ["--format", format_] if format_ else []
    refused(shared, "/dev/vda", *options, told="/dev/vda is a disk of the running system.")


@pytest.mark.parametrize(
    "format_",
    [
        pytest.param("", marks=pytest.mark.slow),
        pytest.param("ext4", marks=pytest.mark.slow),
        "luks",
    ],
)
def test_disk_with_partitions_is_refused(shared: Machine, format_: str) -> None:
    stick = shared.stick(f"partitions-{format_}", fs="ext4", partitioned=True)
    options = ["--format", format_] if format_ else []
    with untouched(stick):
        assert stick.device
        refused(shared, stick.device, *options, told=f"{stick.device} has partitions.")


def test_drive_without_a_filesystem_is_never_formatted_unasked(shared: Machine) -> None:
    stick = shared.stick("blank")
    with untouched(stick):
        refused(shared, stick.partition, told="holds no filesystem that is known")


def test_what_is_no_filesystem_and_somebodys_all_the_same_is_named(shared: Machine) -> None:
    stick = shared.stick("swap")
    stick.plug()
    shared.run(f"mkswap {stick.partition} && udevadm settle")
    stick.pull()
    with untouched(stick):
        refused(shared, stick.partition, told="holds swap, which can't hold a container")


@pytest.mark.parametrize(
    ("passphrase", "told"),
    [
        (b"", "An empty passphrase protects nothing; nothing was changed."),
        pytest.param(
            b"\n",
            "An empty passphrase protects nothing; nothing was changed.",
            marks=pytest.mark.slow,
        ),
        (b"x" * 600 + b"\n", "one line of at most 512 bytes; nothing was changed."),
        pytest.param(
            b"with\0nul\n",
            "one line of at most 512 bytes; nothing was changed.",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["nothing", "empty", "long", "nul"],
)
def test_passphrase_that_is_none_is_refused(
    shared: Machine, request: pytest.FixtureRequest, passphrase: bytes, told: str
) -> None:
    stick = shared.stick(f"passphrase-{request.node.callspec.id}", fs="ext4")
    before = shared.run(ENROLMENTS).out
    with untouched(stick):
        ended = init(shared, stick.partition, *SMALL, passphrase=passphrase, check=False)
        assert ended.code == 1
        assert told in ended.err
    assert shared.run(ENROLMENTS).out == before


@pytest.mark.parametrize(
    ("device", "options", "told"),
    [
        ("/dev/nothing", [], "There is no device /dev/nothing."),
        ("/etc/passwd", [], "/etc/passwd is not a block device."),
        ("/dev/vda", ["--include", "/no/such"], "There is nothing at /no/such."),
        ("/dev/vda", ["--format", "luks", "--container", "x"], "there is no container file"),
        ("/dev/vda", ["--passphrase-fd", "77"], "disk of the running system"),
    ],
    ids=["no device", "file", "no source", "luks file", "descriptor"],
)
def test_nonsense_is_refused(shared: Machine, device: str, options: list[str], told: str) -> None:
    refused(shared, device, *options, told=told)


# Interrupted


def begin(vm: Machine, device: str, *options: str) -> Running:
    """Start `cryptback init`; what it prints goes to the journal, line by line."""
    vm.push("/run/passphrase", PASSPHRASE, 0o600)
    words = shlex.join(command(device, "--yes", "--passphrase-fd", "3", *options))
    output = "> >(exec logger --tag init) 2>&1"
    script = f"echo $$ > /run/init.pid; exec {words} 3< /run/passphrase {output}"
    return vm.spawn(["/bin/bash", "-c", script])


def interrupt(vm: Machine, stick: Stick, how: str) -> int:
    """Interrupt it; the exit status that it is to end with."""
    match how:
        case "ctrl-c":
            vm.run("kill -INT $(cat /run/init.pid)")
            return 130
        case "kill":
            vm.run("kill -KILL $(cat /run/init.pid)")
            return -9
        case "kill the worker":
            vm.expect_journal("home: failed: The worker was killed by SIGKILL")
            vm.run(["pkill", "-KILL", "--newest", "--full", "cryptbackd[.]worker --socket"])
            return 1
        case _:
            vm.expect_journal(KERNEL_MISSES_IT)
            stick.pull()
            return 75


HOW = ["ctrl-c", "kill", "kill the worker", "pull"]
FAST = ["ctrl-c", "pull", *(pytest.param(how, marks=pytest.mark.slow) for how in HOW[1:3])]


def leaves_nothing(vm: Machine, stick: Stick, how: str, running: Running) -> None:
    """Interrupt what runs; the drive is as good as new, and the next init succeeds."""
    code = interrupt(vm, stick, how)
    assert running.wait(check=False, timeout=60).code == code
    ended(vm)
    nothing_enrolled(vm)
    orderly = how in ("ctrl-c", "kill")
    if not stick.plugged:
        stick.plug()
    stick.throttle(0)
    with mounted(vm, stick):
        names = vm.run("ls -A /mnt").out.split()
    assert "backup.luks" not in names
    if how != "pull":  # a pull may come before the drive has its name
        assert (".cryptback-home.new" in names) is not orderly
    if orderly:
        assert len(vm.journal(CRYPTBACK_OUTCOME="cancelled")) == 1
        assert vm.journal(MESSAGE="You may unplug home now.")
    init(vm, stick.partition, *SMALL, "--no-run")
    with mounted(vm, stick):
        names = vm.run("ls -A /mnt").out.split()
    assert "backup.luks" in names
    assert ".cryptback-home.new" not in names


@pytest.mark.parametrize("how", FAST)
def test_interrupted_in_the_filling_it_leaves_nothing(vm: Machine, how: str) -> None:
    stick = vm.stick("main", fs="exfat")
    stick.plug(bps=3 * MIB)
    running = begin(vm, stick.partition, *SMALL)
    vm.wait_journal("^home: formatting", SYSLOG_IDENTIFIER="init")
    leaves_nothing(vm, stick, how, running)


@pytest.mark.parametrize("how", HOW)
def test_interrupted_in_the_unlocking_it_leaves_nothing(vm: Machine, how: str) -> None:
    stick = vm.stick("main", fs="ext4")
    stick.plug()
    running = begin(vm, stick.partition, *SMALL, "--pbkdf-memory", "64", "--pbkdf-iterations", "40")
    vm.wait_journal("^home: unlocking", SYSLOG_IDENTIFIER="init", timeout=120)
    leaves_nothing(vm, stick, how, running)


@pytest.mark.parametrize("how", HOW)
def test_interrupted_in_the_formatting_of_the_drive_it_leaves_nothing(
    vm: Machine, how: str
) -> None:
    stick = vm.stick("main", size=1 << 30)
    stick.plug(bps=MIB)
    running = begin(vm, stick.partition, *SMALL, "--format", "ext4")
    vm.wait_journal("^home: formatting", SYSLOG_IDENTIFIER="init")
    code = interrupt(vm, stick, how)
    assert running.wait(check=False, timeout=60).code == code
    ended(vm)
    nothing_enrolled(vm)
    if not stick.plugged:
        stick.plug()
    stick.throttle(0)
    init(vm, stick.partition, *SMALL, "--format", "ext4", "--no-run")


def test_interrupted_in_the_first_backup_it_stays_enrolled(vm: Machine) -> None:
    vm.run("head -c 20M /dev/urandom > /home/me/big")  # twice that is to fit in
    stick = vm.stick("main", fs="ext4")
    stick.plug()
    running = begin(vm, stick.partition, *SMALL)
    vm.wait_journal("^home: enrolled", CRYPTBACK_DRIVE="home")
    stick.throttle(MIB)
    vm.wait_journal("^home: syncing", SYSLOG_IDENTIFIER="init")
    code = interrupt(vm, stick, "ctrl-c")
    assert running.wait(check=False, timeout=90).code == code
    stick.throttle(0)
    credential(vm, "home")
    plugged_again(vm, stick)
    with opened(vm, stick.partition) as container:
        assert vm.run(f"ls {container.newest()}/home/me").out == "big\n"
