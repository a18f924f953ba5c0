"""``python3 -I -m cryptbackd.worker``: see :mod:`cryptbackd.worker.main`."""

from ..leaving import leave
from .main import main

if __name__ == "__main__":
    leave(main())
