"""Whatever an ordinary user says on the bus, nothing comes of it that they could not do."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests import bus_calls, fuzz, hostile
from tests.fuzz import notes
from tests.machine import Machine
from tests.machine.enroll import PASSPHRASE
from tests.machine.layers import ROOT
from tests.vm.bus_words import Called, made
from tests.vm.runs import PATIENCE, UNIT, ended, now
from tests.vm.seat import at_the_seat

PLACE = "/tmp/fuzz"
CALLS = f"{PLACE}/calls"
COMMAND = ["env", f"PYTHONPATH={PLACE}", "python3", "-B", "-m", "tests.bus_calls", CALLS]
BATCH = 200
FIRST = 1
"""The seed of the first batch; each has its own."""
ERRORS = (ROOT / "docs" / "dbus.md").read_text().partition("## Errors")[2].partition("## Text")[0]
DOCUMENTED = {
    *(f"org.cryptback1.Error.{name}" for name in re.findall(r"`([A-Z]\w+)`", ERRORS)),
    *(
        f"org.freedesktop.DBus.Error.{name}"
        for name in (
            "AccessDenied", "InvalidArgs", "LimitsExceeded", "UnknownInterface", "UnknownMethod",
            "UnknownObject",
        )
    ),
}  # fmt: skip
IN_CATALOGUE, IN_ENTRY, IN_THEIRS = "canary-7f3a9b1c", "canary-51d2e8f0", "canary-77aa0c4d"
THEIRS = f"""
uuid = "11111111-2222-3333-4444-555555555555"
container = "theirs.luks"
owner = "daemon"

[backup]
include = ["/root/{IN_THEIRS}"]
"""
LOOK = r"""
for place in /etc /root /usr/local /var/lib/cryptbackd /run/cryptbackd /home; do
    find $place -printf '%p %y %m %U %G %s %T@ %C@ %l\n'
done | sort
"""
STACK = f"""
pid=$(systemctl show -P MainPID {UNIT})
echo "daemon $pid $(systemctl show -P NRestarts {UNIT})"
cut -d ' ' -f 3-5 /proc/1/mountinfo /proc/$pid/mountinfo | grep -v /run/user/ | sort
dmsetup ls
losetup --list --noheadings
"""
SALTS = r"""
import json, sys
raw = open("/var/lib/cryptbackd/headers/home", "rb").read(1 << 20)
told = json.loads(raw[4096:].split(b"\0", 1)[0])
print(json.dumps([told["digests"]["0"]["salt"], told["digests"]["0"]["digest"],
                  *(slot["kdf"]["salt"] for slot in told["keyslots"].values())]))
"""


def with_secrets(vm: Machine) -> list[str]:
    """A drive that was backed up to and is in, and what nobody but root may learn."""
    vm.run(f"mkdir -m 700 /root/kept && echo x > /root/kept/{IN_CATALOGUE}")
    entry = "/etc/cryptback/drives.d/home.toml"
    text = vm.pull(entry).decode()
    more = f'exclude = ["{IN_ENTRY}"]\ninclude = ["/root/kept", '
    assert "include = [" in text
    vm.push(entry, text.replace("include = [", more), 0o600)
    vm.push("/etc/cryptback/drives.d/theirs.toml", THEIRS, 0o600)
    vm.run("ln -s /dev/vda /home/me/link")
    vm.stick("main").plug()
    ended(vm)
    shown = vm.run(["cryptback", "find", IN_CATALOGUE, "--json"]).out
    assert f"/root/kept/{IN_CATALOGUE}" in shown
    salts: list[str] = json.loads(vm.run(["python3", "-I", "-c", SALTS]).out)
    for module in (fuzz, hostile, bus_calls):
        source = Path(str(module.__file__))
        name = "__init__.py" if module is fuzz else source.name
        vm.push(f"{PLACE}/tests/{name}", source.read_bytes())
    return [IN_CATALOGUE, IN_ENTRY, IN_THEIRS, PASSPHRASE, *salts]


def said(vm: Machine, asked: list[Called], secrets: list[str], *, seated: bool) -> dict[str, Any]:
    """What came of the calls of the user ``me``."""
    case = {"calls": [tuple(call) for call in asked], "secrets": secrets}
    vm.push(CALLS, ascii(case))
    if seated:
        out = at_the_seat(vm, *COMMAND, timeout=900).out
    else:
        out = vm.run(COMMAND, user="me", timeout=900).out
    told: dict[str, Any] = json.loads(out)
    return told


def want_harmless(told: dict[str, Any]) -> None:
    """No secret, and no error but those that are documented, in words for a person."""
    assert told["told"] == []
    for _key, text in told["errors"]:
        if _key.startswith("org.cryptback1."):
            sentence, _newline, hint = text.partition("\n")
            assert sentence.isprintable(), text
            assert hint.isprintable(), text
            assert len(text) < 1000
    names = {key.partition("\n")[0] for key, _text in told["errors"]}
    assert names <= DOCUMENTED


def say_anything(
    vm: Machine, secrets: list[str], calls: int, seconds: float, *, seated: bool
) -> tuple[Counter[str], float]:
    """Go on until both are reached; what came of them, and how long it took."""
    outcomes: Counter[str] = Counter()
    began, number = time.monotonic(), FIRST
    while outcomes.total() < calls or time.monotonic() - began < seconds:
        told = said(vm, made(number, BATCH), secrets, seated=seated)
        want_harmless(told)
        outcomes.update(told["outcomes"])
        assert '"name": "home"' in vm.run(["cryptback", "status", "--json"], user="me").out
        number += 1
    took = time.monotonic() - began
    notes.note(
        {
            "name": notes.BUS, "day": time.strftime("%Y-%m-%d", time.gmtime()),
            "cases": outcomes.total(), "seconds": round(took), "seeds": [FIRST, number - 1],
            "slowest": 0, "outcomes": dict(outcomes.most_common()),
        }
    )  # fmt: skip
    return outcomes, took


def complaints(vm: Machine, since: str) -> list[str]:
    """What the service said that it should not have to say of what a user asks."""
    messages = [str(entry.get("MESSAGE")) for entry in vm.journal(unit=UNIT, since=since)]
    return [text for text in messages if "Traceback" in text or "Warning" in text]


@pytest.mark.timeout(3600, func_only=True)
@pytest.mark.parametrize(("calls", "seconds"), [(400, 0), (10_000, 600)], ids=["short", "long"])
def test_whatever_a_user_says_on_the_bus_nothing_comes_of_it(
    enrolled: Machine, calls: int, seconds: float
) -> None:
    vm = enrolled
    # Of whoever has left the bus by the time that it looks who they were.
    vm.expect_journal("^polkitd: Error converting subject to JS object: .*NameHasNoOwner")
    secrets = with_secrets(vm)
    since, files, stack = now(vm), vm.run(LOOK).out, vm.run(STACK).out
    outcomes, _took = say_anything(vm, secrets, calls, seconds, seated=False)
    assert vm.run(STACK).out == stack
    changed = set(vm.run(LOOK).out.splitlines()) ^ set(files.splitlines())
    assert changed == set()
    assert complaints(vm, since) == []
    assert vm.journal(unit=UNIT, since=since, CRYPTBACK_DRIVE="home") == []
    assert outcomes["org.cryptback1.Error.Refused"] > calls / 10
    assert any(outcome.startswith("answered ListDrives") for outcome in outcomes)


@pytest.mark.timeout(3600, func_only=True)
def test_who_sits_at_the_computer_may_begin_and_stop_and_nothing_else(enrolled: Machine) -> None:
    vm = enrolled
    secrets = with_secrets(vm)
    kept = "/etc/cryptback /etc/credstore /root /usr/local /var/lib/cryptbackd/headers"
    look = f"find {kept} -printf '%p %y %m %U %G %s %T@ %C@ %l\\n' | sort"
    since, files = now(vm), vm.run(look).out
    pid = vm.run(["systemctl", "show", "-P", "MainPID", UNIT]).out
    outcomes, _took = say_anything(vm, secrets, 300, 0, seated=True)
    vm.run(["cryptback", "eject", "home"], timeout=PATIENCE)
    assert vm.run(["systemctl", "show", "-P", "MainPID", UNIT]).out == pid
    changed = set(vm.run(look).out.splitlines()) ^ set(files.splitlines())
    assert changed == set()
    assert complaints(vm, since) == []
    assert outcomes["org.cryptback1.Error.Refused"] > 30
    assert any(outcome.startswith("answered") for outcome in outcomes)
