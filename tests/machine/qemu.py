"""A QEMU process with its monitor: the machine's hardware."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.machine import cache
from tests.machine.image import Image
from tests.machine.wire import MachineLost, Wire, WireError

BINARY = "qemu-system-x86_64"
APPEND = (
    "root=/dev/vda rw console=ttyS0 quiet loglevel=4 usb_storage.delay_use=0 "
    "systemd.show_status=0 mitigations=off random.trust_cpu=1"
)
ACCELERATORS = {
    "kvm": ["-accel", "kvm", "-cpu", "max"],
    # Emulated, a program takes a quarter more time where it finds AVX and uses it.
    "tcg": ["-accel", "tcg,thread=multi,tb-size=256", "-cpu", "Nehalem"],
}


@functools.cache
def version() -> str:
    """What identifies this QEMU: a saved state is only good for the one that wrote it."""
    command = [BINARY, "--version"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[
        0
    ]


def arguments(accelerator: str) -> list[str]:
    """The part of the command line that decides about the machine as the guest sees it."""
    return [
        *["-nodefaults", "-no-user-config", "-display", "none", "-name", "machine"],
        *["-machine", "q35", *ACCELERATORS[accelerator], "-smp", "1", "-m", "1G"],
        *["-device", "virtio-blk-pci,drive=root"],
        *[
            "-device",
            "virtio-serial-pci",
            "-device",
            "virtserialport,chardev=agent,name=org.qemu.guest_agent.0",
        ],
        *["-device", "virtio-rng-pci", "-device", "vmgenid,guid=auto"],
        *["-device", "qemu-xhci,id=xhci,p2=8,p3=8"],
        *["-serial", "chardev:console", "-append", APPEND],
    ]


class Qemu:
    """A running QEMU. Its root disk is an overlay that goes with it."""

    def __init__(
        self, image: Image, backing: Path, accelerator: str, *, state: Path | None = None
    ) -> None:
        """Start a machine on top of a disk: booting, or (paused) from a state saved with it."""
        self.directory = Path(
            tempfile.mkdtemp(prefix="machine-", dir=os.environ.get("TMPDIR", "/var/tmp"))
        )
        self.disk = self.directory / "disk.qcow2"
        self.console = self.directory / "console.log"
        self.console_socket = self.directory / "console"
        self.agent_socket = self.directory / "agent"
        self._errors = self.directory / "qemu.log"
        overlay(self.disk, backing)
        file = f"file.driver=file,file.filename={self.disk}"
        blockdev = f"driver=qcow2,node-name=root,discard=unmap,cache.no-flush=on,{file}"
        command = [
            *["setpriv", "--pdeathsig", "KILL"],  # it ends with the test run, however that ends
            BINARY,
            *arguments(accelerator),
            *["-kernel", str(image.kernel), "-initrd", str(image.initrd), "-blockdev", blockdev],
            *["-chardev", f"socket,id=agent,path={self.agent_socket},server=on,wait=off"],
            *[
                "-chardev",
                f"socket,id=console,path={self.console_socket},server=on,wait=off,logfile={self.console}",
            ],
            *["-qmp", f"unix:{self.directory}/qmp,server=on,wait=off"],
            *(["-incoming", f"exec:cat '{state}'"] if state else []),
        ]
        with open(self._errors, "wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            self.monitor = self._connect()
            if state:
                while self.monitor.call("query-status")["status"] == "inmigrate":
                    time.sleep(0.005)
        except BaseException:
            self.stop()
            raise

    def _connect(self) -> Wire:
        """Connect to the monitor, as soon as QEMU has made its sockets."""
        deadline = time.monotonic() + 30
        while True:
            try:
                wire = Wire(self.directory / "qmp", "QEMU")
                break
            except OSError as error:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise MachineLost(f"QEMU did not start: {self.errors()}") from error
                time.sleep(0.005)
        try:
            wire.call("qmp_capabilities")
        except MachineLost as error:
            raise MachineLost(f"QEMU did not start: {self.errors()}") from error
        return wire

    def errors(self) -> str:
        """What QEMU itself complained about."""
        return self._errors.read_text(errors="replace").strip() if self._errors.exists() else ""

    def save(self, state: Path) -> None:
        """Stop the machine, write its state to a file, and end it; the disk stays until `stop`."""
        self.monitor.call("stop")
        self.monitor.call("migrate-set-parameters", max_bandwidth=1 << 40)
        self.monitor.call("migrate", uri=f"exec:cat > '{state}'")
        while (status := self.monitor.call("query-migrate").get("status")) != "completed":
            if status in ("failed", "cancelled"):
                raise MachineLost(f"the machine could not be saved: {self.errors()}")
            time.sleep(0.05)
        self.monitor.call("quit")
        self.process.wait(30)

    def kill(self) -> None:
        """End QEMU at once, as when the power fails."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """End QEMU and remove its files."""
        self.kill()
        if monitor := getattr(self, "monitor", None):
            monitor.close()
        shutil.rmtree(self.directory, ignore_errors=True)


def overlay(path: Path, backing: Path) -> None:
    """Make a disk that starts out with the content of another and leaves that one alone."""
    kind = "raw" if backing.suffix == ".raw" else "qcow2"
    command = [
        "qemu-img",
        "create",
        "-q",
        "-f",
        "qcow2",
        "-F",
        kind,
        "-b",
        str(backing.resolve()),
        str(path),
    ]
    subprocess.run(command, check=True)


def accelerator(image: Image) -> str:
    """KVM where it really boots this machine, else emulation; the verdict is kept in the cache."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    key = cache.digest([version(), os.uname().release, *arguments("kvm")])
    verdict = cache.entry("accelerator", key, lambda path: _probe(image, path))
    return (verdict / "verdict").read_text()


def _probe(image: Image, path: Path) -> None:
    verdict = "tcg"
    try:
        machine = Qemu(image, image.disk, "kvm")
    except MachineLost:
        pass
    else:
        try:
            if _boots(machine):
                verdict = "kvm"
        finally:
            machine.stop()
    (path / "verdict").write_text(verdict)


def _boots(machine: Qemu) -> bool:
    """Whether the guest agent comes up within the time that virtualization takes."""
    agent = Wire(machine.agent_socket, "guest agent")
    deadline = time.monotonic() + 20
    try:
        while time.monotonic() < deadline and machine.monitor.call("query-status")["running"]:
            try:
                answer: Any = agent.call("guest-ping", timeout=1)
            except MachineLost:
                continue
            return isinstance(answer, dict)
    except (MachineLost, WireError):
        pass
    finally:
        agent.close()
    return False
