"""``python3 -m cryptbackd.cli``."""

import sys

from .main import main

sys.exit(main())
