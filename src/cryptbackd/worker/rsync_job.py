"""What is asked of rsync, and how it is put: the command line of the writer (rsync(1))."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import attrs

from .rights import Rights
from .sources import is_inside
from .writer import shell

RSYNC = "/usr/bin/rsync"
TEMPORARY = ".cryptback-tmp"
"""Where rsync writes a file before it gets its name: in the root of the target."""

SOURCE = "/source"
"""Where the reader has the staged sources."""

_ATTRIBUTES = ("trusted.*", "system.*", "security.ima", "security.evm")
"""Extended attributes that are none of ours, on both sides.

The reader can't see ``trusted.*``, and the writer can't set the two of ``security.*``: they are
another kernel's to make.  On the writer's side XFS shows ACLs there a second time,
and rsync would remove them as no part of the source: the ACLs would go.  ``system.*`` is what
rsync leaves out by itself only while there is no such filter.
"""

_LABEL = "security.selinux"
"""Only where SELinux is at work can the writer set it; elsewhere it is what one was once."""

ITEM = "="
"""Begins the lines of ``--out-format``; rsync's own begin with a space or a letter."""


class Received(NamedTuple):
    """A file whose content was copied."""

    path: bytes
    xxh128: bytes
    """What rsync computed of the content while it copied it, hexadecimal."""
    status: os.stat_result
    """Of the copy."""
    source: os.stat_result | None
    """Of the source, after it was copied; None: it is gone by now."""


@attrs.frozen
class Job:
    """One sync: from the staged tree into the target, both absolute."""

    stage: Path
    target: Path
    exclude: tuple[str, ...]
    own: tuple[str, ...]
    """Sources that the stage has."""
    others: tuple[str, ...]
    """Sources that it hasn't: theirs stays as it is in the target."""
    rights: Rights | None = None
    """With whose rights the sources are read; None: root's."""
    link_dest: tuple[Path, ...] = ()
    """Trees whose unchanged files are linked into the target (ext4, xfs)."""
    delete: bool = True
    contents: bool = False
    """Compare files by content, not by size and time: reads both sides in full."""
    tell_same: bool = False
    """Have ``received`` told of files whose content was found to be the same, too (together with
    *contents*)."""
    names: tuple[bytes, ...] | None = None
    """What alone is looked at, below the stage: a directory stands for itself, not for what
    is in it, and of a file with several names all are there.  Nothing is deleted then."""
    in_place: bool = False
    """Write into the files that are there what differs in them (together with *names*).  Each
    must have one link, and one whose copy fails is damaged."""
    named: set[str] = attrs.field(factory=set)
    """Files that were warned of already, if this is not the first try."""
    failed: set[bytes] = attrs.field(factory=set)
    """Paths below the stage of what was warned of: the copy may not be what is there."""
    received: Callable[[Received], None] = lambda _file: None
    """Told of each regular file whose content was copied, once it has its name."""


def literal(path: str) -> str:
    """*path* as an rsync pattern that matches nothing else (rsync(1), FILTER RULES).

    A backslash is an escape only in a pattern with wildcards.
    """
    if not any(c in path for c in "*?["):
        return path
    return re.sub(r"([*?\[\\])", r"\\\1", path)


def _boundaries(job: Job) -> list[str]:
    """Filters that leave alone what is not this job's: the innermost source has the say."""
    filters = []
    for path in sorted({*job.own, *job.others}, key=len, reverse=True):
        below = re.sub(r"([*?\[\\])", r"\\\1", path.rstrip("/")) + "/**"
        if path in job.own:
            rules = "R"
        else:
            rules = "HP" if any(is_inside(path, own) for own in job.own) else "P"
        filters += [f"--filter={rule} {what}" for rule in rules for what in (literal(path), below)]
    return filters


def arguments(job: Job, *, dry: bool, door: int) -> list[str]:
    """The writer's command line; *dry*: it only tells what it would do.

    *door*: the descriptor by which it asks for its reader (``worker.writer``).
    """
    left_out = _ATTRIBUTES if os.path.exists("/sys/fs/selinux/enforce") else (*_ATTRIBUTES, _LABEL)
    filters = [f"--filter=-xsr {attribute}" for attribute in left_out]
    filters += [f"--filter=P /{TEMPORARY}", *_boundaries(job)]
    filters += [f"--filter=- {pattern}" for pattern in job.exclude]
    argv = [RSYNC, "--archive", "--hard-links", "--acls", "--xattrs", *filters]
    argv += ["--numeric-ids", "--secluded-args", "--modify-window=-1"]
    argv += ["--no-human-readable", "--outbuf=L", "--checksum-choice=xxh128", "--force"]
    if job.in_place:
        argv += ["--inplace", "--no-whole-file", "--ignore-times"]
    else:
        argv += ["--whole-file", "--sparse", f"--temp-dir={job.target / TEMPORARY}"]
    if job.contents:
        argv += ["--checksum"]
    if job.tell_same:
        argv += ["--itemize-changes", "--itemize-changes"]
    if job.names is not None:
        argv += ["--files-from=-", "--from0"]
    elif job.delete:
        argv += ["--delete", "--delete-excluded"]
    argv += [f"--link-dest={path}" for path in job.link_dest]
    if dry:
        argv += ["--dry-run", f"--out-format={ITEM}%i %l %n"]
    else:
        # %C makes rsync log a file when it has all of it, just before it gets its name.
        argv += ["--info=progress2", "--stats", f"--out-format={ITEM}%i %C %n"]
    # Who starts the reader needs no host.
    argv += [f"--rsh={shell(door)}", f"--rsync-path={RSYNC}"]
    return [*argv, f"reader:{SOURCE}/", f"{job.target}/"]


def listed(job: Job) -> bytes | None:
    """The names as ``--files-from`` takes them.

    With "./" before it a name can begin with anything: one that begins with "#" or ";" would
    be a comment, with ``--from0``, too.
    """
    if job.names is None:
        return None
    return b"".join(b"./" + name + b"\0" for name in job.names)
