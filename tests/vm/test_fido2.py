"""A FIDO2 token opens the drive: by its presence, or with its PIN.

The token is one of software (guest/fido2_token.py), which the kernel of the guest takes for a
USB device (uhid). It always agrees that it was touched.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.machine import Machine
from tests.machine.enroll import PASSPHRASE
from tests.vm.runs import now, settled
from tests.vm.test_keys import PLAIN, agent, asked, told
from tests.vm.test_passphrase import change, header, opens, plugged, same

pytestmark = pytest.mark.timeout(900, func_only=True)

ROOT = Path(__file__).parents[2]
TOKEN = ROOT / "tests/machine/guest/fido2_token.py"
MANUAL = ROOT / "packaging/man/cryptbackd.8"
DROP_IN = "/etc/systemd/system/cryptbackd.service.d/fido2.conf"
PIN = "4711"
UNIT = """
[Unit]
Description=A FIDO2 token of software

[Service]
ExecStartPre=/usr/sbin/modprobe --all uhid hid-generic
ExecStart=/usr/bin/python3 -I /usr/local/lib/fido2_token.py /var/lib/fido2-of-test {pin}
ExecStartPost=/bin/sh -c 'until [ -e /dev/hidraw0 ]; do sleep 0.1; done'
ExecStartPost=/usr/bin/udevadm settle
TimeoutStartSec=120
"""


def with_token(vm: Machine, pin: str = "") -> None:
    """Give the machine a token, which is plugged in while its service runs."""
    vm.push("/usr/local/lib/fido2_token.py", TOKEN.read_bytes())
    vm.push("/etc/systemd/system/fido2-of-test.service", UNIT.format(pin=pin))
    vm.run(["systemctl", "daemon-reload"])


def token(vm: Machine, verb: str) -> None:
    vm.run(["systemctl", verb, "fido2-of-test"], timeout=180)


def allow(vm: Machine) -> None:
    """Let the service open tokens, as the manual says it."""
    text = re.search(r"^\[Unit\]\n.*?(?=^\.Ed$)", MANUAL.read_text(), re.MULTILINE | re.DOTALL)
    assert text is not None
    vm.push(DROP_IN, text[0])
    vm.run("systemctl daemon-reload && systemctl restart cryptbackd", timeout=120)


def test_an_enrolled_fido2_token_opens_the_drive_by_its_presence(enrolled: Machine) -> None:
    vm = enrolled
    with_token(vm)
    token(vm, "start")
    plugged(vm)
    before = header(vm)
    kept_out = change(vm, "enroll-fido2", PASSPHRASE, check=False)
    assert kept_out.code == 1
    assert "The FIDO2 token can't be opened; nothing was changed." in kept_out.err
    assert "cryptbackd(8), FIDO2 tokens" in kept_out.err
    allow(vm)
    # A device that was plugged in after the service had started.
    token(vm, "restart")
    settled(vm)
    words = ["cryptback", "passphrase", "home", "enroll-fido2", "--passphrase-fd", "0"]
    given = f"{PASSPHRASE}\n{PIN}\n".encode()
    without = vm.run([*words, "--pin-fd", "0"], given, check=False, timeout=180)
    assert "The token has no PIN; nothing was changed." in without.err
    assert header(vm) == before
    done = change(vm, "enroll-fido2", PASSPHRASE)
    assert "The FIDO2 token opens the drive from now on." in done.out
    assert same(vm)
    assert opens(vm, PASSPHRASE)
    last = change(vm, "remove", PASSPHRASE, check=False)
    assert "That is the last passphrase" in last.err
    vm.stick("main").pull()
    vm.run(["rm", PLAIN])
    token(vm, "restart")
    plugged(vm)
    assert "unlocked with the passphrase from FIDO2 token." in told(vm)
    assert vm.run("ls /run/systemd/ask-password", check=False).out == ""
    # Without it the next source is asked; and it is not needed for being taken away.
    vm.stick("main").pull()
    token(vm, "stop")
    asking = agent(vm, PASSPHRASE)
    since = now(vm)
    plugged(vm)
    assert len(asked(asking)) == 1
    lines = [entry["MESSAGE"] for entry in vm.journal(since=since, CRYPTBACK_DRIVE="home")]
    assert not [line for line in lines if "FIDO2" in line]
    change(vm, "remove", PASSPHRASE, options=("--what", "fido2"))
    assert same(vm)
    none = change(vm, "remove", PASSPHRASE, options=("--what", "fido2"), check=False)
    assert "The drive has none of that; nothing was changed." in none.err


def test_the_pin_of_a_fido2_token_is_asked_for_like_a_passphrase(enrolled: Machine) -> None:
    vm = enrolled
    with_token(vm, PIN)
    # The module that tokens need is loaded by nobody else.
    allow(vm)
    token(vm, "start")
    plugged(vm)
    before = header(vm)
    unasked = change(vm, "enroll-fido2", PASSPHRASE, check=False)
    assert "nothing was changed." in unasked.err
    assert "A token that has a PIN is enrolled with --pin." in unasked.err
    assert header(vm) == before
    words = ["cryptback", "passphrase", "home", "enroll-fido2", "--passphrase-fd", "0"]
    vm.run([*words, "--pin-fd", "0"], f"{PASSPHRASE}\n{PIN}\n".encode(), timeout=180)
    assert same(vm)
    vm.stick("main").pull()
    vm.run(["rm", PLAIN])
    asking = agent(vm, "0815", PIN)
    plugged(vm)
    questions = [question["Message"] for question in asked(asking)]
    assert questions == [
        "PIN of the FIDO2 token for the backup drive home:",
        "That was wrong. PIN of the FIDO2 token for the backup drive home:",
    ]
    assert "FIDO2 token does not open it: PIN of security token incorrect." in told(vm)
    assert "unlocked with the passphrase from FIDO2 token." in told(vm)
    assert PIN not in told(vm)
