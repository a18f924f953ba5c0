"""JSON and TOML that others have written: a drive, a worker, a file after a power cut.  Pure.

What is read here every program reads the same, and whatever is wrong is a ValueError.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from typing import Any

_QUOTED = re.compile(
    r'''"""(?:[^"\\]|\\.|"{1,2}(?!"))*"{3,5}|'''
    r"""'''(?:[^']|'{1,2}(?!'))*'{3,5}|"""
    r""""(?:[^"\\\n]|\\.)*"|'[^'\n]*'|\#[^\n]*""",
    re.DOTALL,
)
"""What TOML quotes, and its comments."""
_HIGHEST = 1 << 53
"""Above what a whole number can be for all that read JSON (RFC 8259)."""
_LONG_KEY = re.compile(r'(?<![\w-])(?:(?:[\w-]+|"")[ \t]*\.[ \t]*){10}')


def loads(raw: bytes | str) -> Any:
    """What the JSON *raw* says; raises ValueError.

    Python's own reader takes ``NaN`` and makes infinity of ``1e999``, which is no JSON, and gives
    up with another error where lists in lists are too deep for it.
    """
    try:
        return json.loads(raw, parse_constant=_constant, parse_float=_float)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _constant(word: str) -> float:
    raise ValueError(f"{word} is no JSON")


def _float(word: str) -> float:
    number = float(word)
    if not math.isfinite(number):
        raise ValueError("a number is too large")
    return number


def number(value: object) -> int:
    """*value* where it is how many of something every program would read there; else 0."""
    return value if type(value) is int and 0 <= value < _HIGHEST else 0


def toml(text: str) -> dict[str, Any]:
    """What the TOML *text* says; raises ValueError.

    A key of thousands of parts, as in ``a.a.a``, would take gigabytes of Python's own reader, which
    also gives up with other errors for numbers and brackets without end.
    """
    if _LONG_KEY.search(_QUOTED.sub('""', text)):
        raise ValueError("a key has too many parts")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
