"""``python3 -m cryptbackd.daemon``."""

import sys

from .main import main

sys.exit(main())
