"""What the tests of the agent share: a session of the user `me`, and a person who sits there."""

from __future__ import annotations

import base64
import json

from tests.machine import Machine
from tests.machine.guest import Result, Running

AGENT = "cryptback-agent.service"
PLACE = "/run/person"
"""Not among the files that are backed up, which must not change meanwhile."""
RC = ".config/python_keyring/keyringrc.cfg"
NO_KEYRING = "[backend]\ndefault-keyring=keyring.backends.fail.Keyring\n"
PROGRAM = "/usr/local/bin/person"

PERSON = r"""#!/usr/bin/python3 -I
# Speaks pinentry's protocol in the place of a person: what is said is written down, and what is
# asked is answered in turn. None: dismissed. "...": never answered.
import getpass, json, sys, time

place = "/run/person/" + getpass.getuser()
print("OK", flush=True)
for line in sys.stdin:
    verb = line.split()[0]
    with open(f"{place}.told", "a") as file:
        file.write(line)
    if verb in ("GETPIN", "CONFIRM"):
        with open(f"{place}.json") as file:
            answers = json.load(file)
        answer = answers.pop(0) if answers else None
        with open(f"{place}.json", "w") as file:
            json.dump(answers, file)
        if answer == "...":
            time.sleep(600)
        if answer is None:
            print("ERR 83886179 Operation cancelled <Pinentry>", flush=True)
            continue
        if verb == "GETPIN":
            print("D " + answer.replace("%", "%25"), flush=True)
    print("OK", flush=True)
"""


def own(vm: Machine, owner: str | None = "me") -> None:
    """The drive is `owner`'s, and nothing on this computer has its passphrase.

    The user's own files, among which a keyring writes, are not backed up.
    """
    edits = ["-e", 's|"/home/me", *||']
    if owner is not None:
        edits += ["-e", f'1i owner = "{owner}"']
    vm.run(["sed", "-i", *edits, "/etc/cryptback/drives.d/home.toml"])
    vm.run(["rm", "-f", "/etc/credstore/cryptback.home"])


def as_user(
    vm: Machine, command: list[str], *, user: str = "me", check: bool = True, **around: str
) -> Result:
    """Run a command as what is started in a session of the user."""
    return vm.run(_inside(vm, command, user, around), user=user, check=check)


def spawn_as_user(
    vm: Machine,
    command: list[str],
    input: bytes = b"",  # noqa: A002
    **around: str,
) -> Running:
    """Start such a command of the user `me`."""
    return vm.spawn(_inside(vm, command, "me", around), input, user="me")


def _inside(vm: Machine, command: list[str], user: str, around: dict[str, str]) -> list[str]:
    place = f"/run/user/{vm.run(['id', '-u', user]).out.strip()}"
    told = {"XDG_RUNTIME_DIR": place, "DBUS_SESSION_BUS_ADDRESS": f"unix:path={place}/bus"}
    return ["env", *(f"{key}={value}" for key, value in {**told, **around}.items()), *command]


def begin(vm: Machine, *answers: str | None, user: str = "me", display: bool = True) -> None:
    """Begin a session: a service manager of the user, with a display and a person in front.

    The display is a name alone, since the person needs none to be asked.  There is no keyring
    before :func:`keyring`.
    """
    vm.push(PROGRAM, PERSON, 0o755)
    answer(vm, *answers, user=user)
    vm.push(f"/home/{user}/{RC}", NO_KEYRING)
    vm.run(["chown", "-R", f"{user}:{user}", f"/home/{user}/.config"])
    # Nothing but a service: whoever lingers has one without a login.
    vm.run(["loginctl", "enable-linger", user])
    vm.run(["systemctl", "start", f"user@{vm.run(['id', '-u', user]).out.strip()}.service"])
    # As a desktop does, when the agent is long there.
    names = [f"CRYPTBACK_PINENTRY={PROGRAM}", *(["DISPLAY=:7"] if display else [])]
    as_user(vm, ["systemctl", "--user", "set-environment", *names], user=user)
    registered(vm)


def registered(vm: Machine, *, since: str | None = None) -> None:
    """Wait for the agent's registration."""
    vm.wait_journal("Registered with cryptbackd", since=since, _SYSTEMD_USER_UNIT=AGENT, timeout=60)


def answer(vm: Machine, *answers: str | None, user: str = "me") -> None:
    """What the person answers from now on."""
    vm.run(["mkdir", "-p", "-m", "1777", PLACE])
    vm.push(f"{PLACE}/{user}.json", json.dumps(answers))
    vm.run(["chown", user, f"{PLACE}/{user}.json"])
    vm.run(["rm", "-f", f"{PLACE}/{user}.told"])


def told(vm: Machine, user: str = "me") -> list[str]:
    """What the person was told since the last answers were set."""
    return vm.run(f"cat {PLACE}/{user}.told", check=False).out.splitlines()


def waits(vm: Machine) -> bool:
    """Whether the person is looking at a question."""
    return vm.run(["pgrep", "--full", PROGRAM], check=False).code == 0


def asked(vm: Machine, verb: str = "GETPIN") -> int:
    """How often the person was asked."""
    return told(vm).count(verb)


def wait_asked(vm: Machine, times: int = 1) -> None:
    """Wait until the person was asked so often."""
    script = (
        f'until [ "$(grep -c GETPIN {PLACE}/me.told 2> /dev/null)" = {times} ]; do sleep 0.1; done'
    )
    vm.run(["timeout", "60", "sh", "-c", script], timeout=70)


def said(vm: Machine) -> str:
    """What the agent said."""
    entries = vm.journal(_SYSTEMD_USER_UNIT=AGENT)
    return "\n".join(str(entry["MESSAGE"]) for entry in entries)


def keyring(vm: Machine, password: str = "of the login") -> None:
    """A gnome-keyring of the user, unlocked as a login does it."""
    vm.run(["rm", f"/home/me/{RC}"])
    # The one that the desktop would start is not to be in the way.
    socket = ["systemctl", "--user", "stop", "gnome-keyring-daemon.socket"]
    as_user(vm, socket, check=False)
    data = base64.b64encode(password.encode()).decode()
    daemon = ["/usr/bin/gnome-keyring-daemon", "--foreground", "--unlock", "--components=secrets"]
    unit = ["systemd-run", "--user", "--unit=keyring", "--property=StandardInput=data"]
    as_user(vm, [*unit, f"--property=StandardInputData={data}", *daemon])
    script = (
        "until busctl --user get-property org.freedesktop.secrets"
        " /org/freedesktop/secrets/collection/login org.freedesktop.Secret.Collection Locked"
        " | grep -q false; do sleep 0.2; done"
    )
    as_user(vm, ["timeout", "60", "sh", "-c", script])


def kept(vm: Machine, passphrase: str | None = None) -> str:
    """What the keyring has for the stick, after `passphrase` was put there (None: as it is)."""
    path = ["python3", "-I", "-c"]
    put = "import keyring, sys; keyring.set_password('cryptback', *sys.argv[1:])"
    get = "import keyring, sys; print(keyring.get_password('cryptback', sys.argv[1]))"
    if passphrase is not None:
        as_user(vm, [*path, put, uuid(vm), passphrase])
    return as_user(vm, [*path, get, uuid(vm)]).out.strip()


def uuid(vm: Machine) -> str:
    """The UUID of the volume, as cryptsetup reads it."""
    return vm.run(["cryptsetup", "luksUUID", "/var/lib/cryptbackd/headers/home"]).out.strip()


def memory(vm: Machine, pid: int, secret: str) -> int:
    """How often a secret is found in the memory of a process."""
    return int(vm.run(["python3", "-I", "-c", SEARCH, str(pid)], secret.encode()).out)


SEARCH = r"""
import base64, sys

secret = sys.stdin.buffer.read()
forms = [secret, secret.decode().encode("utf-16-le"), base64.b64encode(secret)]
found = 0
with open(f"/proc/{sys.argv[1]}/maps") as maps, open(f"/proc/{sys.argv[1]}/mem", "rb", 0) as mem:
    for line in maps:
        span, rights = line.split()[:2]
        if not rights.startswith("rw"):
            continue
        start, end = (int(word, 16) for word in span.split("-"))
        try:
            mem.seek(start)
            data = mem.read(end - start)
        except (OSError, OverflowError, ValueError):
            continue
        found += sum(data.count(form) for form in forms)
print(found)
"""
