"""Calls of the service, as hypothesis makes them up: messages as they go over the wire."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any, NamedTuple

from dbus_fast import Message, MessageFlag, Variant
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz.mutate import NASTY_TEXT
from tests.machine.layers import ROOT

NAME, PATH, INTERFACE = "org.cryptback1", "/org/cryptback1", "org.cryptback1.Manager"
METHODS = {
    str(method.get("name")): "".join(
        str(each.get("type")) for each in method if each.get("direction") == "in"
    )
    for each in ET.parse(ROOT / "docs" / "org.cryptback1.xml").getroot()
    if each.get("name") == INTERFACE
    for method in each
    if method.tag == "method"
}
"""Each method, and the types of its arguments."""
_NAMES = ("home", "theirs", "", "no-such", "home\n", "Home", "home.toml", "../home", "survey")
_PATHS = (
    "/dev/sda", "/dev/sda1", "/dev/vda", "/dev/vda1", "/dev/mapper/cryptback-home", "/dev/null",
    "/dev/mem", "/etc/shadow", "/root", "/home/me/link", "/proc/1/root", "/proc/self/fd/0",
    "/var/lib/cryptbackd/headers/home", "/etc/cryptback/drives.d/home.toml", "../../etc/passwd",
    "/dev/disk/by-uuid/../../sda1", "/sys/block",
)  # fmt: skip
_WORDS = (
    "yesterday", "oldest", "now", "8G", "+1M", "max", "*", "/root/*", "canary", "s*t", "[",
    "current",
    "new", "mount", "files", "stored-header", "settings", "header", "kit", "recovery-key", "format",
    "20261124T190311Z-abcd", "ab" * 32, "backup.luks", 'uuid = "x"\n[backup]\ninclude = ["/"]\n',
)  # fmt: skip
_OPTIONS = (
    "full", "accept", "sample", "at", "limit", "drive", "name", "container", "size", "filesystem",
    "format", "include", "include_from", "exclude", "owner", "run", "pbkdf_memory", "adopt",
    "detached", "header", "fingerprint", "settings", "action", "what", "pin", "device", "user",
    "groups", "who", "\x1b[0m",
)  # fmt: skip


def _sendable(text: str) -> str:
    return text.replace("\0", "").encode("utf-8", "ignore").decode()


_TEXTS = st.one_of(
    st.sampled_from(_NAMES),
    st.sampled_from(_NAMES[:2]),
    st.sampled_from(_PATHS),
    st.sampled_from(_WORDS),
    st.sampled_from(NASTY_TEXT).map(_sendable),
    st.text(max_size=20).map(_sendable),
    st.integers(0, 40).map(lambda dice: "x" * 300_000 if dice == 40 else "home"),
)
_VARIANTS = st.one_of(
    _TEXTS.map(lambda text: Variant("s", text)),
    st.booleans().map(lambda value: Variant("b", value)),
    st.sampled_from((0, 1, -1, 2**31 - 1, 2**63 - 1)).map(lambda n: Variant("x", n)),
    st.sampled_from((0.0, 0.5, 1.0, -1.0, 1e308, float("inf"), float("nan"))).map(
        lambda number: Variant("d", number)
    ),
    st.lists(_TEXTS, max_size=3).map(lambda texts: Variant("as", texts)),
    st.just(Variant("au", [0, 1000])),
    st.just(Variant("h", 0)),
    st.just(Variant("v", Variant("v", Variant("s", "home")))),
    st.just(Variant("ay", b"\0\xff")),
)
_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "s": _TEXTS,
    "u": st.sampled_from((0, 1, 7, 1000, 2**31, 2**32 - 1)),
    "a{sv}": st.dictionaries(st.sampled_from(_OPTIONS), _VARIANTS, max_size=3),
}
_WRONG: tuple[tuple[str, list[Any]], ...] = (
    ("", []), ("s", ["home"]), ("ss", ["home", "home"]), ("sss", ["home"] * 3), ("u", [0]),
    ("sa{sv}", ["home", {}]), ("as", [["home"]]), ("h", [0]), ("hs", [0, "home"]), ("b", [True]),
    ("v", [Variant("s", "home")]), ("o", ["/home"]), ("ay", [b"home"]), ("a{ss}", [{"a": "b"}]),
    ("s(sv)", ["home", ["a", Variant("u", 1)]]), ("as", [["x" * 1000] * 1000]),
)  # fmt: skip
_ELSEWHERE: tuple[tuple[str, str, str, str, list[Any]], ...] = (
    ("/", "org.freedesktop.DBus.Introspectable", "Introspect", "", []),
    (PATH, "org.freedesktop.DBus.Introspectable", "Introspect", "", []),
    (PATH, "org.freedesktop.DBus.Peer", "Ping", "", []),
    (PATH, "org.freedesktop.DBus.Properties", "GetAll", "s", [INTERFACE]),
    (PATH, "org.freedesktop.DBus.Properties", "Set", "ssv", [INTERFACE, "X", Variant("s", "y")]),
    ("/", "org.freedesktop.DBus.ObjectManager", "GetManagedObjects", "", []),
    ("/org/cryptback1/Agent", "org.cryptback1.Agent", "GetPassphrase", "a{sv}", [{}]),
    ("/other", INTERFACE, "ListDrives", "", []),
    (PATH, "org.cryptback1.Other", "ListDrives", "", []),
)


class Called(NamedTuple):
    """A message, and how many descriptors go with it."""

    member: str
    flags: int
    raw: bytes
    fds: int


def _names_one(signature: str, body: list[Any]) -> bool:
    """Whether a descriptor is meant: without one the bus ends the connection."""
    options = body[1] if signature == "sa{sv}" else {}
    return "h" in signature or any(value.signature == "h" for value in options.values())


@st.composite
def calls(draw: st.DrawFn) -> Called:
    """One call: mostly of a method with arguments of its types."""
    where, interface = PATH, INTERFACE
    how = draw(st.integers(0, 19))
    member = draw(st.sampled_from(tuple(METHODS)))
    signature, body = METHODS[member], []
    if how == 0:
        where, interface, member, signature, body = draw(st.sampled_from(_ELSEWHERE))
    elif how <= 3:
        signature, body = draw(st.sampled_from(_WRONG))
    else:
        kinds = ["a{sv}" if kind == "o" else kind for kind in signature.replace("a{sv}", "o")]
        body = [draw(_VALUES[kind]) for kind in kinds]
    flags = draw(st.sampled_from((0,) * 12 + (1, 2, 4, 5)))
    fds = draw(st.sampled_from((1, 3))) if _names_one(signature, body) or how == 4 else 0
    message = Message(
        destination=NAME, path=where, interface=interface, member=member, signature=signature,
        body=body, flags=MessageFlag.NONE, serial=1, unix_fds=[0] * fds,
    )  # fmt: skip
    raw = bytes(message._marshall(True))
    # The library dies of two flags in Debian 12.
    return Called(member, flags, raw[:2] + bytes([flags]) + raw[3:], fds)


def made(number: int, count: int) -> list[Called]:
    """So many calls of the seed *number*."""
    found: list[Called] = []

    @seed(number)
    @settings(
        max_examples=count, deadline=None, database=None, phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(calls())
    def collect(called: Called) -> None:
        found.append(called)

    collect()
    return found
