"""Forged headers, held against what cryptbackd accepts; the real cryptsetup says if they open."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from cryptbackd.errors import ForgedDrive
from cryptbackd.worker import header as headers
from cryptbackd.worker import whitelist
from tests import forge
from tests.unit.test_keyslots import FIRST, SMALL, cryptsetup, formatted

__all__ = ["formatted"]


@pytest.mark.parametrize("name", forge.FORGERIES)
def test_a_forged_header_is_no_header(formatted: bytes, name: str, tmp_path: Path) -> None:
    honest = whitelist.parse(formatted)
    forged = forge.FORGERIES[name]
    drive = tmp_path / "drive"
    drive.write_bytes(forged.make(formatted).ljust(len(formatted), b"\0"))
    fd = os.open(drive, os.O_RDONLY)
    try:
        with pytest.raises(ForgedDrive) as caught:
            headers.read(fd)
        assert forged.sentence in caught.value.sentence
        assert caught.value.sentence.isprintable()
        told = headers.difference(honest, fd)
    finally:
        os.close(fd)
    assert forged.sentence in told
    assert told.endswith("It may be damaged or forged.")


def test_what_cryptsetup_reads_behind_a_nul_is_not_believed(
    formatted: bytes, tmp_path: Path
) -> None:
    """A real attack: cryptsetup opens somebody else's keyslot, and the honest one is shown."""
    drive = tmp_path / "drive"
    drive.write_bytes(bytes(len(formatted)))
    words = ("--batch-mode", "--type", "luks2", "--sector-size", "4096", *SMALL, str(drive))
    assert cryptsetup("luksFormat", *words, stdin=b"theirs") == 0
    theirs = drive.read_bytes()
    drive.write_bytes(forge.behind_nul(theirs, forge.read(formatted), forge.read(theirs)))
    opens = ("open", "--test-passphrase", str(drive))
    assert cryptsetup(*opens, stdin=b"theirs") == 0
    assert cryptsetup(*opens, stdin=FIRST) != 0
    with pytest.raises(ForgedDrive, match="there is a NUL in it"):
        whitelist.parse(drive.read_bytes())


def test_an_older_header_is_known_as_such(formatted: bytes, tmp_path: Path) -> None:
    """As of a drive that was set back to before a passphrase was removed."""
    newer = tmp_path / "newer"
    newer.write_bytes(formatted)
    words = ["/usr/sbin/cryptsetup", "config", "--label", "x", str(newer)]
    subprocess.run(words, check=True, capture_output=True)
    stored, older = whitelist.parse(newer.read_bytes()), whitelist.parse(formatted)
    assert headers.is_older(older, stored)
    assert not headers.is_older(stored, stored)
    fd = os.open(tmp_path / "older", os.O_RDWR | os.O_CREAT)
    try:
        os.write(fd, formatted)
        assert headers.difference(stored, fd).startswith("It is older than the stored one")
    finally:
        os.close(fd)
