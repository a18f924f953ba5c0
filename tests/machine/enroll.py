"""What the third layer has beyond the installed package."""

from __future__ import annotations

from tests.machine.machine import Machine


def enroll(vm: Machine) -> None:
    """Make the layer. Its sticks belong to it: a test's `vm.stick(NAME)` is a copy of one."""
    vm.stick("main", size=512 << 20, fs="vfat", uuid="1A2B-3C4D")
