"""A TPM2 opens the drive: with nobody at the keyboard, also after a reboot.

The TPM2 is swtpm's, which the kernel of the guest takes for a device (tpm_vtpm_proxy).
"""

from __future__ import annotations

import pytest

from tests.machine import Machine
from tests.machine.enroll import PASSPHRASE
from tests.vm.runs import ended
from tests.vm.test_keys import PLAIN, agent, asked, told
from tests.vm.test_passphrase import CREDENTIAL, change, header, opens, plugged, same

pytestmark = pytest.mark.timeout(900, func_only=True)

PIN = "4711"
UNIT = """
[Unit]
Description=A TPM2 of software
Before=cryptbackd.service
After=local-fs.target

[Service]
ExecStartPre=/usr/sbin/modprobe tpm_vtpm_proxy
ExecStart=/usr/bin/swtpm chardev --tpm2 --vtpm-proxy --tpmstate dir=/var/lib/swtpm-of-test
ExecStartPost=/bin/sh -c 'until [ -e /dev/tpmrm0 ]; do sleep 0.1; done'
TimeoutStartSec=120

[Install]
WantedBy=multi-user.target
"""


def with_tpm2(vm: Machine) -> None:
    """Give the machine a TPM2 that is there after a reboot, too."""
    vm.push("/etc/systemd/system/swtpm-of-test.service", UNIT)
    vm.run("mkdir -m 0700 /var/lib/swtpm-of-test && systemctl daemon-reload")
    vm.run(["systemctl", "enable", "--now", "swtpm-of-test.service"], timeout=180)
    # A device that the unit may use must be there when it starts.
    vm.run(["systemctl", "restart", "cryptbackd"])


def test_an_enrolled_tpm2_opens_the_drive_with_nobody_there(enrolled: Machine) -> None:
    vm = enrolled
    with_tpm2(vm)
    plugged(vm)
    done = change(vm, "enroll-tpm2", PASSPHRASE)
    assert "The TPM2 of this computer opens the drive from now on." in done.out
    assert same(vm)
    assert opens(vm, PASSPHRASE)
    before = header(vm)
    refused = change(vm, "enroll-tpm2", PASSPHRASE, check=False)
    assert "A TPM2 is enrolled already" in refused.err
    last = change(vm, "remove", PASSPHRASE, check=False)
    assert "That is the last passphrase" in last.err
    assert header(vm) == before
    vm.stick("main").pull()
    vm.run(["rm", PLAIN])
    vm.reboot()
    plugged(vm)
    assert "unlocked with the passphrase from TPM2." in told(vm)
    assert vm.run("ls /run/systemd/ask-password", check=False).out == ""
    # Taken away again it is as if it had never been there.
    change(vm, "remove", PASSPHRASE, options=("--what", "tpm2"))
    assert same(vm)
    vm.stick("main").pull()
    asking = agent(vm, PASSPHRASE)
    plugged(vm)
    assert len(asked(asking)) == 1


def test_a_pin_is_asked_for_like_a_passphrase(enrolled: Machine) -> None:
    vm = enrolled
    with_tpm2(vm)
    plugged(vm)
    words = ["cryptback", "passphrase", "home", "enroll-tpm2", "--passphrase-fd", "0"]
    vm.run([*words, "--pin-fd", "0"], f"{PASSPHRASE}\n{PIN}\n".encode(), timeout=180)
    vm.stick("main").pull()
    vm.run(["rm", PLAIN])
    vm.reboot()
    asking = agent(vm, "0815", PIN)
    plugged(vm)
    questions = [question["Message"] for question in asked(asking)]
    assert questions == [
        "PIN of this computer's TPM2 for the backup drive home:",
        "That was wrong. PIN of this computer's TPM2 for the backup drive home:",
    ]
    assert "unlocked with the passphrase from TPM2." in told(vm)
    assert PIN not in told(vm)


@pytest.mark.slow
def test_a_tpm2_that_is_another_gives_way_to_the_next_source(enrolled: Machine) -> None:
    """As after a change of the mainboard: the passphrase opens the drive as before."""
    vm = enrolled
    with_tpm2(vm)
    plugged(vm)
    change(vm, "enroll-tpm2", PASSPHRASE)
    vm.stick("main").pull()
    vm.run("systemctl stop swtpm-of-test && rm -r /var/lib/swtpm-of-test/*")
    vm.run(["systemctl", "start", "swtpm-of-test"], timeout=180)
    vm.run(["systemctl", "restart", "cryptbackd"])
    plugged(vm)
    assert "TPM2 does not open it:" in told(vm)
    assert "unlocked with the passphrase from credential." in told(vm)


def test_a_credential_that_is_sealed_to_the_tpm2(enrolled: Machine) -> None:
    vm = enrolled
    with_tpm2(vm)
    vm.run(["rm", PLAIN])
    label = "--name=cryptback.home"
    words = ["systemd-creds", "encrypt", "--with-key=tpm2", label, "-", CREDENTIAL]
    vm.run(words, PASSPHRASE.encode(), timeout=120)
    vm.reboot()
    vm.stick("main").plug()
    assert ended(vm)["CRYPTBACK_OUTCOME"] == "done"
    assert "unlocked with the passphrase from encrypted credential." in told(vm)
