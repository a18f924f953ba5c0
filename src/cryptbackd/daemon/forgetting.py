"""What this computer knows of a drive, and how it is forgotten; and what a kit is made of.

The drive itself is never touched.  The stored header stays unless a kit has it: where the one
on the drive is damaged, or was never there, nothing else opens the volume.
"""

from __future__ import annotations

import os
from pathlib import Path

import attrs

from .. import kits, luks2, paths
from ..config import Entry
from ..errors import ForgedDrive, Refused
from .history import History


@attrs.define
class Forgotten:
    """What was removed, and what was kept; ``why`` in a sentence."""

    removed: list[str] = attrs.field(factory=list)
    kept: list[str] = attrs.field(factory=list)
    why: str = ""


def forget(name: str, history: History, state: Path = paths.STATE) -> Forgotten:
    """Remove entry, history, catalogue and, where a kit has it, the header of *name*.

    Raises Refused where a change of the container's length is to be finished first.
    """
    if paths.unfinished(name).exists():
        raise Refused(
            f"A change of the length of {name} was cut off, and only this computer can finish it;"
            " nothing was forgotten.",
            "Plug the drive in: the next run finishes it.",
        )
    done = Forgotten()
    header = state / paths.HEADERS.name / name
    noted = state / paths.KITS.name
    in_kit = kits.has(name, header, noted)
    _remove(paths.DRIVES_D / f"{name}.toml", done)
    history.forget(name)
    catalogue = state / "catalogue" / name
    if catalogue.is_dir():
        _remove_all(catalogue, done)
    detached = _is_detached(header)
    # Where the drive may not have the last change of its header yet, both are needed.
    if in_kit and not detached and not header.with_name(f"{name}.pending").exists():
        _remove(header, done)
        kits.forget(name, noted)
    done.kept = [str(path) for path in (header, *sorted(header.parent.glob(f"{name}.*")))
                 if path.exists()]  # fmt: skip
    done.why = _why(name, bool(done.kept), in_kit, detached)
    return done


def _why(name: str, kept: bool, in_kit: bool, detached: bool) -> str:
    if detached:
        return "The header is kept: there is none on the drive. Without it nothing opens the drive."
    if not in_kit and kept:
        return (
            "The header is kept, as no recovery kit has it: it opens the drive when the drive's own"
            " header is damaged. Remove it when you no longer need that backup."
        )
    if kept:
        return "The header is in the recovery kit; what changes of it left is kept."
    return f"{name} is forgotten. The header is in the recovery kit."


def _is_detached(header: Path) -> bool:
    try:
        with header.open("rb") as file:
            return luks2.first(file).detached
    except (OSError, ForgedDrive):
        return False


def _remove(path: Path, done: Forgotten) -> None:
    try:
        path.unlink()
    except FileNotFoundError:
        return
    except OSError as exc:
        raise Refused(f"{path} can't be removed: {exc.strerror}.", "Remove it by hand.") from exc
    done.removed.append(str(path))


def _remove_all(directory: Path, done: Forgotten) -> None:
    import shutil  # late: the idle daemon needs none of it

    try:
        shutil.rmtree(directory)
    except OSError as exc:
        why = exc.strerror or str(exc)
        raise Refused(f"{directory} can't be removed: {why}.", "Remove it by hand.") from exc
    done.removed.append(str(directory))


def facts(name: str, entry: Entry) -> dict[str, object]:
    """What a kit says of the entry *name*, but for what only the drive knows."""
    return {
        "name": name,
        "uuid": entry.uuid,
        "container": entry.container or "",
        "include": list(entry.backup.include),
        "include_from": list(entry.backup.include_from),
        "size": 0,
        "problem": "",
    }


def stored_header(name: str) -> int:
    """The stored header, opened for reading, the caller's to close; raises Refused."""
    try:
        return os.open(paths.HEADERS / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as exc:
        raise Refused(
            f"The computer has no header stored for {name} ({exc.strerror}).",
            f"`cryptback passphrase {name} --adopt` takes over the drive's own.",
        ) from exc
