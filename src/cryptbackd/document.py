"""An entry as TOML: what ``cryptback init`` writes where there are settings already.  Pure.

``config.parse`` reads back the same entry.  Nothing of the text that the settings came from
is in it but their values, so that what was shown to somebody is all that there is.
"""

from __future__ import annotations

import json
from typing import Any

import attrs

from .config import Entry, Verify, When

_HEADING = "# Written by `cryptback init`; see cryptback-drives(5)."


def document(entry: Entry) -> str:
    """The TOML of *entry*, without what is the default."""
    lines = [_HEADING]
    tables = []
    for field in attrs.fields(Entry):
        value = getattr(entry, field.name)
        if attrs.has(type(value)):
            tables.append((field.name, value))
        elif value is not None:
            lines.append(f"{field.name} = {_text(value)}")
    for name, table in tables:
        settings = _settings(table)
        if settings:
            lines += ["", f"[{name}]", *settings]
    return "\n".join(lines) + "\n"


def _settings(table: Any) -> list[str]:
    plain = type(table)()
    lines = []
    for field in attrs.fields(type(table)):
        value = getattr(table, field.name)
        if value != getattr(plain, field.name):
            lines.append(f"{field.name} = {_value(table, value)}")
    return lines


def _value(table: Any, value: Any) -> str:
    if isinstance(table, When):
        return _text(_duration(value))
    if isinstance(table, Verify) and isinstance(value, float):
        return _text(f"{value * 100:.6f}".rstrip("0").rstrip(".") + "%")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_text, value)) + "]"
    return str(value) if isinstance(value, int) else _text(value)


def _duration(seconds: int) -> str:
    """In the largest unit that there are whole ones of."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds % length == 0:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def _text(value: str) -> str:
    """A basic string: TOML has the escapes of JSON, but wants one for DEL, too."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
