"""A FIDO2 token opens the drive: one of software, which the kernel takes for a USB device."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.machine import Machine
from tests.machine.enroll import PASSPHRASE
from tests.vm.test_keys import PLAIN, agent, asked, told
from tests.vm.test_passphrase import change, plugged, same

pytestmark = pytest.mark.timeout(600, func_only=True)

TOKEN = (Path(__file__).parents[1] / "machine" / "guest" / "fido2_token.py").read_bytes()
PROGRAM = "/usr/local/lib/fido2_token.py"
UNIT = "fido2-token-of-test"
PIN = "4711"
LEAVE = "/etc/systemd/system/cryptbackd.service.d/fido2.conf"


def with_token(vm: Machine, pin: str = "") -> None:
    """Plug the token in, which the service may use as cryptbackd(8) says it."""
    vm.push(PROGRAM, TOKEN)
    vm.run(["modprobe", "uhid"])
    plug_token(vm, pin)
    vm.push(LEAVE, "[Service]\nDeviceAllow=char-hidraw rw\n")
    vm.run("systemctl daemon-reload && systemctl restart cryptbackd")


def plug_token(vm: Machine, pin: str = "") -> None:
    words = ["python3", "-I", PROGRAM, "/var/lib/fido2-token-of-test", *([pin] if pin else [])]
    vm.run(["systemd-run", f"--unit={UNIT}", "--collect", *words])
    vm.run("until [ -e /dev/hidraw0 ]; do sleep 0.1; done; udevadm settle")


def test_an_enrolled_fido2_token_opens_the_drive(enrolled: Machine) -> None:
    vm = enrolled
    with_token(vm)
    plugged(vm)
    done = change(vm, "enroll-fido2", PASSPHRASE)
    assert "The FIDO2 token opens the drive from now on." in done.out
    assert same(vm)
    vm.stick("main").pull()
    vm.run(["rm", PLAIN])
    plugged(vm)
    assert "unlocked with the passphrase from FIDO2 token." in told(vm)
    # Without the token the next source is asked.
    vm.stick("main").pull()
    vm.run(["systemctl", "stop", UNIT])
    asking = agent(vm, PASSPHRASE)
    plugged(vm)
    assert len(asked(asking)) == 1
    # Back again it can be taken away for good.
    plug_token(vm)
    change(vm, "remove", PASSPHRASE, options=("--what", "fido2"))
    assert same(vm)
    vm.stick("main").pull()
    asking = agent(vm, PASSPHRASE)
    plugged(vm)
    assert len(asked(asking)) == 1


def test_the_pin_of_a_fido2_token_is_asked_for_like_a_passphrase(enrolled: Machine) -> None:
    vm = enrolled
    with_token(vm, PIN)
    plugged(vm)
    words = ["cryptback", "passphrase", "home", "enroll-fido2", "--passphrase-fd", "0"]
    vm.run([*words, "--pin-fd", "0"], f"{PASSPHRASE}\n{PIN}\n".encode(), timeout=180)
    vm.stick("main").pull()
    vm.run(["rm", PLAIN])
    asking = agent(vm, "0815", PIN)
    plugged(vm)
    questions = [question["Message"] for question in asked(asking)]
    assert len(questions) == 2
    assert questions[0].startswith("PIN of the FIDO2 token")
    assert questions[1].startswith("That was wrong. PIN of the FIDO2 token")
    assert "unlocked with the passphrase from FIDO2 token." in told(vm)
    assert PIN not in told(vm)
