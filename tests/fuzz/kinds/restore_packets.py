"""What the two sides of a restore say to each other: the writer is the user's own program."""

from __future__ import annotations

import json
import socket
from typing import Any

import attrs
from hypothesis import strategies as st

from cryptbackd import restoring
from tests.fuzz import mutate
from tests.fuzz.fuzzer import Fuzzer

SAMPLES = (
    {"version": "2026-11-24T19:03:11Z"},
    {"read": ["home/me/./a", "etc/./b"], "dry": False, "contents": True},
    {"ended": 0, "said": ["rsync: something"]},
    {"done": 5, "total": 10},
    {"over": True, **attrs.asdict(restoring.Over(3, 1 << 40, 1, 0, 28, True, False, True))},
)
INPUTS = st.one_of(mutate.json_bytes(SAMPLES), mutate.json_bytes(SAMPLES[-1:]))


def check(raw: bytes) -> str:
    """It is not understood, or an object; and its numbers are numbers."""
    if not raw:
        return "end"
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        theirs.send(raw[: restoring.MAX_PACKET])
        try:
            values = restoring.receive_alone(ours)
        except restoring.NotUnderstood:
            return "refused"
    assert isinstance(values, dict)
    try:
        over = restoring.Over.from_packet(values)
    except restoring.NotUnderstood:
        return "object"
    for field in attrs.fields(restoring.Over):
        value: Any = getattr(over, field.name)
        assert 0 <= int(value) < 2**63
        assert type(value) is type(field.default)
    json.dumps(attrs.asdict(over))
    return "numbers" if "over" in values else "object"


FUZZER = Fuzzer(
    "restore-packets",
    "what the writer of a restore says to the worker, and the worker to it: `restoring`",
    INPUTS,
    check,
)
