"""A user's own list of what to copy."""

from __future__ import annotations

import os

from hypothesis import strategies as st

from cryptbackd.worker import lists
from tests.fuzz import mutate
from tests.fuzz.fuzzer import Fuzzer

SAMPLES = (
    b"/home/me/documents\n# a comment\n~/pictures\n\n/etc/fstab\n",
    b"~\n~/a b\n  /home/me/x  \r\n/home/me/\xff\n//etc\n/a//b/./c/\n",
    b"../etc\n~root/x\nrelative\n/a/../b\n/..\n~/..\n",
)
INPUTS = st.one_of(
    mutate.changed(SAMPLES),
    st.lists(st.sampled_from((b"/", b"~", b"..", b"\n", b"#", b" ", b"a", b"\r"))).map(b"".join),
)


def check(raw: bytes) -> str:
    """What it names is absolute and as it will be looked up; all other lines are told."""
    named, bad = lists.parse(raw, "/home/me")
    assert len(named) == len(set(named))
    for path in named:
        assert path.startswith("/")
        assert not path.startswith("//")
        assert path == os.path.normpath(path)
        assert ".." not in path.split("/")
        assert not set("\0\n") & set(path)
    said = [line.strip(b" \t\r") for line in raw.split(b"\n")]
    meant = [line for line in said if line and not line.startswith(b"#")]
    assert len(named) + len(bad) <= len(meant)
    for number, line in bad:
        assert os.fsencode(line) == said[number - 1]
    assert lists.parse(os.fsencode("\n".join(named)), "/home/me") == (
        [path for path in named if path == path.strip(" \t\r")],
        [],
    ) or any(path != path.strip(" \t\r") for path in named)
    return "names some" if named else "names none"


FUZZER = Fuzzer(
    "lists",
    "users' own lists of what to copy (`include_from`): `worker.lists`",
    INPUTS,
    check,
)
