"""``python3 -m cryptbackd.agent``."""

import sys

from .main import main

sys.exit(main())
