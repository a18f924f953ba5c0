"""What daemon and worker say to each other."""

import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptbackd import protocol
from cryptbackd.model import (
    Device,
    JobKind,
    LedgerEntry,
    Outcome,
    Phase,
    Progress,
    RunResult,
    StopReason,
)

_TEXT = st.text(max_size=50)
_NUMBER = st.integers(0, 2**63 - 1)
_LEDGER = st.builds(LedgerEntry, _NUMBER, _TEXT, _TEXT, _TEXT)
_RESULT = st.builds(
    RunResult,
    st.sampled_from(Outcome),
    _TEXT,
    hint=_TEXT,
    safe=st.booleans(),
    warnings=st.lists(_TEXT, max_size=3),
    size=_NUMBER,
    ledger=st.none() | _LEDGER,
    data=st.dictionaries(_TEXT, _TEXT, max_size=2),
)
_MESSAGES = st.one_of(
    st.builds(
        protocol.Start,
        st.sampled_from(JobKind),
        _TEXT,
        st.builds(Device, _TEXT, _NUMBER, _NUMBER, _TEXT, _NUMBER, _TEXT, _TEXT),
        _TEXT,
        st.none() | _LEDGER,
        st.dictionaries(_TEXT, st.none() | st.booleans() | _TEXT, max_size=3),
    ),
    st.builds(protocol.Key, _TEXT, st.integers(-1, 40)),
    st.builds(protocol.Stop, st.sampled_from(StopReason)),
    st.builds(protocol.PhaseChanged, st.sampled_from(Phase)),
    st.builds(protocol.Progressed, st.builds(Progress, _NUMBER, _NUMBER)),
    st.builds(protocol.Said, _TEXT, _TEXT, st.integers(0, 7)),
    st.builds(protocol.Warned, _TEXT, _TEXT),
    st.builds(protocol.KeyWanted, _TEXT, _TEXT),
    st.builds(protocol.Finished, _RESULT),
)


@given(_MESSAGES)
def test_every_message_arrives_as_it_was_sent(message: protocol.Message) -> None:
    assert protocol.decode(protocol.encode(message)) == message


@given(st.binary(max_size=100))
def test_any_packet_is_a_message_or_a_protocol_error(packet: bytes) -> None:
    with pytest.raises(protocol.ProtocolError):
        protocol.decode(packet)


@pytest.mark.parametrize(
    "packet",
    [
        b'{"say":"stop","reason":"whim"}',
        b'{"say":"key"}',
        b'{"say":"key","source":"a","more":1}',
        b'{"say":"start","job":"backup","name":"a","device":7}',
        b'{"say":"finished","result":{"outcome":"done"}}',
        b"[]",
    ],
)
def test_what_is_nearly_a_message(packet: bytes) -> None:
    with pytest.raises(protocol.ProtocolError):
        protocol.decode(packet)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        yield one, other


def test_a_descriptor_travels_along(pair: tuple[socket.socket, socket.socket]) -> None:
    reading, writing = os.pipe()
    protocol.send(pair[0], protocol.Key("test"), reading)
    os.close(reading)
    os.write(writing, b"secret\n")
    os.close(writing)
    received = protocol.receive(pair[1])
    assert received is not None
    message, fd = received
    assert message == protocol.Key("test")
    assert fd is not None
    with os.fdopen(fd, "rb") as pipe:
        assert pipe.read() == b"secret\n"


def test_the_end_is_none(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[0].close()
    assert protocol.receive(pair[1]) is None


def test_more_than_one_descriptor_is_refused_and_closed(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    socket.send_fds(pair[0], [protocol.encode(protocol.Key("x"))], [0, 1])
    with pytest.raises(protocol.ProtocolError):
        protocol.receive(pair[1])
    assert len(os.listdir("/proc/self/fd")) == before


def test_too_long_a_message_is_not_sent(pair: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(protocol.ProtocolError):
        protocol.send(pair[0], protocol.Said("x" * protocol.MAX_PACKET))
