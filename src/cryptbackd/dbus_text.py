"""Text on the bus, as the dbus-fast that is here can send it.

That of Debian 12 counts characters where bytes are meant.  The bus then ends the connection of
whoever sends anything but ASCII.
"""

from __future__ import annotations

import functools
from typing import Any

from dbus_fast import Message, MessageType, Variant


def sendable(value: Any) -> Any:
    """*value*, a body or a part of it: unchanged where that can be sent, else in ASCII."""
    if not _counts_characters():
        return value
    if isinstance(value, str):
        return value.encode("ascii", "backslashreplace").decode()
    if isinstance(value, Variant):
        return Variant(value.signature, sendable(value.value))
    if isinstance(value, dict):
        return {sendable(key): sendable(item) for key, item in value.items()}
    return [sendable(item) for item in value] if isinstance(value, list) else value


def is_text(value: Any) -> bool:
    """Whether a message can hold *value*: in UTF-8 no name has bytes that are none of it."""
    if isinstance(value, str):
        return not any("\ud800" <= character <= "\udfff" for character in value)
    if isinstance(value, Variant):
        return is_text(value.value)
    if isinstance(value, dict):
        return all(is_text(key) and is_text(item) for key, item in value.items())
    return not isinstance(value, list) or all(map(is_text, value))


@functools.cache
def _counts_characters() -> bool:
    message = Message(
        message_type=MessageType.SIGNAL, path="/", interface="a.b", member="C", serial=1,
        signature="s", body=["\u00fc"],
    )  # fmt: skip
    return not bytes(message._marshall(False)).endswith(b"\x02\0\0\0\xc3\xbc\0")
