"""Input that is nearly valid: samples with a few things changed, as bytes and as JSON."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

NASTY_TEXT = (
    "", " ", "\n", "\r", "\0", "\t", "\x0b\x0c\x1c\x85\u2028", "\x1b[2J\x1b]0;title\x07", "%s%n",
    "../../etc/passwd", "/etc/shadow", "..", ".", "-", "--", "é", "\u202e", "\ud83d\ude00", "٣",
    "a" * 300, "x" * 5000, "\n<3>cryptbackd: You may unplug home now.", "'\"`$(id)", "\\", "\\x0a",
    "0", "-1", "1e999", "NaN", "0x10", "1_000", "９", "true", "null", "9" * 400, "9" * 5000,
)  # fmt: skip
NASTY_BYTES = (
    *(text.encode("utf-8", "surrogatepass") for text in NASTY_TEXT),
    b"\xff", b"\xc3", b"\xed\xa0\x80", b"\x00" * 64, b"\xff" * 8, b"\x7f\xff\xff\xff",
    b"\\#777", b"\\#012", b"[" * 3000, b"{\"a\":" * 3000,
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 7, 8, 255, 511, 512, 4096, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**63 - 1,
    2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**30, 10**400,
)  # fmt: skip
FLOATS = (0.0, -0.0, 0.5, 1.0, -1.5, 512.0, 1e18, 1e308, 5e-324, float("inf"), float("nan"))


def nested(depth: int, inner: Any = 0) -> Any:
    """A list in a list in a list."""
    value = inner
    for _ in range(depth):
        value = [value]
    return value


DEEP = tuple(nested(depth) for depth in (5, 100))
"""Deeper ones are put into the text: to make them, json would need as much depth itself."""

scalars: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(NUMBERS),
    st.sampled_from(NASTY_TEXT),
    st.sampled_from(FLOATS),
    st.none(),
    st.booleans(),
    st.integers(-300, 300),
    st.text(max_size=12),
)
values: st.SearchStrategy[Any] = st.one_of(
    scalars,
    st.lists(scalars, max_size=3),
    st.dictionaries(st.text(max_size=6), scalars, max_size=3),
    st.sampled_from(DEEP),
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    if isinstance(value, dict):
        for key, item in value.items():
            found += _places(item, (*path, key))
    elif isinstance(value, list):
        for number, item in enumerate(value[:8]):
            found += _places(item, (*path, number))
    return found


def _at(value: Any, path: Sequence[Any]) -> Any:
    for key in path:
        value = value[key]
    return value


@st.composite
def trees(draw: st.DrawFn, samples: Sequence[Any], most: int = 3) -> Any:
    """One of the *samples* of JSON, in which up to *most* things are other than they were."""
    tree = copy.deepcopy(draw(st.sampled_from(samples)))
    for _ in range(draw(st.integers(0, most))):
        places = _places(tree)
        path = draw(st.sampled_from(places))
        how = draw(st.sampled_from("vvvvdrcnn"))
        if not path:
            if how == "v" and draw(st.integers(0, 20)) == 0:
                tree = copy.deepcopy(draw(values))
            continue
        holder, key = _at(tree, path[:-1]), path[-1]
        old = holder[key]
        if how == "v":
            holder[key] = copy.deepcopy(draw(values))
        elif how == "n":
            holder[key] = _near(draw, old)
        elif how == "c":
            holder[key] = copy.deepcopy(_at(tree, draw(st.sampled_from(places))))
        elif how == "d":
            del holder[key]
        elif isinstance(holder, dict):
            holder[draw(st.sampled_from(("", "0", "1", "32", "01", "-1", "٣", "extra")))] = old
        else:
            holder.append(old)
    return tree


def _near(draw: st.DrawFn, old: Any) -> Any:
    """Something like *old*: what a test for equality would notice, and a careless one not."""
    if isinstance(old, bool):
        return draw(st.sampled_from((not old, int(old), str(old))))
    if isinstance(old, int) and abs(old) < 10**300:
        return draw(
            st.one_of(
                st.sampled_from((old + 1, old - 1, -old, old * 2, old << 32, str(old), float(old))),
                st.sampled_from(NUMBERS),
            )
        )
    if isinstance(old, str):
        return draw(
            st.sampled_from(
                (old + " ", " " + old, old + "\n", old + "\0", old.upper(), "0" + old, "+" + old,
                 old[:-1], old + old, old + "\x1b[0m", [old], f"{old}.0")
            )
        )  # fmt: skip
    if isinstance(old, list):
        as_object = {str(number): item for number, item in enumerate(old)}
        return draw(st.sampled_from((old * 2, old * 40, old[:1], as_object)))
    return [old]


@st.composite
def json_bytes(draw: st.DrawFn, samples: Sequence[Any], most: int = 3) -> bytes:
    """The text of :func:`trees`; now and then no JSON any more, or very deep."""
    tree = draw(trees(samples, most))
    raw = json.dumps(tree, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    how = draw(st.integers(0, 19))
    if how == 0:
        return draw(changed([raw]))
    if how == 1:
        at = draw(st.integers(0, len(raw)))
        deep = draw(st.sampled_from((b"[", b'{"a":', b"[[],")))
        return raw[:at] + deep * draw(st.sampled_from((50, 2000, 6000))) + raw[at:]
    return raw


@st.composite
def changed(draw: st.DrawFn, samples: Sequence[bytes], most: int = 4) -> bytes:
    """One of the *samples* with up to *most* pieces changed, lost, repeated or put in."""
    raw = draw(st.sampled_from(samples))
    for _ in range(draw(st.integers(0, most))):
        at = draw(st.integers(0, len(raw)))
        end = min(len(raw), at + draw(st.sampled_from((1, 1, 2, 4, 8, 64))))
        how = draw(st.sampled_from("fidrsntx"))
        if how == "f" and at < len(raw):
            raw = raw[:at] + bytes([raw[at] ^ 1 << draw(st.integers(0, 7))]) + raw[at + 1 :]
        elif how == "i":
            raw = raw[:at] + draw(st.sampled_from(NASTY_BYTES)) + raw[at:]
        elif how == "d":
            raw = raw[:at] + raw[end:]
        elif how == "r":
            raw = raw[:at] + raw[at:end] * draw(st.sampled_from((2, 3, 100))) + raw[end:]
        elif how == "s":
            other = draw(st.sampled_from(samples))
            raw = raw[:at] + other[min(at, len(other)) :]
        elif how == "n":
            raw = raw[:at] + draw(st.binary(max_size=8)) + raw[end:]
        elif how == "t":
            raw = raw[:at]
        else:
            raw = raw[:at] + draw(st.sampled_from(NASTY_BYTES)) + raw[end:]
    return raw


def lines(samples: Sequence[bytes], most: int = 12) -> st.SearchStrategy[list[bytes]]:
    """Some lines in any order, most of them as they should be."""
    return st.lists(
        st.one_of(st.sampled_from(samples), st.sampled_from(samples), changed(samples, 2)),
        max_size=most,
    )
