"""Where the passphrase comes from, who is asked for it, and that nobody gets to see it."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.machine import Machine, Stick
from tests.machine.enroll import PASSPHRASE, credential
from tests.machine.guest import Result, Running
from tests.machine.stick import START
from tests.vm.failing import KERNEL_MISSES_IT, NO_PLYMOUTH
from tests.vm.runs import ended

PLAIN = "/etc/credstore/cryptback.home"
ENCRYPTED = "/etc/credstore.encrypted/cryptback.home"

AGENT = r"""
import configparser, ctypes, json, os, socket, sys

# https://systemd.io/PASSWORD_AGENTS
answers = json.load(sys.stdin)
directory = "/run/systemd/ask-password"
libc = ctypes.CDLL(None, use_errno=True)
watch = libc.inotify_init1(os.O_CLOEXEC)
written, moved = 0x08, 0x80
assert libc.inotify_add_watch(watch, directory.encode(), written | moved) >= 0
seen, questions = set(), []
while len(questions) < max(1, len(answers)):
    for name in sorted(os.listdir(directory)):
        if not name.startswith("ask.") or name in seen:
            continue
        seen.add(name)
        question = configparser.RawConfigParser()
        question.optionxform = str
        question.read(f"{directory}/{name}")
        ask = dict(question["Ask"])
        with open(f"/proc/{ask['PID']}/cmdline") as file:
            ask["program"] = file.read().split("\0")[0]
        if len(questions) < len(answers):
            answer = answers[len(questions)]
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.sendto(b"-" if answer is None else b"+" + answer.encode(), ask["Socket"])
        questions.append(ask)
    if len(questions) < max(1, len(answers)):
        os.read(watch, 4096)
print(json.dumps(questions))
"""
"""An agent of systemd's protocol: answers the questions one by one and prints them.

Without an answer it ends as soon as there is a question.  None: whoever is asked declines.
"""

SPY = r"""
import glob, json, os, sys, time

secret = sys.stdin.buffer.read()
programs, told = set(), set()
while not os.path.exists("/run/seen-enough"):
    for place in glob.glob("/proc/[0-9]*"):
        try:
            with open(f"{place}/cmdline", "rb") as file:
                line = file.read()
            with open(f"{place}/environ", "rb") as file:
                environment = file.read()
        except OSError:  # it has ended meanwhile
            continue
        programs.add(line.split(b"\0")[0].decode(errors="replace"))
        if secret in line.replace(b"\0", b" ") or secret in environment:
            told.add(line.decode(errors="replace"))
    time.sleep(0.02)
print(json.dumps({"programs": sorted(programs), "told": sorted(told)}))
"""
"""Looks at the command lines and environments of all processes until it is told to end."""

TYPE = r"""
import os, pty, sys, termios, time

pid, terminal = pty.fork()
if pid == 0:
    os.execvp("systemd-tty-ask-password-agent", ["systemd-tty-ask-password-agent", "--query"])
seen = b""
while True:
    try:
        data = os.read(terminal, 4096)
    except OSError:
        break
    if b"no echo" not in seen and b"no echo" in seen + data:
        # What is typed before the agent turned the terminal's echo off would be shown.
        while termios.tcgetattr(terminal)[3] & termios.ECHO:
            time.sleep(0.01)
        os.write(terminal, sys.stdin.buffer.read() + b"\n")
    seen += data
sys.stdout.buffer.write(seen)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
"""Answers the one question as a person does at the terminal agent, and prints what was shown."""


def agent(vm: Machine, *answers: str | None) -> Running:
    vm.expect_journal(NO_PLYMOUTH)
    return vm.spawn(["python3", "-I", "-c", AGENT], json.dumps(answers).encode())


def asked(running: Running) -> list[dict[str, str]]:
    """What the agent was asked."""
    found: list[dict[str, str]] = json.loads(running.wait(timeout=90).out)
    return found


def encrypt(vm: Machine, passphrase: str = PASSPHRASE, label: str = "cryptback.home") -> None:
    """Store an encrypted credential, as the message after `init` says it."""
    vm.run(["systemd-creds", "encrypt", f"--name={label}", "-", ENCRYPTED], passphrase.encode())


def no_question(vm: Machine) -> None:
    """The question is taken back.

    By whoever asked, at its own pace.  Its socket, which no agent looks at without a question,
    stays: systemd 257 is killed by the signal that it has just obeyed before it removes that.
    """
    script = "until ! ls /run/systemd/ask-password | grep -q '^ask'; do sleep 0.1; done"
    vm.run(["timeout", "10", "sh", "-c", script])


def told(vm: Machine) -> str:
    """All that the journal has of the drive."""
    return "\n".join(str(entry["MESSAGE"]) for entry in vm.journal(CRYPTBACK_DRIVE="home"))


def run(vm: Machine) -> Result:
    return vm.run(["cryptback", "run", "home"], check=False, timeout=120)


def container(vm: Machine, stick: Stick) -> str:
    """A hash of the container on the stick's image."""
    assert not stick.plugged
    copy = Path(stick.path).with_suffix(".container")
    image = f"{stick.path}?offset={START}"
    dump = ["/usr/sbin/debugfs", "-R", f"dump /backup.luks {copy}", image]
    subprocess.run(dump, check=True, capture_output=True)
    assert copy.stat().st_size == 320 << 20
    with open(copy, "rb") as file:
        found = hashlib.file_digest(file, "blake2b").hexdigest()
    copy.unlink()
    return found


# Credentials


def test_encrypted_credential_opens_the_drive_with_nobody_there(enrolled: Machine) -> None:
    vm = enrolled
    vm.run(["rm", PLAIN])
    encrypt(vm)
    vm.stick("main").plug()
    assert ended(vm)["CRYPTBACK_OUTCOME"] == "done"
    assert "unlocked with the passphrase from encrypted credential." in told(vm)
    assert vm.run("ls /run/systemd/ask-password").out == ""


def test_new_credential_is_seen_without_a_restart(enrolled: Machine) -> None:
    vm = enrolled
    show = ["systemctl", "show", "--property=MainPID,ActiveState", "cryptbackd"]
    before = vm.run(show).out
    vm.run(["rm", PLAIN])
    asking = agent(vm, None)
    vm.stick("main").plug()
    asked(asking)
    assert ended(vm)["CRYPTBACK_OUTCOME"] == "failed"
    encrypt(vm)
    assert run(vm).code == 0
    assert vm.run(show).out == before
    assert "unlocked with the passphrase from encrypted credential." in told(vm)


@pytest.mark.parametrize(
    "fault",
    ["garbage", *(pytest.param(f, marks=pytest.mark.slow) for f in ("other name", "empty"))],
)
def test_bad_credential_harms_nobody(enrolled: Machine, fault: str) -> None:
    """It is said, the next source is asked, and the daemon lives."""
    vm = enrolled
    if fault == "other name":
        encrypt(vm, label="cryptback.work")
    else:
        vm.push(ENCRYPTED, "this is not a credential\n" * 40 if fault == "garbage" else "", 0o600)
    vm.stick("main").plug()
    assert ended(vm)["CRYPTBACK_OUTCOME"] == "done"
    (complaint,) = [
        entry
        for entry in vm.journal(CRYPTBACK_DRIVE="home")
        if f"The credential {ENCRYPTED} can't be decrypted:" in entry["MESSAGE"]
    ]
    assert complaint["PRIORITY"] == "4"
    assert "systemd-creds encrypt --name=cryptback.home" in complaint["MESSAGE"]
    assert "unlocked with the passphrase from credential." in told(vm)


def test_wrong_credential_is_told_and_the_next_source_is_tried(enrolled: Machine) -> None:
    vm = enrolled
    encrypt(vm, "not the passphrase")
    vm.stick("main").plug()
    assert ended(vm)["CRYPTBACK_OUTCOME"] == "done"
    lines = told(vm)
    assert lines.count("The passphrase from the source “encrypted credential” is wrong.") == 1
    assert "unlocked with the passphrase from credential." in lines


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (f"chmod 0644 {PLAIN}", "others than root may read it (mode 0644)"),
        pytest.param(f"chown me {PLAIN}", "it belongs to user 1000", marks=pytest.mark.slow),
        pytest.param(
            f"mv {PLAIN} /root/it && ln -s /root/it {PLAIN}",
            "can't be opened",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["readable", "owner", "link"],
)
def test_credential_that_others_may_read_or_change_is_not_used(
    enrolled: Machine, change: str, fault: str
) -> None:
    vm = enrolled
    vm.run(change)
    asking = agent(vm, PASSPHRASE)
    vm.stick("main").plug()
    assert ended(vm)["CRYPTBACK_OUTCOME"] == "done"
    assert len(asked(asking)) == 1
    assert f"The credential {PLAIN} " in told(vm)
    assert fault in told(vm)
    assert "unlocked with the passphrase from prompt." in told(vm)


# Asking


def test_any_agent_is_asked(enrolled: Machine) -> None:
    """By systemd's protocol, and in the name of a process that lives."""
    vm = enrolled
    vm.run(["rm", PLAIN])
    asking = agent(vm, PASSPHRASE)
    vm.stick("main").plug()
    (question,) = asked(asking)
    assert question["Message"] == "Passphrase for the backup drive home:"
    assert question["Id"] == "cryptback:home"
    assert question["Echo"] == "0"
    assert question["program"] == "/usr/bin/systemd-ask-password"
    assert ended(vm)["CRYPTBACK_OUTCOME"] == "done"


@pytest.mark.slow
def test_terminal_agent_is_asked(enrolled: Machine) -> None:
    vm = enrolled
    vm.run(["rm", PLAIN])
    asking = agent(vm)
    vm.stick("main").plug()
    asked(asking)
    shown = vm.run(["python3", "-I", "-c", TYPE], PASSPHRASE.encode()).out
    assert "Passphrase for the backup drive home:" in shown
    assert PASSPHRASE not in shown
    assert ended(vm)["CRYPTBACK_OUTCOME"] == "done"


def test_wrong_answer_is_told_and_asked_again(enrolled: Machine) -> None:
    vm = enrolled
    vm.run(["rm", PLAIN])
    asking = agent(vm, "wrong", "wrong again", PASSPHRASE)
    vm.stick("main").plug()
    questions = [question["Message"] for question in asked(asking)]
    assert questions == [
        "Passphrase for the backup drive home:",
        "That was wrong. Passphrase for the backup drive home:",
        "That was wrong. Passphrase for the backup drive home:",
    ]
    assert ended(vm)["CRYPTBACK_OUTCOME"] == "done"
    assert told(vm).count("is wrong.") == 2


def test_three_wrong_answers_end_the_run_with_nothing_touched(enrolled: Machine) -> None:
    vm = enrolled
    vm.run(["rm", PLAIN])
    stick = vm.stick("main")
    before = container(vm, stick)
    asking = agent(vm, None)
    stick.plug()
    asked(asking)
    assert ended(vm)["CRYPTBACK_OUTCOME"] == "failed"
    asking = agent(vm, "one", "two", "three", PASSPHRASE)
    failed = run(vm)
    assert failed.code == 12
    assert "3 passphrases were tried, and none was right." in failed.err
    assert "You may unplug home now." in failed.out
    assert not asking.done()  # it was asked three times, and no more
    vm.run(["kill", str(asking.pid)])
    asking.wait(check=False)
    shown = json.loads(vm.run(["cryptback", "history", "home", "--json"]).out)["runs"]
    assert (shown[0]["outcome"], shown[0]["error"]) == ("failed", "WrongPassphrase")
    last = vm.journal(CRYPTBACK_RUN=shown[0]["id"])
    assert "3 passphrases were tried" in last[-1]["MESSAGE"]
    assert last[-1]["PRIORITY"] == "4"
    stick.pull()
    assert container(vm, stick) == before


def test_wrong_credential_counts_as_a_try(enrolled: Machine) -> None:
    vm = enrolled
    credential(vm, "home", "not the passphrase")
    asking = agent(vm, "one", "two", PASSPHRASE)
    vm.stick("main").plug()
    assert ended(vm)["CRYPTBACK_OUTCOME"] == "failed"
    assert not asking.done()
    vm.run(["kill", str(asking.pid)])
    asking.wait(check=False)
    assert told(vm).count("is wrong.") == 3
    assert "You may unplug home now." in told(vm)


@pytest.mark.parametrize("verb", ["cancel", pytest.param("eject", marks=pytest.mark.slow)])
def test_question_that_nobody_answers_blocks_nobody(enrolled: Machine, verb: str) -> None:
    vm = enrolled
    vm.run(["rm", PLAIN])
    asking = agent(vm)
    vm.stick("main").plug()
    asked(asking)
    shown = json.loads(vm.run(["cryptback", "status", "home", "--json"], timeout=20).out)
    assert (shown["state"], shown["phase"], shown["safe"]) == ("running", "unlocking", False)
    stopped = vm.run(["cryptback", verb, "home"], timeout=20)
    assert "Everything is locked." in stopped.out or "unplug" in stopped.out
    assert ended(vm)["CRYPTBACK_OUTCOME"] == "cancelled"
    no_question(vm)
    assert json.loads(vm.run(["cryptback", "status", "home", "--json"]).out)["safe"]


def test_question_goes_with_the_drive(enrolled: Machine) -> None:
    vm = enrolled
    vm.run(["rm", PLAIN])
    asking = agent(vm)
    stick = vm.stick("main")
    stick.plug()
    asked(asking)
    vm.expect_journal(KERNEL_MISSES_IT)
    stick.pull()
    assert ended(vm)["CRYPTBACK_OUTCOME"] == "failed"
    no_question(vm)


# Secrecy


def trace(vm: Machine, *options: str) -> Running:
    """Have the daemon and all that it starts watched by strace, into /run/trace."""
    pid = vm.run("systemctl show --property=MainPID --value cryptbackd").out.strip()
    words = ["strace", "--follow-forks", "--output=/run/trace", "--string-limit=4096", *options]
    watching = vm.spawn([*words, f"--attach={pid}"])
    vm.run(f"until grep -q 'TracerPid:.*[1-9]' /proc/{pid}/status; do sleep 0.05; done")
    return watching


def traced(vm: Machine, watching: Running) -> str:
    """What was seen."""
    vm.run(["pkill", "strace"])
    watching.wait(check=False)
    return vm.pull("/run/trace").decode(errors="replace")


def readers(text: str, *secrets: str) -> set[str]:
    """The programs that one of *secrets* was read by, going by what strace has written."""
    program: dict[str, str] = {}
    read: dict[str, str] = {}
    for line in text.splitlines():
        pid, _, call = line.partition(" ")
        if begun := re.match(r' *execve\("([^"]+)"', call):
            program[pid] = begun[1]
        elif got := re.search(r'"(.*)"', call):
            # cryptsetup reads a passphrase byte by byte, so as to read nothing behind it.
            read[pid] = read.get(pid, "") + got[1]
    return {
        program.get(pid, "the daemon or a worker")
        for pid, seen in read.items()
        if any(secret in seen for secret in secrets)
    }


@pytest.mark.parametrize(
    "source",
    [
        "prompt",
        *(pytest.param(s, marks=pytest.mark.slow) for s in ("credential", "encrypted credential")),
    ],
)
def test_passphrase_is_in_no_command_line_environment_or_log(
    enrolled: Machine, source: str
) -> None:
    """All processes are looked at, again and again, while the drive is unlocked and used."""
    vm = enrolled
    if source == "encrypted credential":
        encrypt(vm)
    if source == "prompt":
        vm.run(["rm", PLAIN])
        agent(vm, PASSPHRASE)
    spying = vm.spawn(["python3", "-I", "-c", SPY], PASSPHRASE.encode())
    vm.stick("main").plug()
    assert ended(vm)["CRYPTBACK_OUTCOME"] == "done"
    assert f"unlocked with the passphrase from {source}." in told(vm)
    vm.run(["touch", "/run/seen-enough"])
    seen = json.loads(spying.wait().out)
    assert "/usr/sbin/cryptsetup" in seen["programs"]
    assert seen["told"] == []
    places = "/var/lib/cryptbackd /run/cryptbackd /run/systemd/ask-password"
    # With the text itself as what it looks for, grep would find itself: hence the class.
    pattern = PASSPHRASE.replace("horse", "[h]orse")
    found = vm.run(f"grep -rs '{pattern}' {places}; journalctl | grep '{pattern}'", check=False)
    assert found.out == ""


@pytest.mark.slow
@pytest.mark.timeout(600, func_only=True)
def test_nobody_but_cryptsetup_reads_the_passphrase(enrolled: Machine) -> None:
    vm = enrolled
    vm.run("rm -r /home/me/*")
    encrypt(vm)
    watching = trace(vm, "--trace=execve,read,pread64,readv,recvfrom,recvmsg")
    vm.stick("main").plug()
    assert ended(vm, timeout=280)["CRYPTBACK_OUTCOME"] == "done"
    found = readers(traced(vm, watching), PASSPHRASE)
    assert "/usr/sbin/cryptsetup" in found
    assert found <= {"/usr/sbin/cryptsetup", "/usr/bin/systemd-creds"}
