"""The rights that a worker gives up once its stack stands, for good and for all that it starts.

What remains is what the rest of the job and the way down take.  What is gone can't be had again
(capabilities(7), "Capability bounding set"; prctl(2), PR_CAPBSET_DROP).
"""

from __future__ import annotations

from enum import IntEnum

from .. import kernel


class Capability(IntEnum):
    """Those that the service has (linux/capability.h)."""

    CHOWN = 0
    DAC_OVERRIDE = 1
    DAC_READ_SEARCH = 2
    FOWNER = 3
    FSETID = 4
    SETGID = 6
    SETUID = 7
    SETPCAP = 8
    SYS_ADMIN = 21
    MKNOD = 27
    SETFCAP = 31


_LOCKS = {Capability.SYS_ADMIN}
"""For the way down: umount2(2); the mapping and the loop device go by themselves.  A sandbox for
whatever else is started takes it, too."""
LOOKS = frozenset(
    {
        *_LOCKS,
        Capability.DAC_READ_SEARCH,
        Capability.SETGID,
        Capability.SETUID,
        Capability.SETPCAP,
    }
)
"""Where nothing in the container is changed (browse, restore, verify): what reads there reads
everything, or becomes a user and drops all else."""
TIDIES = frozenset(
    {*_LOCKS, Capability.DAC_READ_SEARCH, Capability.DAC_OVERRIDE, Capability.FOWNER}
)
"""When a backup has copied everything, which takes them all: versions go, whosever their files are,
and of others a sample is read back."""
WRITES = frozenset(
    {
        Capability.CHOWN,
        Capability.DAC_OVERRIDE,
        Capability.FOWNER,
        Capability.FSETID,
        Capability.MKNOD,
        Capability.SETFCAP,
    }
)
"""The rsync that writes.  Without SYS_ADMIN it can't open a device that it makes: all that it sees
is mounted nodev."""


def keep(wanted: frozenset[Capability]) -> None:
    """Give up every capability but those *wanted*; raises OSError.

    Called again, it gives up more; what is gone stays so.
    """
    for number in kernel.bounding_set() - wanted:
        kernel.drop_from_bounding_set(number)
    kernel.limit_capabilities(wanted)
