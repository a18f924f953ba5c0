"""The test machine itself works as the other tests believe it does."""

from __future__ import annotations

import time

import pytest

from tests.machine import CommandFailed, CommandTimeout, Fault, Machine, layers, oracle

MIB = 1 << 20


def test_resumes_quickly_with_the_right_time() -> None:
    layers.ensure(layers.BOOTED)
    taken = []
    for _ in range(4):  # this computer has other things to do as well
        started = time.monotonic()
        with layers.resume(layers.BOOTED) as vm:
            assert vm.run(["true"]).code == 0
            taken.append(time.monotonic() - started)
            assert abs(vm.clock() - time.time()) < 2
    assert min(taken) < 2, taken


def test_commands_and_files(bare_vm: Machine) -> None:
    assert bare_vm.run("cat; echo error >&2; exit 3", b"in\0put", check=False).stdout == b"in\0put"
    with pytest.raises(CommandFailed, match="exit status 3\nerror"):
        bare_vm.run("echo error >&2; exit 3")
    with pytest.raises(CommandTimeout):
        bare_vm.run(["sleep", "60"], timeout=0.5)
    assert bare_vm.run(["id", "-un"], user="me").out == "me\n"
    data = bytes(range(256)) * 20_000
    bare_vm.push("/tmp/new/file", data, 0o600)
    assert bare_vm.run(["stat", "-c", "%a %s", "/tmp/new/file"]).out == f"600 {len(data)}\n"
    assert bare_vm.pull("/tmp/new/file") == data


@pytest.mark.parametrize("partitioned", [False, True])
def test_stick_comes_and_goes(bare_vm: Machine, partitioned: bool) -> None:
    stick = bare_vm.stick("main", fs="vfat", uuid="1A2B-3C4D", partitioned=partitioned)
    assert stick.uuid == "1A2B-3C4D"
    assert stick.plug() == "/dev/sda"
    query = ["udevadm", "info", "--query=property", "--property=ID_FS_UUID,ID_FS_TYPE", "--value"]
    shown = bare_vm.run([*query, stick.partition]).out
    assert shown.split() == ["1A2B-3C4D", "vfat"]
    bare_vm.run(f"mount {stick.partition} /mnt; echo kept > /mnt/file; umount /mnt")
    stick.pull()
    assert bare_vm.run("ls /sys/block | grep sd", check=False).out == ""
    stick.plug(read_only=True)
    assert (
        bare_vm.run(f"mount -r {stick.partition} /mnt; cat /mnt/file; umount /mnt").out == "kept\n"
    )


def test_several_sticks_at_once(bare_vm: Machine) -> None:
    first = bare_vm.stick("first", size=64 * MIB, fs="ext4")
    second = first.clone("second")
    assert {first.plug(), second.plug()} == {"/dev/sda", "/dev/sdb"}
    assert first.uuid == second.uuid
    first.pull()
    assert bare_vm.run("ls /sys/block | grep sd").out == "sdb\n"


def test_slow_failing_and_hanging_stick(bare_vm: Machine) -> None:
    bare_vm.expect_journal(
        "I/O error|I/O to dead device|device offline error|FAILED|Synchronize Cache"
        "|Dev sda: unable to read"
    )
    stick = bare_vm.stick("main", size=64 * MIB)
    stick.plug()
    write = "dd if=/dev/zero of=/dev/sda bs=1M count=2 oflag=direct 2>&1"
    stick.throttle(MIB)
    started = time.monotonic()
    bare_vm.run(write)
    assert time.monotonic() - started > 1
    stick.throttle(0)
    stick.fail(Fault("write", sector=2048))
    assert "Input/output error" in bare_vm.run(write, check=False).out
    stick.fail()
    bare_vm.run(write)
    stick.throttle(1)
    writing = bare_vm.spawn(write)
    time.sleep(1)
    assert not writing.done()
    stick.pull()
    assert writing.wait(check=False).code != 0


def test_machines_do_not_disturb_each_other(bare_vm: Machine) -> None:
    with layers.resume(layers.BOOTED) as other:
        bare_vm.push("/root/here", "one")
        other.stick("main").plug()
        assert other.run(["test", "-e", "/root/here"], check=False).code == 1
        assert bare_vm.run("ls /sys/block | grep sd", check=False).out == ""
        other.qemu.kill()
    assert bare_vm.pull("/root/here") == b"one"


def test_oracle_finds_what_is_left(bare_vm: Machine) -> None:
    clean = oracle.look(bare_vm)
    assert (clean.left, clean.complaints) == ([], [])
    plant = """
        dmsetup create planted --table '0 2048 zero'
        dmsetup udevcreatecookie
        truncate -s 16M /tmp/file
        mkfs.ext4 -q /tmp/file
        inside='mount -o loop /tmp/file /mnt; echo ready >&2; exec sleep 1000'
        unshare -m sh -c "$inside" > /dev/null 2> /tmp/ready &
        until [ -s /tmp/ready ]; do sleep 0.05; done
        logger -p err "something bad"
    """
    bare_vm.run(plant)
    found = oracle.look(bare_vm)
    for what in (
        "mapping planted",
        "loop device loop0 on /tmp/file",
        "mount of /dev/loop0 on /mnt",
        "udev cookie 0xd4d",
    ):
        assert any(line.startswith(what) for line in found.left), (what, found.left)
    assert found.complaints == ["root: something bad"]
    with pytest.raises(oracle.Leftovers, match="mapping planted"):
        oracle.check(bare_vm, patience=0)
    bare_vm.expect_journal("something bad")
    bare_vm.run("dmsetup remove planted; dmsetup udevcomplete_all -y; pkill sleep")


def test_oracle_finds_a_process_of_the_service_and_a_traceback(vm: Machine) -> None:
    plant = """
        echo $$ > /sys/fs/cgroup/system.slice/cryptbackd.service/cgroup.procs
        echo 'Traceback (most recent call last):' | logger -t broken
        exec sleep 1000
    """
    planted = vm.spawn(plant)
    vm.wait_journal("^Traceback", SYSLOG_IDENTIFIER="broken")
    found = oracle.look(vm)
    (left,) = found.left
    assert left.startswith("process ")
    assert left.endswith(" of cryptbackd.service: sleep 1000")
    assert found.complaints == ["broken: Traceback (most recent call last):"]
    vm.expect_journal("^broken: ")
    vm.run(["kill", left.split()[1]])
    assert planted.wait(check=False).code != 0


def test_journal(bare_vm: Machine) -> None:
    bare_vm.spawn("sleep 1; logger -t one first; logger -t two second; logger -t one third")
    entry = bare_vm.wait_journal("^second$")
    assert entry["SYSLOG_IDENTIFIER"] == "two"
    bare_vm.wait_journal("^third$", SYSLOG_IDENTIFIER=("one", "three"))
    messages = [entry["MESSAGE"] for entry in bare_vm.journal(SYSLOG_IDENTIFIER="one")]
    assert messages == ["first", "third"]
    later = bare_vm.journal(since=entry["__CURSOR"], SYSLOG_IDENTIFIER="one")
    assert [entry["MESSAGE"] for entry in later] == ["third"]
    with pytest.raises(CommandTimeout, match="no such entry"):
        bare_vm.wait_journal("fourth", timeout=1)


@pytest.mark.timeout(900, func_only=True)
@pytest.mark.parametrize("hard", [False, True])
def test_reboot(bare_vm: Machine, hard: bool) -> None:
    bare_vm.push("/root/here", "one")
    bare_vm.run(["sync"])
    before = bare_vm.run(["cat", "/proc/sys/kernel/random/boot_id"]).out
    bare_vm.reboot(hard=hard)
    assert bare_vm.run(["cat", "/proc/sys/kernel/random/boot_id"]).out != before
    assert bare_vm.pull("/root/here") == b"one"
    assert abs(bare_vm.clock() - time.time()) < 3


def test_package_is_installed(vm: Machine) -> None:
    assert "Status: install ok installed" in vm.run(["dpkg", "--status", "cryptbackd"]).out


def test_layer_brings_its_stick(enrolled: Machine) -> None:
    enrolled.run(["systemctl", "mask", "--runtime", "--now", "cryptbackd"])
    stick = enrolled.stick("main")
    stick.plug()
    query = ["udevadm", "info", "--query=property", "--property=ID_FS_UUID", "--value"]
    assert enrolled.run([*query, stick.partition]).out.strip() == stick.uuid
