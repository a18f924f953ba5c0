"""``cryptback passphrase NAME remember`` and ``forget``: the credential of this computer.

The passphrase is moved from where it is typed to systemd-creds by the kernel: this program
never reads it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .. import luks2, paths
from ..config import check_name
from ..errors import ForgedDrive, Refused, ToolFailed, UnknownDrive, WrongPassphrase
from ..run import run, spawn
from ..secret import kept
from . import output

CRYPTSETUP = "/usr/sbin/cryptsetup"
SYSTEMD_CREDS = "/usr/bin/systemd-creds"
_DEADLINE = 600
"""Seconds; a key derivation with 1 GiB on a machine that swaps takes minutes."""


def remember(name: str, passphrase_fd: int | None, as_json: bool) -> int:
    """Encrypt a passphrase that opens the drive for this computer; the exit code."""
    check_name(name)
    header = paths.HEADERS / name
    if not header.exists():
        raise UnknownDrive(
            f'No drive is enrolled under the name "{name}".', "`cryptback status` lists them."
        )
    label = f"cryptback.{name}"
    target = paths.ENCRYPTED_CREDENTIALS / label
    with _given(name, passphrase_fd) as fd:
        _want_right(str(header), fd)
        os.lseek(fd, 0, os.SEEK_SET)
        try:
            _store(fd, target)
        except OSError as exc:
            raise Refused(
                f"{target} can't be written: {exc.strerror}; nothing was stored.",
                "Make room there, and try again.",
            ) from exc
    if as_json:
        output.dump({"event": "remembered", "name": name, "file": str(target)})
    else:
        output.say(f"The passphrase is in {target}, encrypted for this computer.")
        output.say(f"From the next plug on nobody is asked for it. Take it back: {_taken(name)}")
    return output.DONE


def _store(fd: int, target: Path) -> None:
    """Encrypt the passphrase in *fd* into *target*, which is there whole or not at all."""
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = target.with_name(f".{target.name}.new")
    try:
        argv = [SYSTEMD_CREDS, "encrypt", f"--name={target.name}", "-", str(fresh)]
        run(argv, stdin=fd, deadline=_DEADLINE)
        fresh.chmod(0o600)
        fresh.rename(target)
    finally:
        with suppress(OSError):
            fresh.unlink()


def _taken(name: str) -> str:
    return f"cryptback passphrase {name} forget"


def forget(name: str, as_json: bool) -> int:
    """Remove the credentials of the drive; the exit code."""
    check_name(name)
    removed = remove(name)
    if as_json:
        output.dump({"event": "forgotten", "name": name, "files": removed})
        return output.DONE
    for path in removed:
        output.say(f"Removed: {path}")
    if not removed:
        output.say(f"This computer has no credential for {name}.")
    if _has_tpm2(name):
        output.say("Its TPM2 still opens the drive. That ends by")
        output.say(f"  cryptback passphrase {name} remove --what tpm2")
    return output.DONE


def remove(name: str) -> list[str]:
    """Remove the credentials of the drive; which files these were.  Raises Refused."""
    removed = []
    for directory in (paths.ENCRYPTED_CREDENTIALS, paths.CREDENTIALS):
        file = directory / f"cryptback.{name}"
        try:
            file.unlink()
            removed.append(str(file))
        except FileNotFoundError:
            continue
        except OSError as exc:
            raise Refused(
                f"{file} can't be removed: {exc.strerror}. It still opens the drive.",
                "Remove it by hand.",
            ) from exc
    return removed


def _has_tpm2(name: str) -> bool:
    try:
        with (paths.HEADERS / name).open("rb") as file:
            tokens = luks2.first(file).tokens
    except (OSError, ForgedDrive):
        return False
    return any(token.kind == luks2.TPM2 for token in tokens)


@contextmanager
def _given(name: str, passphrase_fd: int | None) -> Iterator[int]:
    if passphrase_fd is not None:
        with kept(passphrase_fd) as fd:
            yield fd
        return
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        question = f"Passphrase of the drive {name}:"
        argv = ["/usr/bin/systemd-ask-password", "-n", "--timeout=0", question]
        asking = spawn(argv, stdin=0, stdout=writing, stderr=None)
        os.close(writing)
        if _wait(asking) != 0:
            raise Refused("No passphrase was given; nothing was changed.")
        with kept(reading) as fd:
            yield fd
    finally:
        os.close(reading)


def _wait(asking: subprocess.Popen[bytes]) -> int:
    try:
        return asking.wait()
    finally:
        if asking.poll() is None:
            asking.terminate()
            asking.wait()


def _want_right(header: str, fd: int) -> None:
    """Raise WrongPassphrase unless the stored header is opened by it: the drive isn't needed."""
    words = ["--test-passphrase", "--disable-external-tokens", "--type", "luks2"]
    ended = run([CRYPTSETUP, "open", *words, header], stdin=fd, deadline=_DEADLINE, ok=None)
    if ended.status == 2:
        raise WrongPassphrase("That passphrase does not open the drive; nothing was stored.")
    if ended.status != 0:
        raise ToolFailed(f"The passphrase can't be tried: {ended.complaint}")
