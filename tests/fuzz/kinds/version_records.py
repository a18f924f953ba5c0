"""What stands beside the versions on a drive: their JSON records, under any name."""

from __future__ import annotations

import ast
import os
import tempfile
from pathlib import Path

from hypothesis import strategies as st

from cryptbackd import catalogue, moment, paths, protocol
from cryptbackd.model import LedgerEntry, Outcome, RunResult
from cryptbackd.text import printable
from cryptbackd.worker.versions import record
from tests.fuzz import mutate, properties
from tests.fuzz.fuzzer import Fuzzer

_NAME = "2026-11-24T19:03:11Z"
_LEDGER = LedgerEntry(7, _NAME, "ab" * 16, "cd" * 32)
SAMPLES = (
    {
        "format": 1, "version": _NAME, "nonce": "ab" * 16, "host": "box", "sequence": 7,
        "finished": 1764010991, "files": 412, "bytes": 123456, "warnings": ["one", "two"],
        "manifest_sha256": "ef" * 32, "entry": 'uuid = "x"\n', "entry_name": "home",
        "ledger": {"sequence": 6, "version": "x", "nonce": "y", "record_sha256": "z"},
    },
    {"sequence": 8, "nonce": "cd" * 16, "ledger": {
        "sequence": 7, "version": _NAME, "nonce": "ab" * 16, "record_sha256": "cd" * 32}},
    {"sequence": 1, "nonce": ""},
)  # fmt: skip
NAMES = st.one_of(
    st.sampled_from((_NAME.encode(), b"2026-11-25T10:00:00Z", b"v", b"a" * 200)),
    st.binary(min_size=1, max_size=8).filter(
        lambda name: not set(name) & {0, 0x2F} and name not in (b".", b"..")
    ),
    st.sampled_from(mutate.NASTY_BYTES).filter(
        lambda name: 0 < len(name) < 200 and not set(name) & {0, 0x2F} and name.strip(b".")
    ),
)


@st.composite
def inputs(draw: st.DrawFn) -> bytes:
    """A literal: names, each with its record and what else is odd about it."""
    return repr(
        draw(
            st.lists(
                st.tuples(
                    NAMES,
                    mutate.json_bytes(SAMPLES, 2),
                    st.sampled_from(
                        ("",) * 8 + ("fifo", "link", "no tree", "tree is link", "folder")
                    ),
                ),
                max_size=3,
            )
        )
    ).encode()


def _made(directory: Path, name: bytes, raw: bytes, odd: str) -> None:
    tree = os.path.join(os.fsencode(directory), name)
    path = tree + b".json"
    if odd == "tree is link":
        os.symlink("/etc", tree)
    elif odd != "no tree":
        os.makedirs(tree, exist_ok=True)
    if odd == "fifo":
        os.mkfifo(path)
    elif odd == "link":
        os.symlink("/etc/hostname", path)
    elif odd == "folder":
        os.mkdir(path)
    else:
        with open(path, "wb") as file:
            file.write(raw)


def _said(text: str) -> None:
    properties.harmless(printable(text, 1000))
    assert text.isprintable(), f"not printable: {text!r}"


def _of_the_drive(directory: Path) -> int:
    found = record.versions(directory)
    assert [version.sequence for version in found] == sorted(v.sequence for v in found)
    for version in found:
        assert type(version.sequence) is int
        assert 1 <= version.sequence < 2**62, "no number that the history can keep"
        assert version.path.parent == directory
        assert not version.path.is_symlink()
        version.path.name.encode()  # it goes to the bus and into the history
        assert version.path.name.isprintable()
        assert isinstance(version.ledger.nonce, str)
        assert version.dated.sequence == version.sequence
        assert isinstance(version.manifest, str)
        ended = RunResult(Outcome.DONE, "", version=version.path.name, ledger=version.ledger)
        if len(version.ledger.nonce) < 1000:
            protocol.decode(protocol.encode(protocol.Finished(ended)))
        _said(moment.spoken(moment.Made.named(version.path.name, version.sequence)))
    for ledger in (_LEDGER, None):
        verdict = record.judge(found, ledger)
        _said(verdict)
        _said(record.judge(found[:-1], ledger))
    return len(found)


def check(raw: bytes) -> str:
    """Those that are none are left alone; the others can be counted, told and kept."""
    before = paths.CATALOGUE
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        directory = Path(folder, "home")
        directory.mkdir()
        named = {each[0]: each for each in ast.literal_eval(raw.decode())}
        for name, text, odd in named.values():
            _made(directory, name, text, odd)
        count = _of_the_drive(directory)
        paths.CATALOGUE = Path(folder)
        try:
            for kept in catalogue.kept("home", 2**62):
                assert 1 <= kept.sequence <= 2**62
                assert isinstance(kept.sha256, str)
        finally:
            paths.CATALOGUE = before
    return "some" if count else "none"


FUZZER = Fuzzer(
    "version-records",
    "records of versions (`versions/NAME.json`) on a drive and in the catalogue:"
    " `worker.versions.record`, `catalogue`",
    inputs(),
    check,
)
