"""The end of a program that has done all it had to.

Python takes itself apart then, object by object, which the kernel does at once: of the processor
time of a program that has just started that is a quarter to a third.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn


def leave(status: int) -> NoReturn:
    """End this process with its exit *status*, as soon as what it said is written.

    What else would run at the end (atexit, finalizers) does not.  Raises OSError when what was
    said can't be written.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # so it is where whoever started us had closed it
            stream.flush()
    os._exit(status)
