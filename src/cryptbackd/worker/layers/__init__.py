"""The stack, a layer a file, each a context manager with its undo::

    with outer(...) as drive, loop(...) as device, luks(...) as volume, inner(...) as tree:
        ...

Leaving one, in order or by an exception, takes the layer down and *proves* that it is down:
what can't be proven raises DriveFailed.  Killed at any instruction, the kernel takes all of
it down (see ``worker.main`` and ``layers.luks``).
"""
