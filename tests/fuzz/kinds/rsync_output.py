"""What rsync writes: names that any user may have given, and complaints of a confined reader."""

from __future__ import annotations

import re
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import strategies as st

from cryptbackd import protocol
from cryptbackd.errors import Cancelled, DriveFailed, DriveFull, ToolFailed
from cryptbackd.worker.control import Control, Meter
from cryptbackd.worker.rsync_job import Job, Received
from cryptbackd.worker.sync import _Rsync
from tests.fuzz import mutate, properties
from tests.fuzz.fuzzer import Fuzzer

_SUM = b"0123456789abcdef0123456789abcdef"
OUT = (
    b"=>f+++++++++ " + _SUM + b" home/file",
    b"=>f.st...... " + _SUM + b" home/file",
    b"=>f+++++++++ " + b"0" * 32 + rb" home/a\#012b",
    b"=>f+++++++++ " + _SUM + rb" home/\#303\#251",
    b"=cd+++++++++                                  home/",
    b"=hf+++++++++ " + _SUM + b" home/link",
    b"=*deleting   home/gone",
    b"=>f+++++++++ 12345",
    b"      1,234,567  12%    1.23MB/s    0:00:12 (xfr#5, to-chk=1/7)",
    b"     1234567  12%",
    b"Number of files: 412 (reg: 400, dir: 12)",
    b"Number of deleted files: 3",
    b"Total file size: 123456 bytes",
)
ERR = (
    b'rsync: [sender] send_files failed to open "/source/home/file": Permission denied (13)',
    b'rsync: [sender] link_stat "/source/./home/gone" failed: No such file or directory (2)',
    b'rsync: [generator] mknod "/target/home/file" failed: Operation not permitted (1)',
    b'rsync: [receiver] write failed on "/target/home/file": No space left on device (28)',
    b'rsync: [receiver] mkstemp "/target/.cryptback-tmp/.x" failed: Input/output error (5)',
    b"rsync: [Receiver] write error: Broken pipe (32)",
    b'rsync: [sender] read errors mapping "/source/home/a\\#012b": Input/output error (5)',
    b'rsync: [sender] opendir "/source/home/a": b" failed: Permission denied (13)',
    b'file has vanished: "/source/home/gone"',
    b"ERROR: home/file failed verification -- update discarded.",
    b"WARNING: home/file failed verification -- update discarded (will try again).",
    b"IO error encountered -- skipping file deletion",
    b"rsync error: some files/attrs were not transferred (see previous errors) (code 23) at main.c",
    b'skipping non-regular file "home/fifo"',
)
_TARGET = "/target"


@st.composite
def quoted(draw: st.DrawFn) -> bytes:
    """A complaint about a path of many quotes, colons and slashes."""
    piece = draw(
        st.sampled_from((b'"/', b'": ', b"/", b": (", b"\\#777", b"\\#101", b" (5)", b"a"))
    )
    path = piece * draw(st.sampled_from((1, 40, 1300)))
    end = draw(st.sampled_from((b": why (13)", b"", b": (", b": why (999999999999)", b'": x (2)')))
    side = draw(st.sampled_from((b"sender", b"receiver", b"generator", b"x" * 50)))
    return b"rsync: [" + side + b'] opendir "/source' + path + b'" failed' + end


STREAMS = st.tuples(
    st.sampled_from(("out", "err")),
    st.one_of(mutate.lines(OUT + ERR), mutate.lines(ERR), mutate.lines(OUT), st.lists(quoted())),
    st.sampled_from((b"\n", b"\n", b"\n", b"\r", b"\0", b"")),
    st.booleans(),
    st.sampled_from((0, 23, 24, 11, 12, 1, 255, -9, -64)),
)


def _case(drawn: tuple[str, list[bytes], bytes, bool, int]) -> bytes:
    stream, lines, end, dry, status = drawn
    head = f"{stream} {int(dry)} {status}\n".encode()
    return head + b"".join(line + end for line in lines)


class Deaf(Control):
    """Hears nothing, and keeps what is said."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.said: list[protocol.Message] = []

    def _send(self, message: protocol.Message) -> None:
        self.said.append(message)


@contextmanager
def _places() -> Iterator[tuple[Path, Path]]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        stage, target = Path(folder, "stage"), Path(folder, "target")
        for place in (stage, target):
            (place / "home").mkdir(parents=True)
            (place / "home/file").touch()
        yield stage, target


def _fed(rsync: _Rsync, stream: str, text: bytes) -> None:
    """As ``_follow`` does it, in pieces of a pipe's size."""
    rest = b""
    take = {"out": rsync._out, "err": rsync._err}[stream]
    for at in range(0, len(text), 4096):
        *whole, rest = re.split(rb"[\r\n]", rest + text[at : at + 4096])
        for line in whole:
            take(line)


def check(raw: bytes) -> str:
    """Files are warned of or copied, or the run ends with an error that is documented."""
    head, _end, text = raw.partition(b"\n")
    try:
        stream, dry, status = head.decode("ascii").split(" ")
    except ValueError:
        return "no case"
    received: list[Received] = []
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, _places() as (stage, target):
        control = Deaf(ours)
        job = Job(
            stage=stage, target=target, exclude=(), own=("/home",), others=(),
            received=received.append,
        )  # fmt: skip
        rsync = _Rsync(job, control, dry=dry == "1")
        rsync._meter = Meter(control, 1 << 20)
        named = text.replace(_TARGET.encode(), str(target).encode())

        def told() -> str:
            with properties.refusing(Cancelled, DriveFailed, DriveFull, ToolFailed):
                _fed(rsync, stream, named)
                rsync._check_unchanged()
                rsync._judge(int(status))
            return "warned" if control.warnings else "copied"

        end = properties.outcome(told)
    for message in control.said:
        assert protocol.decode(protocol.encode(message)) == message
    for warning in control.warnings:
        properties.harmless(warning)
    for path in job.failed:
        properties.inside(path)
    for file in received:
        properties.inside(file.path)
        assert re.fullmatch(rb"[0-9a-f]{32}", file.xxh128), file.xxh128
    for number in (rsync._total, rsync.synced.files, rsync.synced.size, rsync.synced.deleted):
        assert 0 <= number < 2**63
    return end


FUZZER = Fuzzer(
    "rsync-output",
    "what rsync writes while it copies, on both of its streams: `worker.sync`",
    STREAMS.map(_case),
    check,
)
