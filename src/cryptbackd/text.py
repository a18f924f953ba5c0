"""Words for people: sizes, times, and foreign text made harmless.

Names, labels and what tools print come from drives and other users.  Before such a text
reaches a journal line or a terminal it goes through :func:`printable`.
"""

from __future__ import annotations

import re
import time

_SIZE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_SIZE = re.compile(
    r"(?P<number>\d{1,20}(?:\.\d{1,20})?)\s*(?P<unit>[KMGTPE]?)(?:i?B)?", re.IGNORECASE | re.ASCII
)
_LARGEST = 1 << 63
_DURATION_UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION = re.compile(r"(?P<number>\d{1,12})\s*(?P<unit>s|min|h|d|w)", re.ASCII)


def printable(text: str | bytes, limit: int = 200) -> str:
    r"""*text* with everything that is not a printable character written as an escape.

    Undecodable bytes show as ``\xNN``.  Longer than *limit* characters, it is cut and ends
    in ``…``, so that nobody's 4 KiB label fills a journal line.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogateescape")
    out = "".join(
        c
        if c.isprintable()
        else f"\\x{ord(c) - 0xDC00:02x}"
        if "\udc80" <= c <= "\udcff"
        else c.encode("unicode_escape").decode("ascii")
        for c in text[: limit + 1]
    )
    return out if len(out) <= limit else out[: limit - 1] + "…"


def size(count: float) -> str:
    """*count* bytes in the largest binary unit that keeps it at 1 or above."""
    unit = 0
    while count >= 1024 and unit < len(_SIZE_UNITS) - 1:
        count /= 1024
        unit += 1
    number = f"{count:.0f}" if unit == 0 or count >= 100 else f"{count:.1f}"
    return f"{number} {_SIZE_UNITS[unit]}"


def parse_size(text: str) -> int:
    """Bytes meant by ``8G``, ``512 MiB`` or ``1048576`` (units are powers of 1024).

    Raises ValueError when *text* is none of these.
    """
    match = _SIZE.fullmatch(text.strip())
    power = " KMGTPE".index((match["unit"] or " ").upper()) if match is not None else 0
    number = int(float(match["number"]) * 1024**power) if match is not None else _LARGEST
    if number >= _LARGEST:
        raise ValueError(f"{text!r} is not a size such as 512M, 8G or 1.5T")
    return number


def clock(seconds: float) -> str:
    """A time left, as ``0:42``, ``12:05`` or ``3:10:07``."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, secs = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{secs:02}" if hours else f"{minutes}:{secs:02}"


def date(when: float, shape: str = "%Y-%m-%d") -> str:
    """The Unix time *when* by this computer's clock (strftime(3)); ``?`` where there is no date.

    Whoever has a file can give it a time that lies after the end of all calendars.
    """
    try:
        return time.strftime(shape, time.localtime(when))
    except (OverflowError, ValueError, OSError):
        return "?"


def ago(seconds: float) -> str:
    """How long ago, in one unit: ``just now``, ``5 min ago``, ``2 h ago``, ``3 d ago``."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit} ago"
    return "just now"


def parse_duration(text: str) -> int:
    """Seconds meant by ``90s``, ``30min``, ``1h``, ``14d`` or ``2w``.

    Raises ValueError when *text* is none of these.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a time such as 30min, 1h, 14d or 2w")
    return int(match["number"]) * _DURATION_UNITS[match["unit"]]


def count(number: int, noun: str) -> str:
    """``1 file``, ``2 files``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
