"""An entry below drives.d: root's own, or the text that a container remembers."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import attrs
from hypothesis import strategies as st

from cryptbackd import config
from cryptbackd.document import document
from cryptbackd.errors import ConfigError
from tests.fuzz import mutate, properties
from tests.fuzz.fuzzer import Fuzzer

GOOD = """
uuid = "1A2B-3C4D"
container = "dir/backup.luks"
owner = "me"

[backup]
include = ["/home/me", "/etc"]
include_from = ["/home/me/.config/backup_list.txt"]
exclude = [".cache", "*.iso", "- odd"]
cross_filesystems = false

[keep]
last = 3
hourly = 24
daily = 7
weekly = 4
monthly = 12
yearly = 1

[when]
at_most = "1h"
repeat = "1d"
remind = "14d"

[verify]
sample = "1.5%"
full_every = 20

[after]
power_off = false
"""
SAMPLES = (
    GOOD.encode(),
    b'uuid = "x"\nbackup = { include = ["/etc"] }\n',
    b'uuid = "x"\nbackup.include = ["/etc"]\nkeep.last = 1_000\nwhen.remind = "0s"\n',
    b'uuid = "x" # comment\n[backup]\ninclude = [\n "/etc",\n]\n[[after]]\npower_off = true\n',
    b'[backup]\ninclude_from = ["""/a"""]\n[verify]\nsample = 2024-11-25T10:00:00Z\n',
)
_WORDS: dict[str, list[Any]] = {
    "uuid": ["1A2B-3C4D", "", "a" * 64, "\U00010400" * 64, "a/b", ".."],
    "container": ["backup.luks", "a/b", "../a", "a//b", "/a", ".", "a/" * 200 + "a", "a" * 300],
    "owner": ["me", "", "a b", "root", "me\n", "\u202e"],
    "include": [["/etc"], [], ["/"], ["/a/../b"], ["etc"], ["/a\nb"], ["/etc", 5], "/etc"],
    "include_from": [["/home/me/list"], [], [None]],
    "exclude": [["*.iso"], ["a\nb"], [""], ["\x1b[0m"], ["a\rb"]],
    "cross_filesystems": [True, False, 0, "true"],
    "at_most": ["1h", "1 h", "0s", "9" * 30 + "w", "-1h", 5, "1.5h", "\u0663h"],
    "repeat": ["1d", "0s"], "remind": ["14d", "1000000w"],
    "sample": ["1%", "0%", "100%", "101%", "nan%", "1e-9%", "0.0000001%", " 1%", "1_0%", 1],
    "full_every": [20, 0, -1, 10**9, 2**64, True, 1.0],
    "last": [3, 0, -1, 10**6, 10**6 + 1], "hourly": [1], "daily": [7], "weekly": [4],
    "monthly": [12], "yearly": [2], "power_off": [True, False],
}  # fmt: skip
_TABLES: dict[str, tuple[str, ...]] = {
    "backup": ("include", "include_from", "exclude", "cross_filesystems"),
    "keep": ("last", "hourly", "daily", "weekly", "monthly", "yearly"),
    "when": ("at_most", "repeat", "remind"),
    "verify": ("sample", "full_every"),
    "after": ("power_off",),
}


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if value is None:
        return "1979-05-27"
    return repr(value) if isinstance(value, int) and abs(value) < 10**100 else "0.5"


@st.composite
def written(draw: st.DrawFn) -> bytes:
    """By the rules: tables and keys that there are, and values that may be wrong."""

    def line(key: str) -> str:
        odd = draw(st.integers(0, 9))
        value = draw(mutate.scalars) if odd == 0 else draw(st.sampled_from(_WORDS[key]))
        return f"{key} = {_toml(value)}"

    lines = [line(key) for key in ("uuid", "container", "owner") if draw(st.integers(0, 4))]
    for table in draw(st.permutations(tuple(_TABLES))):
        if table == "backup" or draw(st.booleans()):
            lines.append(f"[{table}]")
            lines += [line(key) for key in _TABLES[table] if draw(st.booleans())]
    return "\n".join(lines).encode("utf-8", "surrogatepass")


@st.composite
def long_winded(draw: st.DrawFn) -> bytes:
    """What grows without end: keys of many parts, tables in tables, lists in lists."""
    count = draw(st.sampled_from((10, 1000, 30_000)))
    shape = draw(
        st.sampled_from(("[{}]\nx = 1", "{} = 1", "x = {{ {} = 1 }}", "x = [{}]", "x = {}"))
    )
    piece = draw(st.sampled_from(("a.", "[", "{a=", '"', "\\", "#", "9", "a.a = 1\n", "[[a]]\n")))
    end = draw(st.sampled_from(("", "a")))
    return (GOOD + shape.format(piece * count + end)).encode()


INPUTS = st.one_of(written(), mutate.changed(SAMPLES), mutate.changed(SAMPLES), long_winded())


def sound(entry: config.Entry) -> None:
    """What others rest on when an entry was taken."""
    marker = os.fsencode(entry.uuid)
    assert 0 < len(marker) <= 255, "its udev marker has no name"
    assert b"/" not in marker, "its udev marker is elsewhere"
    assert entry.uuid.isalnum() or "-" in entry.uuid
    if entry.container is not None:
        properties.inside(entry.container)
        assert entry.container.isprintable()
    for path in (*entry.backup.include, *entry.backup.include_from):
        assert path.startswith("/"), path
        assert ".." not in path.split("/"), path
        assert path.isprintable(), path
    assert all(pattern and not set("\n\0") & set(pattern) for pattern in entry.backup.exclude)
    for seconds in (entry.when.at_most, entry.when.repeat, entry.when.remind):
        assert seconds is None or 0 <= seconds <= 2**40, "too long for any clock"
    assert entry.verify.sample is None or 0 <= entry.verify.sample <= 1
    for count in (*attrs.astuple(entry.keep), entry.verify.full_every):
        assert type(count) is int
        assert 0 <= count <= 10**6


def check(raw: bytes) -> str:
    """One bad file disables itself alone; what is read can be written and is the same again."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        place = Path(folder)
        (place / "good.toml").write_text(GOOD)
        (place / "tried.toml").write_bytes(raw)
        found = config.read_all(place)
    assert "good" in found.good, "another entry suffers"
    assert set(found.good) | set(found.bad) == {"good", "tried"}
    if "tried" in found.bad:
        properties.told(found.bad["tried"])
        return "refused"
    entry = found.good["tried"]
    sound(entry)
    again = config.parse(document(entry), "again")
    sample = again.verify.sample
    if sample is not None and entry.verify.sample is not None:
        assert abs(sample - entry.verify.sample) < 1e-6, "another sample"
        again = attrs.evolve(again, verify=attrs.evolve(again.verify, sample=entry.verify.sample))
    assert again == entry, "written and read again it is another"
    try:
        config.parse(found.texts["tried"], "tried\n.toml")
    except ConfigError as error:
        raise AssertionError("what was read once is refused") from error
    return "read"


FUZZER = Fuzzer(
    "configuration",
    "entries (`drives.d/NAME.toml`, and the settings that a container remembers): `config.read_all`"
    " and `document`",
    INPUTS,
    check,
)
