"""The agent of a session: who is asked, what comes of it, and that it can hurt nobody."""

from __future__ import annotations

import json
import time

import pytest

from tests.machine import Machine
from tests.machine.enroll import PASSPHRASE
from tests.machine.guest import Running
from tests.vm import runs, session
from tests.vm.seat import sit_down
from tests.vm.test_keys import agent as ask_password_agent
from tests.vm.test_keys import told

BY_THE_AGENT = "unlocked with the passphrase from agent."

TERMINAL = r"""
import os, pty, sys, termios

pid, terminal = pty.fork()
if pid == 0:
    termios.tcsetwinsize(0, (24, 80))
    os.environ["TERM"] = "linux"
    os.execvp("cryptback-agent", ["cryptback-agent"])
seen, typed = b"", False
while True:
    try:
        data = os.read(terminal, 4096)
    except OSError:
        break
    seen += data
    if b"Passphrase:" in seen and not typed:
        os.write(terminal, sys.stdin.buffer.read() + b"\r")
        typed = True
    if b"Registered" in seen:
        open("/run/person/registered", "w").close()
sys.stdout.buffer.write(seen)
"""
"""A person types `cryptback-agent` in a terminal, and there the passphrase."""

HOSTILE = r"""
import asyncio, os, sys, time

from dbus_fast import BusType, Message
from dbus_fast.aio import MessageBus

held = []


def act(fd, how):
    os.set_blocking(fd, False)
    if how == "never":
        held.append(fd)
    elif how == "nothing":
        os.close(fd)
    elif how == "a mebibyte":
        try:
            while True:
                os.write(fd, b"x" * (1 << 20))
        except BlockingIOError:
            held.append(fd)
    elif how == "too much":
        os.write(fd, b"x" * 4000)
        os.close(fd)
    elif how == "hands it on":
        if os.fork() == 0:
            time.sleep(600)
        os.write(fd, b"guess")
        os.close(fd)
    elif how == "leaves":
        os._exit(0)


async def main():
    bus = await MessageBus(bus_type=BusType.SYSTEM, negotiate_unix_fd=True).connect()

    def heard(message):
        if message.member == "GetPassphrase":
            for fd in message.unix_fds:
                act(fd, sys.argv[1])
            return Message.new_method_return(message)

    bus.add_message_handler(heard)
    for _ in range(int(sys.argv[2])):
        await bus.call(Message(
            destination="org.cryptback1", path="/org/cryptback1",
            interface="org.cryptback1.Manager", member="RegisterAgent"))
    print("ready", flush=True)
    with open("/run/person/ready", "w"):
        pass
    await asyncio.sleep(600)


asyncio.run(main())
"""
"""An agent of the owner that means no good."""


def next_answers(vm: Machine) -> None:
    """Have the source after the agents answer: systemd-ask-password's protocol."""
    ask_password_agent(vm, PASSPHRASE)


def agent_pid(vm: Machine) -> int:
    shown = session.as_user(vm, ["systemctl", "--user", "show", "-P", "MainPID", session.AGENT])
    return int(shown.out)


def test_every_session_has_one_and_it_registers_again(enrolled: Machine) -> None:
    vm = enrolled
    session.begin(vm)
    enabled = session.as_user(vm, ["systemctl", "--user", "is-enabled", session.AGENT])
    assert enabled.out.strip() == "enabled"
    here = runs.now(vm)
    vm.run(["systemctl", "restart", "cryptbackd"])
    session.registered(vm, since=here)


def test_it_never_starts_the_daemon(enrolled: Machine) -> None:
    vm = enrolled
    vm.run(["systemctl", "stop", "cryptbackd"])
    vm.run(["loginctl", "enable-linger", "me"])
    vm.run(["systemctl", "start", "user@1000.service"])
    session.as_user(vm, ["systemctl", "--user", "restart", session.AGENT])
    time.sleep(3)
    session.as_user(vm, ["systemctl", "--user", "is-active", session.AGENT])
    assert vm.run(["systemctl", "is-active", "cryptbackd"], check=False).out.strip() == "inactive"
    vm.run(["systemctl", "start", "cryptbackd"])
    session.registered(vm)


def test_the_owner_is_asked_and_the_drive_named(enrolled: Machine) -> None:
    vm = enrolled
    session.own(vm)
    session.begin(vm, PASSPHRASE)
    vm.stick("main").plug()
    assert runs.ended(vm)["CRYPTBACK_OUTCOME"] == "done"
    assert BY_THE_AGENT in told(vm)
    (line,) = [line for line in session.told(vm) if line.startswith("SETDESC")]
    assert "The backup drive home was plugged in" in line
    for pid in (agent_pid(vm), int(vm.run("systemctl show -P MainPID cryptbackd").out)):
        assert session.memory(vm, pid, PASSPHRASE) == 0


def test_a_wrong_answer_is_told_and_asked_again(enrolled: Machine) -> None:
    vm = enrolled
    session.own(vm)
    session.begin(vm, "wrong", PASSPHRASE)
    vm.stick("main").plug()
    assert runs.ended(vm)["CRYPTBACK_OUTCOME"] == "done"
    assert session.asked(vm) == 2
    assert "SETERROR That passphrase was wrong." in session.told(vm)
    assert told(vm).count("is wrong.") == 1


def test_dismissed_it_is_not_asked_again_in_the_run(enrolled: Machine) -> None:
    vm = enrolled
    session.own(vm)
    session.begin(vm, None, PASSPHRASE)
    ask_password_agent(vm, "wrong", PASSPHRASE)
    vm.stick("main").plug()
    assert runs.ended(vm)["CRYPTBACK_OUTCOME"] == "done"
    assert session.asked(vm) == 1
    assert "unlocked with the passphrase from prompt." in told(vm)
    assert "The question was dismissed." in session.said(vm)


def test_after_two_minutes_the_next_source_is_asked(enrolled: Machine) -> None:
    vm = enrolled
    session.own(vm)
    session.begin(vm, "...")
    vm.stick("main").plug()
    session.wait_asked(vm)
    next_answers(vm)
    assert runs.ended(vm, timeout=240)["CRYPTBACK_OUTCOME"] == "done"
    assert "unlocked with the passphrase from prompt." in told(vm)
    assert not session.waits(vm)


def test_an_agent_that_dies_in_the_middle_is_no_answer(enrolled: Machine) -> None:
    vm = enrolled
    session.own(vm)
    session.begin(vm, "...")
    vm.stick("main").plug()
    session.wait_asked(vm)
    next_answers(vm)
    vm.run(["kill", "-KILL", str(agent_pid(vm))])
    assert runs.ended(vm)["CRYPTBACK_OUTCOME"] == "done"
    assert "unlocked with the passphrase from prompt." in told(vm)
    assert not session.waits(vm)


def type_it(vm: Machine) -> Running:
    """A person with a terminal, on which the agent asks with the real pinentry."""
    vm.run(["mkdir", "-p", "-m", "1777", session.PLACE])
    typing = session.spawn_as_user(
        vm, ["python3", "-I", "-c", TERMINAL], PASSPHRASE.encode(), LANG="C.UTF-8"
    )
    appears(vm, "/run/person/registered")
    return typing


def shown(vm: Machine, typing: Running) -> str:
    """What was to be seen on the terminal, once the agent on it is ended."""
    vm.run(["pkill", "--full", "bin/cryptback-agent"])
    return typing.wait(check=False).out


def appears(vm: Machine, path: str) -> None:
    """Wait until there is such a file."""
    vm.run(["timeout", "60", "sh", "-c", f"until [ -e {path} ]; do sleep 0.1; done"], timeout=70)


def test_the_first_of_two_wins_and_the_other_question_goes(enrolled: Machine) -> None:
    vm = enrolled
    session.own(vm)
    session.begin(vm, "...")
    typing = type_it(vm)
    vm.stick("main").plug()
    assert runs.ended(vm)["CRYPTBACK_OUTCOME"] == "done"
    assert BY_THE_AGENT in told(vm)
    assert not session.waits(vm)
    assert PASSPHRASE not in shown(vm, typing)


def test_pinentry_asks_on_a_terminal(enrolled: Machine) -> None:
    """The real one, in curses."""
    vm = enrolled
    session.own(vm)
    typing = type_it(vm)
    vm.stick("main").plug()
    assert runs.ended(vm)["CRYPTBACK_OUTCOME"] == "done"
    assert BY_THE_AGENT in told(vm)
    seen = shown(vm, typing)
    assert "The backup drive home was plugged in" in seen
    assert PASSPHRASE not in seen


def test_without_display_and_terminal_the_next_source_is_asked(enrolled: Machine) -> None:
    vm = enrolled
    session.own(vm)
    session.begin(vm, PASSPHRASE, display=False)
    next_answers(vm)
    vm.stick("main").plug()
    assert runs.ended(vm)["CRYPTBACK_OUTCOME"] == "done"
    assert session.asked(vm) == 0
    assert "no display and no terminal to ask on" in session.said(vm)


def test_an_agent_of_somebody_else_never_sees_a_request(enrolled: Machine) -> None:
    vm = enrolled
    session.own(vm)
    vm.run(["useradd", "--create-home", "--uid", "1001", "you"])
    session.begin(vm, PASSPHRASE, user="you")
    next_answers(vm)
    vm.stick("main").plug()
    assert runs.ended(vm)["CRYPTBACK_OUTCOME"] == "done"
    assert "unlocked with the passphrase from prompt." in told(vm)
    assert session.told(vm, "you") == []


def test_without_an_owner_a_user_who_is_not_there_is_not_asked(enrolled: Machine) -> None:
    """Lingering is no session: nobody sits there."""
    vm = enrolled
    session.own(vm, None)
    session.begin(vm, PASSPHRASE)
    next_answers(vm)
    vm.stick("main").plug()
    assert runs.ended(vm)["CRYPTBACK_OUTCOME"] == "done"
    assert session.asked(vm) == 0


def test_without_an_owner_who_sits_at_the_computer_is_asked(enrolled: Machine) -> None:
    vm = enrolled
    session.own(vm, None)
    session.begin(vm, PASSPHRASE)
    sit_down(vm)
    vm.stick("main").plug()
    assert runs.ended(vm)["CRYPTBACK_OUTCOME"] == "done"
    assert BY_THE_AGENT in told(vm)
    vm.run(["systemctl", "stop", "seat"])


def test_who_logs_in_later_is_asked_for_what_failed_before(enrolled: Machine) -> None:
    """The drive was in when the computer was switched on, say."""
    vm = enrolled
    session.own(vm)
    ask_password_agent(vm, None)
    vm.stick("main").plug()
    assert runs.ended(vm)["CRYPTBACK_OUTCOME"] == "failed"
    here = runs.now(vm)
    session.begin(vm, PASSPHRASE)
    assert runs.ended(vm, since=here)["CRYPTBACK_OUTCOME"] == "done"
    assert "home: somebody is here now who can be asked for the passphrase." in told(vm)
    assert told(vm).count(BY_THE_AGENT) == session.asked(vm) == 1


def test_what_was_dismissed_is_not_asked_for_anew(enrolled: Machine) -> None:
    vm = enrolled
    session.own(vm)
    session.begin(vm, None)
    ask_password_agent(vm, None)
    vm.stick("main").plug()
    assert runs.ended(vm)["CRYPTBACK_OUTCOME"] == "failed"
    here = runs.now(vm)
    session.as_user(vm, ["systemctl", "--user", "restart", session.AGENT])
    session.registered(vm, since=here)
    time.sleep(25)
    assert (session.asked(vm), runs.begun(vm)) == (1, 1)


@pytest.mark.parametrize("how", ["nothing", "too much", "leaves"])
def test_what_is_no_answer_leads_to_the_next_source(enrolled: Machine, how: str) -> None:
    vm = enrolled
    session.own(vm)
    hostile(vm, how)
    next_answers(vm)
    vm.stick("main").plug()
    assert runs.ended(vm)["CRYPTBACK_OUTCOME"] == "done"
    assert "unlocked with the passphrase from prompt." in told(vm)


@pytest.mark.parametrize(
    "how",
    ["never", *(pytest.param(h, marks=pytest.mark.slow) for h in ("a mebibyte", "hands it on"))],
)
def test_an_agent_that_does_not_answer_makes_nobody_wait(enrolled: Machine, how: str) -> None:
    """Neither who asks the daemon meanwhile, nor who stops the run."""
    vm = enrolled
    session.own(vm)
    before = pipes(vm)
    hostile(vm, how, registrations=1000)
    vm.stick("main").plug()
    vm.wait_journal("backup begun", CRYPTBACK_DRIVE="home")
    runs.wait_news(vm, '"phase": "unlocking"')
    call = ["timeout", "1", "busctl", "call", "org.cryptback1", "/org/cryptback1"]
    for _ in range(5):
        vm.run([*call, "org.cryptback1.Manager", "GetDrive", "s", "home"])
    assert runs.drive(vm)["phase"] == "unlocking"
    vm.run(["cryptback", "cancel", "home"], check=False, timeout=20)
    assert runs.ended(vm)["CRYPTBACK_OUTCOME"] == "cancelled"
    assert pipes(vm) == before


def test_one_user_has_few_agents(enrolled: Machine) -> None:
    vm = enrolled
    script = (
        "import asyncio, json\n"
        "from dbus_fast import BusType, Message\nfrom dbus_fast.aio import MessageBus\n"
        "async def main():\n"
        "    told = []\n    buses = []\n"
        "    for _ in range(6):\n"
        "        buses.append(await MessageBus(bus_type=BusType.SYSTEM).connect())\n"
        "        reply = await buses[-1].call(Message(destination='org.cryptback1',"
        " path='/org/cryptback1', interface='org.cryptback1.Manager', member='RegisterAgent'))\n"
        "        told.append(reply.error_name)\n"
        "    print(json.dumps(told))\n"
        "asyncio.run(main())\n"
    )
    told_back = json.loads(vm.run(["python3", "-I", "-c", script], user="me").out)
    assert told_back == [None] * 4 + ["org.cryptback1.Error.Refused"] * 2


def hostile(vm: Machine, how: str, registrations: int = 1) -> None:
    """Have such an agent of the owner registered."""
    vm.run(["mkdir", "-p", "-m", "1777", session.PLACE])
    vm.spawn(["python3", "-I", "-c", HOSTILE, how, str(registrations)], user="me")
    appears(vm, "/run/person/ready")


def pipes(vm: Machine) -> int:
    """How many ends of pipes the daemon has."""
    pid = vm.run(["systemctl", "show", "-P", "MainPID", "cryptbackd"]).out.strip()
    return vm.run(["ls", "-l", f"/proc/{pid}/fd"]).out.count("pipe:")
