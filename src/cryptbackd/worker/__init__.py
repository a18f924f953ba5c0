"""The worker: one process a job, in mount and PID namespaces of its own.

The journey of a drive is the order of ``layers``: outer filesystem, loop device, LUKS,
inner filesystem.  Whatever this process opens, the kernel closes when it dies.
"""
