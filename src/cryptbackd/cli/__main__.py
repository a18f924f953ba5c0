"""``python3 -m cryptbackd.cli``."""

from .main import program

program()
