"""The test machine: an emulated Debian computer with USB sticks, resumed within a second.

>>> from tests.machine import layers
>>> with layers.resume(layers.INSTALLED) as vm:
...     stick = vm.stick("main", size=64 << 20, fs="vfat")
...     stick.plug()
...     vm.run("lsblk -f").out
"""

from tests.machine.guest import CommandFailed, CommandTimeout, Result
from tests.machine.machine import Machine
from tests.machine.stick import Fault, Stick
from tests.machine.wire import MachineLost

__all__ = ["CommandFailed", "CommandTimeout", "Fault", "Machine", "MachineLost", "Result", "Stick"]
