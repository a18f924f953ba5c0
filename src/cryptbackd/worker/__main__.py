"""``python3 -I -m cryptbackd.worker``: see :mod:`cryptbackd.worker.main`."""

from .main import main

if __name__ == "__main__":
    raise SystemExit(main())
