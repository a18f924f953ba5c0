"""What is seen of the daemon: status line, journal, command line, bus; and how quiet it is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.machine import CommandFailed, Machine
from tests.machine.guest import Running
from tests.machine.machine import Entry
from tests.vm.runs import (
    CALL,
    MIB,
    PATIENCE,
    STOP,
    UNIT,
    begun,
    copied,
    drive,
    ended,
    go_on,
    history,
    hold,
    news,
    outcomes,
    random_files,
    settled,
    syncing,
)

EVIL = "evil\x1b]0;title\x07\x1b[31m\n<3>cryptbackd: forged"
"""A file name that would set a terminal's title and colour and begin a line of its own."""

RUN_AGAIN = """
busctl --quiet call org.cryptback1 /org/cryptback1 org.cryptback1.Manager Run 'sa{sv}' home 0
manager='org.cryptback1 /org/cryptback1 org.cryptback1.Manager'
until busctl call $manager GetDrive s home | grep -q '"state" s "idle"'; do sleep 0.2; done
"""
"""A run without the costs of the command line."""

WAIT_FOR_STATUS = r"""
until systemctl show -P StatusText cryptbackd | grep -E "$1"; do sleep 0.1; done
"""


def status_text(vm: Machine, pattern: str) -> str:
    """Wait until the line in `systemctl status` fits; it is news to nobody, so it is looked at."""
    command = ["/bin/sh", "-c", WAIT_FOR_STATUS, "sh", pattern]
    return vm.run(command, timeout=PATIENCE).out.strip()


def run_in_background(vm: Machine, name: str = "home") -> Running:
    """`cryptback run`, held in mid-sync."""
    watcher = news(vm, copied(1), name, then=STOP)
    running = vm.spawn(["cryptback", "run", name])
    watcher.wait(timeout=PATIENCE)
    return running


def refusal(vm: Machine, *command: str, user: str | None = None) -> tuple[int, str]:
    """The exit status and the complaint of a `cryptback` that must fail."""
    result = vm.run(["cryptback", *command], check=False, user=user)
    assert result.code != 0, result.out
    return result.code, result.err


def test_the_status_line_tells_what_goes_on(enrolled: Machine) -> None:
    idle = enrolled.run(["systemctl", "show", "-P", "StatusText", UNIT]).out
    assert re.fullmatch(r"idle, 1 drive known, last backup of home .*(now|ago)\n", idle)
    random_files(enrolled, 4, 8)
    stick = enrolled.stick("main")
    hold(enrolled, stick, at_least=MIB)
    line = status_text(enrolled, "syncing [1-9]")
    assert re.fullmatch(r"home: syncing \d+ % of 32\.\d MiB(, \d+ MB/s)?(, \d+:\d\d left)?", line)
    go_on(enrolled)
    ended(enrolled)
    assert status_text(enrolled, "idle") == "idle, 1 drive known, last backup of home just now"


def entries_of_the_run(vm: Machine) -> list[Entry]:
    """All but what is said of the files that were read back, for which there may be no time."""
    return [entry for entry in vm.journal(UNIT) if entry["CRYPTBACK_PHASE"] != "verifying"]


def test_the_journal_tells_the_run_in_sentences(backed_up: Machine) -> None:
    entries = entries_of_the_run(backed_up)
    told = [entry["MESSAGE"] for entry in entries]
    patterns = [
        r"home: backup begun on /dev/sda1 \(QEMU .+\)\.",
        r"home: A passphrase came from the source “.+”\.",
        r"home: unlocked with the passphrase from .+\.",
        r"home: comparing with what this computer remembers of the drive: \d+ paths to look at\.",
        r"home: version \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ made\.",
        r"You may unplug home now\.",
        r"home: finished: \d+ files, [\d.]+ MiB; 2 files changed \(8 B\) in \d+:\d\d\.",
    ]
    assert len(told) == len(patterns), told
    for pattern, message in zip(patterns, told, strict=True):
        assert re.fullmatch(pattern, message), message


def test_the_journals_entries_have_their_fields(backed_up: Machine) -> None:
    entries = entries_of_the_run(backed_up)
    assert {entry["CRYPTBACK_DRIVE"] for entry in entries} == {"home"}
    assert {entry["CRYPTBACK_RUN"] for entry in entries} == {history(backed_up)[0]["id"]}
    assert {entry["SYSLOG_IDENTIFIER"] for entry in entries} == {"cryptbackd"}
    phases = list(dict.fromkeys(entry["CRYPTBACK_PHASE"] for entry in entries))
    assert phases == ["starting", "unlocking", "comparing", "keeping", "finished"]
    assert [entry.get("CRYPTBACK_OUTCOME") for entry in entries] == [None] * 6 + ["done"]
    explained = backed_up.run(
        ["journalctl", "-x", "-u", UNIT, f"--after-cursor={backed_up.cursor}"]
    )
    for entry in (entries[0], entries[-2], entries[-1]):
        catalogue = backed_up.run(["journalctl", "--dump-catalog", entry["MESSAGE_ID"]]).out
        subject = re.search(r"^Subject: (.+)$", catalogue, re.MULTILINE)
        assert subject, entry["MESSAGE"]
    assert "░░ The support" not in explained.out
    assert "░░ Subject: " in explained.out


def test_the_outcome_is_told_when_everything_is_locked(enrolled: Machine) -> None:
    """The kernel's own event of the mapping's end is older than the line in the journal."""
    watcher = enrolled.spawn("exec udevadm monitor --kernel --subsystem-match=block > /tmp/events")
    enrolled.stick("main").plug()
    last = ended(enrolled)
    enrolled.run(["kill", str(watcher.pid)])
    events = re.findall(
        r"^KERNEL\[([\d.]+)\] (\w+) +/devices/virtual/block/(dm-0|loop0) ",
        enrolled.pull("/tmp/events").decode(),
        re.MULTILINE,
    )
    gone = [float(when) for when, what, node in events if (what, node) == ("remove", "dm-0")]
    assert len(gone) == 1
    entries = enrolled.journal(CRYPTBACK_DRIVE="home")
    told = {entry["MESSAGE"]: int(entry["__MONOTONIC_TIMESTAMP"]) / 1e6 for entry in entries}
    assert entries[-1]["MESSAGE"] == last["MESSAGE"]
    assert gone[0] < told["You may unplug home now."] <= told[last["MESSAGE"]]
    assert max(float(when) for when, _what, _node in events) < told[last["MESSAGE"]]


def test_status_shows_the_drives(backed_up: Machine) -> None:
    told = r"idle on /dev/sda1, last run (just now|\d+ min ago): done, may be unplugged"
    assert re.fullmatch(f"home  {told}\n", backed_up.run(["cryptback", "status"]).out)
    detail = backed_up.run(["cryptback", "status", "home"], user="me").out.splitlines()
    uuid = backed_up.stick("main").uuid
    assert re.fullmatch(f"home: {told}", detail[0])
    assert detail[1] == f"  drive: UUID {uuid}, file backup.luks"
    (values,) = json.loads(backed_up.run(["cryptback", "status", "--json"]).out)["drives"]
    assert (values["name"], values["state"], values["safe"]) == ("home", "idle", True)
    assert (values["uuid"], values["last_outcome"]) == (uuid, "done")
    assert refusal(backed_up, "status", "nobody")[0] == 10


def test_status_watch_follows_a_run(enrolled: Machine) -> None:
    random_files(enrolled, 4, 8)
    stick = enrolled.stick("main")
    watched = "exec cryptback status --watch{} > /tmp/{} 2>&1"
    watchers = [
        enrolled.spawn(watched.format(" --json", "json")),
        enrolled.spawn(watched.format("", "text")),
    ]
    for name in ("json", "text"):
        enrolled.run(f"until grep -q home /tmp/{name}; do sleep 0.1; done")
    syncing(enrolled, stick)
    stick.throttle(4 * MIB)
    news(enrolled, '"done": [1-9][0-9]{7}').wait(timeout=PATIENCE)
    stick.throttle(0)
    ended(enrolled)
    news(enrolled, '"state": "idle"').wait()
    enrolled.run(["pkill", "-INT", "-f", "^/usr/bin/python3 -I /usr/bin/cryptback status --watch"])
    assert [watcher.wait().code for watcher in watchers] == [0, 0]
    text = enrolled.pull("/tmp/text").decode()
    assert re.search(r"^home: syncing, \d+ % of 32\.\d MiB", text, re.MULTILINE)
    assert text.splitlines()[-1].startswith("home: idle on /dev/sda1")
    events = [json.loads(line) for line in enrolled.pull("/tmp/json").decode().splitlines()]
    assert {event["event"] for event in events} == {"drive"}
    phases = list(dict.fromkeys(event["drive"]["phase"] for event in events))
    wanted = ["attaching", "unlocking", "mounting", "comparing", "syncing", "locking", "proving"]
    assert [phase for phase in phases if phase in ("syncing", "locking")] == ["syncing", "locking"]
    assert [phase for phase in wanted if phase in phases] == [
        phase for phase in phases if phase in wanted
    ]
    done = [event["drive"]["done"] for event in events if event["drive"]["phase"] == "syncing"]
    assert done == sorted(done)
    assert len(set(done)) > 2


def test_watch_shows_a_bar_on_a_terminal(enrolled: Machine) -> None:
    enrolled.stick("main").plug()
    ended(enrolled)
    random_files(enrolled, 4, 4)
    command = "script --quiet --return --command 'cryptback run home' /tmp/terminal"
    assert enrolled.run(command, timeout=PATIENCE).code == 0
    shown = enrolled.pull("/tmp/terminal").decode()
    assert re.search(r"home: syncing .*━", shown)
    assert "You may unplug home now." in shown


def test_history_lists_the_runs(backed_up: Machine) -> None:
    lines = backed_up.run(["cryptback", "history"], user="me").out.splitlines()
    day = r"\d{4}-\d\d-\d\d \d\d:\d\d"
    assert re.fullmatch(
        day + r"  home  backup  done in \d+:\d\d: \d+ files, .* MiB; 2 files changed \(8 B\)",
        lines[0],
    )
    assert re.match(day + "  home  init  done in", lines[1])
    assert len(lines) == 2
    last, first = history(backed_up)
    assert (last["job"], first["job"]) == ("backup", "init")
    assert (last["outcome"], last["changed_files"], last["safe"]) == ("done", 2, True)
    assert 0 < last["started"] <= last["finished"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", last["version"])
    shown = backed_up.run(["cryptback", "history", "home", "--limit", "1", "--json"]).out
    assert [run["id"] for run in json.loads(shown)["runs"]] == [last["id"]]


def test_run_backs_up_and_ends_with_0(enrolled: Machine) -> None:
    stick = enrolled.stick("main")
    stick.plug()
    ended(enrolled)
    enrolled.run("echo new > /home/me/new")
    told = enrolled.run(["cryptback", "run", "home"], timeout=PATIENCE).out
    assert "home: syncing\n" in told
    assert re.search(r"^home: finished: .*; 1 file changed \(4 B\) in \d+:\d\d\.$", told, re.M)
    assert told.endswith("You may unplug home now.\n")
    command = ["cryptback", "run", "home", "--json"]
    lines = [json.loads(line) for line in enrolled.run(command, timeout=PATIENCE).out.splitlines()]
    assert [lines[0]["event"], lines[-1]["event"]] == ["begun", "result"]
    assert {line["event"] for line in lines[1:-1]} == {"progress"}
    assert (lines[-1]["outcome"], lines[-1]["id"]) == ("done", lines[0]["run"])
    assert begun(enrolled) == 3


def test_run_tells_by_its_exit_code_why_not(enrolled: Machine) -> None:
    code, told = refusal(enrolled, "run", "home")
    assert code == 75
    assert "The drive home is not plugged in." in told
    code, told = refusal(enrolled, "run", "nobody")
    assert code == 10
    assert "nobody" in told
    assert refusal(enrolled, "cancel", "nobody")[0] == 10
    assert refusal(enrolled, "eject", "nobody")[0] == 10
    assert refusal(enrolled, "eject", "home")[0] == 75
    code, told = refusal(enrolled, "cancel", "home")
    assert code == 1
    assert "Nothing is going on with home." in told


def test_cancel_stops_a_run_and_tells_who_waits_for_it(enrolled: Machine) -> None:
    enrolled.stick("main").plug()
    ended(enrolled)
    random_files(enrolled, 4, 8)
    running = run_in_background(enrolled)
    code, told = refusal(enrolled, "run", "home")
    assert code == 11
    assert "already going on with home" in told
    cancelled = enrolled.run(["cryptback", "cancel", "home"])
    assert cancelled.out.endswith("home: It was cancelled. Everything is locked.\n")
    result = running.wait(check=False)
    assert result.code == 130
    assert "home was cancelled" in result.err
    assert "You may unplug home now." in result.out
    assert settled(enrolled)["safe"]
    assert outcomes(enrolled) == ["done", "cancelled"]
    versions = [run["version"] for run in history(enrolled)]
    assert versions[0] == ""
    # To cancel is no failure of the drive: a run now takes over what was copied.
    assert enrolled.run(["cryptback", "run", "home"], timeout=PATIENCE).code == 0


def test_ctrl_c_cancels_a_run_in_order(enrolled: Machine) -> None:
    enrolled.stick("main").plug()
    ended(enrolled)
    random_files(enrolled, 4, 8)
    running = run_in_background(enrolled)
    enrolled.run(["pkill", "-INT", "-f", "^/usr/bin/python3 -I /usr/bin/cryptback run home"])
    assert running.wait(timeout=PATIENCE, check=False).code == 130
    assert outcomes(enrolled) == ["done", "cancelled"]


def test_anybody_may_look_and_not_everybody_may_act(backed_up: Machine) -> None:
    inside = ["busctl", "introspect", "org.cryptback1", "/org/cryptback1"]
    shown = backed_up.run(inside, user="me").out
    for member in (".ListDrives", ".GetHistory", ".Run", ".Eject", ".DriveChanged"):
        assert member in shown
    answer = json.loads(backed_up.run([*CALL, "GetDrive", "s", "home"], user="me").out)
    assert answer["data"][0]["state"]["data"] == "idle"
    answer = json.loads(backed_up.run([*CALL, "ListDrives"], user="me").out)
    assert [values["name"]["data"] for values in answer["data"][0]] == ["home"]
    backed_up.run([*CALL, "GetHistory", "su", "home", "5"], user="me")
    for call in (["Run", "sa{sv}", "home", "0"], ["Cancel", "s", "home"], ["Eject", "s", "home"]):
        with pytest.raises(CommandFailed, match="without an administrator"):
            backed_up.run([*CALL, *call], user="me")
    code, told = refusal(backed_up, "run", "home", user="me")
    assert code == 1
    assert "You may not do that without an administrator." in told
    assert settled(backed_up)["safe"]
    assert begun(backed_up) == 1


def test_a_strangers_text_reaches_no_terminal_and_no_journal_raw(enrolled: Machine) -> None:
    """A file that changes while it is read is named in a warning, however it is called."""
    path = f"/home/me/{EVIL}"
    enrolled.run(["/bin/sh", "-c", 'head -c 80M /dev/urandom > "$1"', "sh", path])
    stick = enrolled.stick("main")
    hold(enrolled, stick, at_least=MIB)  # before, rsync may not have looked at it yet
    enrolled.run(["/bin/sh", "-c", 'echo more >> "$1"', "sh", path])
    go_on(enrolled)
    last = ended(enrolled)
    assert last["CRYPTBACK_OUTCOME"] == "warnings"
    shown = {
        command: enrolled.run(command).stdout
        for command in (
            "cryptback status home",
            "cryptback history",
            "systemctl status cryptbackd",
            f"journalctl -u {UNIT} -o cat --all",
        )
    }
    for command, output in shown.items():
        assert rb"\x1b[31m\n<3>cryptbackd: forged" in output, command
        assert not re.search(rb"[\x00-\x08\x0b-\x1f\x7f]", output.replace(b"\xe2", b"")), command
    assert not [
        entry for entry in enrolled.journal(UNIT) if re.search(r"[\x00-\x1f]", message(entry))
    ]
    assert drive(enrolled)["warnings"] == [
        r'"/home/me/evil\x1b]0;title\x07\x1b[31m\n<3>cryptbackd: forged" changed while it was read.'
    ]


def message(entry: Entry) -> str:
    """An entry's text; journald gives what is not plain text as a list of bytes."""
    text: Any = entry["MESSAGE"]
    return bytes(text).decode() if isinstance(text, list) else str(text)


def resident(vm: Machine) -> float:
    """The daemon's resident memory, in MiB."""
    pid = vm.run(["systemctl", "show", "-P", "MainPID", UNIT]).out.strip()
    status = vm.pull(f"/proc/{pid}/status").decode()
    found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
    assert found
    return int(found[1]) / 1024


@pytest.mark.timeout(900)
@pytest.mark.parametrize("runs", [5, 20])
def test_the_daemon_stays_small(
    enrolled: Machine, runs: int, record_property: Callable[[str, object], None]
) -> None:
    before = resident(enrolled)
    enrolled.stick("main").plug()
    ended(enrolled)
    for _ in range(runs - 1):
        enrolled.run(RUN_AGAIN, timeout=PATIENCE)
    assert settled(enrolled)["state"] == "idle"
    after = resident(enrolled)
    told = f"{after:.1f} MiB after {runs} runs ({before:.1f} MiB before the first)"
    record_property("resident memory of the daemon", told)
    assert len(outcomes(enrolled)) == runs
    assert after <= 40, told


def test_an_idle_daemon_wakes_up_for_its_watchdog_only(
    backed_up: Machine, record_property: Callable[[str, object], None]
) -> None:
    """With the drive in, after a run: each return of epoll_wait is followed by a ping."""
    status_text(backed_up, "idle")
    pid = backed_up.run(["systemctl", "show", "-P", "MainPID", UNIT]).out.strip()
    seconds = 65
    trace = f"timeout --signal=INT {seconds} strace -f -o /tmp/trace -p {pid}"
    backed_up.run(trace, check=False, timeout=seconds + 60)
    lines = backed_up.pull("/tmp/trace").decode().splitlines()
    woken = [line for line in lines if re.search(r"epoll_wait.*= \d+$", line)]
    pings = [line for line in lines if "WATCHDOG=1" in line]
    told = f"{len(woken)} in {seconds} s, of which {len(pings)} for the watchdog"
    record_property("wake-ups of the idle daemon", told)
    assert 2 <= len(pings) <= 3, told
    assert len(woken) == len(pings), told
