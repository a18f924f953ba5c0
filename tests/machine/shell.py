"""A prompt to try things out in a machine by hand."""

from __future__ import annotations

import os
import select
import shlex
import socket
import sys
import termios
import tty
from collections.abc import Callable

from tests.machine import layers
from tests.machine.guest import CommandTimeout
from tests.machine.machine import Machine
from tests.machine.stick import MAKE
from tests.machine.wire import WireError

HELP = """\
  COMMAND …            run a shell command in the machine
  .plug [NAME]         plug a stick in (main, if no name is given)
  .pull [NAME]         pull it out
  .new NAME FS [MiB]   make a stick (FS: vfat, exfat, ext4, xfs, btrfs, none)
  .slow NAME BYTES     limit its speed to so many bytes a second (0: no limit)
  .console             the serial console (log in as root; leave with Ctrl-])
  .quit                end the machine (or Ctrl-D); nothing in it is kept"""


def shell(layer: layers.Layer) -> None:
    """Open a machine of this layer with a stick ready to plug, and do what is typed."""
    with layers.resume(layer) as vm:
        vm.stick("main", size=512 << 20, fs="vfat")
        print(f"A machine of layer {layer.name}, with a stick to plug in. Help: .help")
        while True:
            try:
                line = input("machine> ").strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                print()
                continue
            if line == ".quit":
                return
            if line:
                _act(vm, line)


def _act(vm: Machine, line: str) -> None:
    actions: dict[str, Callable[..., None]] = {
        ".plug": lambda name="main": print(vm.stick(name).plug()),
        ".pull": lambda name="main": vm.stick(name).pull(),
        ".slow": lambda name, bps: vm.stick(name).throttle(int(bps)),
        ".new": lambda name, fs, size="512": _new(vm, name, fs, int(size)),
        ".console": lambda: _console(vm),
        ".help": lambda: print(HELP),
    }
    try:
        if not line.startswith("."):
            result = vm.run(line, check=False, timeout=3600)
            print(result.out + result.err, end="")
            if result.code:
                print(f"(exit status {result.code})")
            return
        words = shlex.split(line)
        if action := actions.get(words[0]):
            action(*words[1:])
        else:
            print(HELP)
    except (AssertionError, TypeError, ValueError, WireError, CommandTimeout) as error:
        print(error)


def _new(vm: Machine, name: str, fs: str, size: int) -> None:
    if fs != "none" and fs not in MAKE:
        raise ValueError(f"a file system is one of {', '.join(MAKE)}, none")
    vm.stick(name, size=size << 20, fs=None if fs == "none" else fs)


def _console(vm: Machine) -> None:
    """Pass bytes between terminal and serial console, until Ctrl-]."""
    with socket.socket(socket.AF_UNIX) as console:
        console.connect(str(vm.qemu.console_socket))
        console.send(b"\r")
        before = termios.tcgetattr(sys.stdin)
        tty.setraw(sys.stdin)
        try:
            while True:
                ready, _, _ = select.select([sys.stdin, console], [], [])
                if console in ready:
                    if not (data := console.recv(4096)):
                        return
                    sys.stdout.buffer.write(data)
                    sys.stdout.flush()
                if sys.stdin in ready:
                    data = os.read(sys.stdin.fileno(), 1024)
                    if not data or b"\x1d" in data:
                        return
                    console.sendall(data)
        finally:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
