"""Text on the bus, with a dbus-fast that can't count and with one that can."""

from typing import Any

import pytest
from dbus_fast import Variant

from cryptbackd import dbus_text

BODY: list[Any] = ["ü", {"ß": Variant("as", ["a", "…"])}, 7, [Variant("b", True)]]


def test_what_can_be_sent_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dbus_text, "_counts_characters", lambda: False)
    assert dbus_text.sendable(BODY) is BODY


def test_what_can_not_be_sent_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dbus_text, "_counts_characters", lambda: True)
    assert dbus_text.sendable(BODY) == [
        "\\xfc",
        {"\\xdf": Variant("as", ["a", "\\u2026"])},
        7,
        [Variant("b", True)],
    ]


@pytest.mark.parametrize(
    "value", ["\udcff", ["a", "\udcff"], {"\udcff": 1}, {"a": Variant("as", ["\udcff"])}]
)
def test_what_is_no_utf_8_is_no_text(value: Any) -> None:
    assert dbus_text.is_text(BODY)
    assert not dbus_text.is_text([value])
