"""Saved states of the machine, each made from the one before, and resumed by every test."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tests.machine import cache, enroll, image, qemu
from tests.machine.guest import CommandFailed
from tests.machine.image import Image
from tests.machine.machine import BOOT, Machine
from tests.machine.qemu import Qemu

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Layer:
    """A state of the machine: how to get there from the one before."""

    name: str
    base: Layer | None
    """None: a machine that boots."""
    make: Callable[[Machine], None]
    inputs: Callable[[], list[bytes | str]]
    """Everything that decides about the result beside the base and the machine's hardware."""


@dataclass(frozen=True)
class Saved:
    """A layer in the cache."""

    path: Path
    image: Image
    accelerator: str

    @property
    def identity(self) -> str:
        """Differs between two builds of a layer: what was made upon one doesn't fit the other."""
        return (self.path / "identity").read_text()


def boot(vm: Machine) -> None:
    """Make the first layer: it has booted."""
    vm.wait_booted()


def package() -> Path:
    """The package under test: the newest in `dist/`, or the one in CRYPTBACKD_DEB."""
    if chosen := os.environ.get("CRYPTBACKD_DEB"):
        return Path(chosen)
    found = sorted(
        (ROOT / "dist").glob("cryptbackd_*_all.deb"), key=lambda path: path.stat().st_mtime
    )
    if not found:
        raise FileNotFoundError("no package in dist/: build it with `make deb`")
    return found[-1]


def install(vm: Machine) -> None:
    """Make the second layer: the package is installed, as apt would do it."""
    path = "/var/cache/cryptbackd.deb"
    vm.push(path, package().read_bytes())
    vm.run(f"DEBIAN_FRONTEND=noninteractive dpkg --install {path} && rm {path}", timeout=BOOT)


BOOTED = Layer("booted", None, boot, list)
INSTALLED = Layer("installed", BOOTED, install, lambda: [package().read_bytes()])
ENROLLED = Layer("enrolled", INSTALLED, enroll.enroll, lambda: [Path(enroll.__file__).read_bytes()])
ENROLLED_EXT4 = replace(
    ENROLLED, name="enrolled-ext4", make=partial(enroll.enroll, filesystem="ext4")
)
LAYERS = {layer.name: layer for layer in (BOOTED, INSTALLED, ENROLLED, ENROLLED_EXT4)}


def ensure(layer: Layer) -> Saved:
    """The layer out of the cache, built with all below it if need be."""
    if layer.base is None:
        below = None
        disk = image.ensure()
        accelerator = qemu.accelerator(disk)
        identity = disk.identity
    else:
        below = ensure(layer.base)
        disk, accelerator, identity = below.image, below.accelerator, below.identity
    # How a layer is made and saved is decided in this file: its text is part of the key.
    hardware = [qemu.version(), *qemu.arguments(accelerator)]
    key = cache.digest([identity, Path(__file__).read_bytes(), *hardware, *layer.inputs()])

    def build(path: Path) -> None:
        started = time.monotonic()
        with _start(disk, accelerator, below) as vm:
            try:
                layer.make(vm)
                _save(vm, path)
            except CommandFailed:
                for title, text in vm.report():
                    print(f"-- {title}\n{text}", file=sys.stderr)
                raise
        print(
            f"layer {layer.name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True
        )

    return Saved(cache.entry(layer.name, key, build), disk, accelerator)


def resume(layer: Layer) -> Machine:
    """A machine of its own, running from where the layer was saved."""
    saved = ensure(layer)
    return _start(saved.image, saved.accelerator, saved)


def _start(disk: Image, accelerator: str, saved: Saved | None) -> Machine:
    if saved is None:
        return Machine(Qemu(disk, disk.disk, accelerator))
    path = saved.path
    machine = Qemu(disk, path / "disk.qcow2", accelerator, state=path / "state")
    vm = Machine(machine, cursor=(path / "cursor").read_text(), layer_sticks=path / "sticks")
    try:
        vm.monitor.call("cont")
        vm.agent.wait(60)
        vm.set_clock()
    except BaseException:
        vm.close()
        raise
    return vm


def _save(vm: Machine, path: Path) -> None:
    """Save a machine into an empty directory; its sticks are pulled, as tests plug them in."""
    vm.wait_quiet()
    for stick in vm.sticks.values():
        if stick.plugged:
            stick.pull()
    shown = vm.run("journalctl --sync; journalctl --lines=1 --output=json").out
    (path / "cursor").write_text(json.loads(shown)["__CURSOR"])
    (path / "identity").write_text(uuid.uuid4().hex)
    vm.run("sync")
    vm.qemu.save(path / "state")
    shutil.move(vm.qemu.disk, path / "disk.qcow2")
    (path / "sticks").mkdir()
    for stick in vm.sticks.values():
        shutil.move(stick.path, path / "sticks" / stick.path.name)
