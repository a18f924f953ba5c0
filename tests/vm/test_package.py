"""The Debian package: what it installs works, and what it leaves behind is what it should."""

from __future__ import annotations

import json
import re
import subprocess

from tests.machine import Machine, layers
from tests.machine.machine import Entry
from tests.vm.runs import hold

BUS = ["busctl", "--quiet", "call", "org.cryptback1", "/org/cryptback1", "org.cryptback1.Manager"]
OWN_THE_NAME = """
import asyncio
from dbus_fast import BusType
from dbus_fast.aio import MessageBus

async def main():
    bus = await MessageBus(bus_type=BusType.SYSTEM).connect()
    print(await bus.request_name("org.cryptback1"))

asyncio.run(main())
"""
OURS = "find / /run -xdev -iname '*cryptback*' | sort -u"


def properties(vm: Machine, *names: str) -> dict[str, str]:
    """What the service manager knows about the service."""
    shown = vm.run(["systemctl", "show", "cryptbackd", *(f"--property={name}" for name in names)])
    return dict(line.split("=", 1) for line in shown.out.splitlines())


def udev(vm: Machine, device: str) -> dict[str, str]:
    shown = vm.run(["udevadm", "info", "--query=property", device]).out
    return dict(line.split("=", 1) for line in shown.splitlines())


def install(vm: Machine) -> str:
    """Install the package, as `apt install ./FILE` does once it has fetched it; its output."""
    vm.push("/var/cache/cryptbackd.deb", layers.package().read_bytes())
    told = vm.run("dpkg --install /var/cache/cryptbackd.deb 2>&1", timeout=240).out
    vm.run(["rm", "/var/cache/cryptbackd.deb"])
    return told


def runs(vm: Machine) -> list[dict[str, object]]:
    """The history, as programs read it."""
    document = json.loads(vm.run(["cryptback", "history", "--json"]).out)
    found: list[dict[str, object]] = document["runs"]
    return found


def finished(vm: Machine) -> Entry:
    """Wait for the end of a backup that went well."""
    return vm.wait_journal("^home: finished", CRYPTBACK_DRIVE="home", timeout=150)


def test_package_needs_nothing_but_debian() -> None:
    """Every dependency is a Debian package (the machine is installed without any other)."""
    field = subprocess.run(
        ["dpkg-deb", "--field", str(layers.package()), "Architecture", "Depends"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert "Architecture: all" in field
    for name in ("cryptsetup-bin", "rsync", "btrfs-progs", "python3-dbus-fast"):
        assert name in field


def test_service_is_enabled_and_active(backed_up: Machine) -> None:
    vm = backed_up
    shown = vm.run("systemctl is-enabled cryptbackd; systemctl is-active cryptbackd").out
    assert shown.split() == ["enabled", "active"]
    assert vm.run("systemd-analyze verify --man=no cryptbackd.service 2>&1").out == ""


def test_service_has_watchdog_sweep_and_orderly_stop(vm: Machine) -> None:
    wanted = {
        "Type": "notify",
        "WatchdogUSec": "1min",
        "Restart": "on-failure",
        "KillMode": "mixed",
        "NoNewPrivileges": "yes",
        "ProtectSystem": "strict",
    }
    shown = properties(vm, "ExecStopPost", "StatusText", *wanted)
    assert (
        shown.pop("ExecStopPost")
        .split("argv[]=")[1]
        .startswith("/usr/bin/python3 -I -m cryptbackd.worker --sweep ;")
    )
    assert shown.pop("StatusText") == "idle, 0 drives known"
    assert shown == wanted


def test_call_on_the_bus_starts_only_an_enabled_service(vm: Machine) -> None:
    vm.run(["systemctl", "stop", "cryptbackd"])
    assert vm.run(["cryptback", "status"], user="me").out
    assert properties(vm, "ActiveState") == {"ActiveState": "active"}
    vm.run(["systemctl", "disable", "--now", "cryptbackd"])
    refused = vm.run(["cryptback", "status"], check=False)
    assert refused.code == 1
    assert "The service cryptbackd is not running." in refused.err
    assert properties(vm, "ActiveState") == {"ActiveState": "inactive"}


def test_udev_rules_are_sound(vm: Machine) -> None:
    rules = "/usr/lib/udev/rules.d/75-cryptbackd.rules"
    told = vm.run(["udevadm", "verify", "--no-summary", rules])
    assert told.out + told.err == ""


def test_udev_keeps_desktops_off_known_drives_alone(backed_up: Machine) -> None:
    vm = backed_up
    other = vm.stick("other", size=64 << 20, fs="vfat")
    other.plug()
    shown = udev(vm, other.partition)
    assert shown["ID_FS_UUID"] == other.uuid
    assert not {"UDISKS_AUTO", "ID_CRYPTBACK", "SYSTEMD_WANTS"} & set(shown)
    other.pull()
    shown = udev(vm, vm.stick("main").partition)
    assert (shown["UDISKS_AUTO"], shown["ID_CRYPTBACK"]) == ("0", "1")
    assert ":systemd:" in shown["CURRENT_TAGS"]


def test_masked_service_is_off(enrolled: Machine) -> None:
    vm = enrolled
    vm.expect_journal("cryptbackd.service: Unit .*masked|is masked")
    vm.run(["systemctl", "mask", "--now", "cryptbackd"])
    stick = vm.stick("main")
    stick.plug()
    assert udev(vm, stick.partition)["SYSTEMD_WANTS"] == "cryptbackd.service"
    vm.run("udevadm settle; systemctl list-jobs")
    assert properties(vm, "LoadState", "ActiveState") == {
        "LoadState": "masked",
        "ActiveState": "inactive",
    }


def test_modules_are_loaded_at_boot(vm: Machine) -> None:
    vm.run("systemctl stop cryptbackd && modprobe --remove dm_crypt loop")
    assert vm.run("ls -d /sys/module/loop /sys/module/dm_crypt", check=False).out == ""
    vm.run(["systemctl", "restart", "systemd-modules-load"])
    assert vm.run("ls -d /sys/module/loop /sys/module/dm_crypt").out.count("\n") == 2


def test_tmpfiles_make_what_the_service_may_write_to(vm: Machine) -> None:
    vm.run("rm -r /run/cryptsetup /run/systemd/ask-password")
    vm.run(["systemd-tmpfiles", "--create", "cryptbackd.conf"])
    shown = vm.run("stat -c '%a %U:%G %n' /run/cryptsetup /run/systemd/ask-password").out
    assert shown == "700 root:root /run/cryptsetup\n755 root:root /run/systemd/ask-password\n"


def test_journal_entries_are_explained(backed_up: Machine) -> None:
    """Each `MESSAGE_ID` has its text in the catalog, and `journalctl -x` shows it."""
    vm = backed_up
    used = {
        entry["MESSAGE_ID"] for entry in vm.journal(CRYPTBACK_DRIVE="home") if "MESSAGE_ID" in entry
    }
    assert len(used) >= 4  # begun, a version, done, may be unplugged
    listed = vm.run(["journalctl", "--list-catalog"]).out
    ours = {line.split()[0] for line in listed.splitlines() if "cryptbackd: " in line}
    assert used <= ours
    assert len(ours) >= 14
    shown = vm.run("journalctl --catalog --quiet CRYPTBACK_DRIVE=home").out.replace("░░", "--")
    assert "-- Subject: A backup to home has begun" in shown
    assert "-- Nothing is to be done. The drive may be pulled now." in shown


def test_man_pages_tell_of_every_command(vm: Machine) -> None:
    """The machine has no manual pages, so they are looked at in the package."""
    vm.push("/var/cache/cryptbackd.deb", layers.package().read_bytes())
    vm.run("dpkg-deb --extract /var/cache/cryptbackd.deb /tmp/tree")
    assert vm.run("find /tmp/tree -type f ! -perm 0644 ! -path '*/bin/*'").out == ""
    assert vm.run("find /tmp/tree ! -user root -o ! -group root").out == ""
    pages = {
        page: vm.run(f"gunzip -c /tmp/tree/usr/share/man/{page}.gz").out
        for page in ("man1/cryptback.1", "man5/cryptback-drives.5", "man8/cryptbackd.8")
    }
    for page, text in pages.items():
        assert "\n.Sh NAME\n" in text, page
        assert "\n.Sh SEE ALSO\n" in text, page
    shown = vm.run(["cryptback", "--help"]).out.split("Commands:\n")[1].split("\n\n")[0]
    commands = re.findall(r"^  (\S+)", shown, re.MULTILINE)
    assert {"init", "status", "run", "cancel", "eject", "history"} <= set(commands)
    for command in commands:
        assert f"\n.It Cm {command}" in pages["man1/cryptback.1"], command


def test_ordinary_user_may_look(enrolled: Machine) -> None:
    vm = enrolled
    assert vm.run(["cryptback", "status"], user="me").out.startswith("home  not plugged in")
    assert json.loads(vm.run(["cryptback", "status", "home", "--json"], user="me").out)["name"]
    assert "done" in vm.run(["cryptback", "history", "home"], user="me").out


def test_ordinary_user_may_not_act(enrolled: Machine) -> None:
    vm = enrolled
    stick = vm.stick("main")
    before = len(runs(vm))
    for verb in ("run", "cancel", "eject"):
        refused = vm.run(["cryptback", verb, "home"], user="me", check=False)
        assert refused.code == 1, verb
        assert "You may not do that without an administrator." in refused.err
    calls = [
        ["Run", "sa{sv}", "home", "0"],
        ["Cancel", "s", "home"],
        ["Eject", "s", "home"],
        ["Survey", "sa{sv}", "/dev/sda1", "0"],
        ["Init", "sa{sv}", "/dev/sda1", "0"],
        ["HandOver", "ss", "x", "format"],
    ]
    for call in calls:
        refused = vm.run([*BUS, *call], user="me", check=False)
        assert refused.code != 0, call
        assert re.search("without an administrator|wanted from you", refused.err), refused.err
    assert len(runs(vm)) == before
    assert not stick.plugged


def test_ordinary_user_may_not_be_the_service(vm: Machine) -> None:
    vm.run(["systemctl", "disable", "--now", "cryptbackd"])
    refused = vm.run(["python3", "-I", "-"], input=OWN_THE_NAME.encode(), user="me", check=False)
    assert refused.code != 0
    assert "not allowed to own" in refused.err
    assert vm.run(["python3", "-I", "-"], input=OWN_THE_NAME.encode()).code == 0


def test_purge_keeps_the_headers_and_says_so(enrolled: Machine) -> None:
    vm = enrolled
    told = vm.run("dpkg --purge cryptbackd 2>&1", timeout=120).out
    assert "kept /var/lib/cryptbackd/headers" in told
    left = vm.run(OURS).out.splitlines()
    assert left == ["/etc/credstore/cryptback.home", "/var/lib/cryptbackd"]  # the user's, headers
    assert vm.run("find /var/lib/cryptbackd -type f").out == "/var/lib/cryptbackd/headers/home\n"
    assert properties(vm, "LoadState") == {"LoadState": "not-found"}
    assert vm.run(["pgrep", "--full", "cryptbackd[.]daemon"], check=False).out == ""
    stick = vm.stick("main")
    stick.plug()
    assert "ID_CRYPTBACK" not in udev(vm, stick.partition)


def test_purge_keeps_what_a_drive_is_half_written_from(enrolled: Machine) -> None:
    vm = enrolled
    vm.run("mkdir -p /var/lib/cryptbackd/unfinished && cd /var/lib/cryptbackd/unfinished"
           " && touch home.json home.blocks")  # fmt: skip
    told = vm.run("dpkg --purge cryptbackd 2>&1", timeout=120).out
    assert "kept /var/lib/cryptbackd/unfinished" in told
    left = vm.run("find /var/lib/cryptbackd -type f | sort").out.split()
    assert [path.rpartition("cryptbackd/")[2] for path in left] == [
        "headers/home",
        "unfinished/home.blocks",
        "unfinished/home.json",
    ]


def test_purge_without_a_drive_leaves_nothing(vm: Machine) -> None:
    told = vm.run("dpkg --purge cryptbackd 2>&1", timeout=120).out
    assert "kept" not in told
    assert vm.run(OURS).out == ""


def test_upgrade_does_not_run_a_finished_insertion_again(enrolled: Machine) -> None:
    vm = enrolled
    stick = vm.stick("main")
    stick.plug()
    finished(vm)
    before = runs(vm)
    daemon = properties(vm, "MainPID")
    install(vm)
    assert properties(vm, "MainPID") != daemon  # it is the new program that runs
    assert properties(vm, "ActiveState") == {"ActiveState": "active"}
    vm.run(f"udevadm trigger --action=change --settle {stick.partition}")
    shown = json.loads(vm.run(["cryptback", "status", "home", "--json"]).out)
    assert (shown["state"], shown["safe"]) == ("idle", True)
    assert runs(vm) == before


def test_upgrade_takes_an_interrupted_run_up_again(enrolled: Machine) -> None:
    vm = enrolled
    vm.run("head -c 60M /dev/urandom > /home/me/big && chown me: /home/me/big")
    stick = vm.stick("main")
    hold(vm, stick)  # the package takes its time to get to the restart
    install(vm)
    ended = finished(vm)
    assert ended["CRYPTBACK_OUTCOME"] == "done"
    assert [run["outcome"] for run in runs(vm)][:2] == ["done", "cancelled"]


def test_reinstall_after_purge_opens_the_old_backup(enrolled: Machine) -> None:
    """The kept header and the entry, put back, are all that is needed."""
    vm = enrolled
    entry = vm.pull("/etc/cryptback/drives.d/home.toml")
    vm.run("dpkg --purge cryptbackd", timeout=120)
    install(vm)
    vm.push("/etc/cryptback/drives.d/home.toml", entry, 0o600)
    vm.stick("main").plug()
    ended = vm.wait_journal("^home: ", CRYPTBACK_DRIVE="home")
    assert "backup begun" in ended["MESSAGE"]
    finished(vm)
