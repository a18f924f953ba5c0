"""``python3 -m cryptbackd.query``: answers a question about the catalogue, and ends.

A process of its own, since the answer may take a million names and the daemon has others to serve.
The question is a JSON object on standard input; the answer goes, line by line, to a pipe that
whoever asked reads the other end of.  Each line is a JSON object, and the last one has ``end`` or
``error``: without one of these the answer is not whole.  Bytes that are no UTF-8 stand as lone
surrogates (Python's ``surrogateescape``).  docs/dbus.md has the questions and the lines.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import attrs

from . import catalogue, foreign, manifest, moment
from .changes import Holding, Summary, changes, checksum, compare, fields
from .errors import CryptbackError, ManifestDamaged, Refused
from .leaving import leave
from .search import Pattern, Search, State, groups_of
from .seeing import Seer

_MOST_MEMORY = 1 << 30
_KINDS = {
    b"f": "file", b"d": "directory", b"l": "link", b"p": "fifo", b"s": "socket",
    b"b": "block device", b"c": "character device",
}  # fmt: skip

Line = dict[str, Any]


def answer(question: dict[str, Any]) -> Iterator[Line]:
    """The lines of the answer; raises CryptbackError."""
    uid = int(question["uid"])
    seer = Seer(uid, groups_of(uid) if uid else frozenset())
    match question["what"]:
        case "find":
            yield from _find(question, seer)
        case "versions":
            yield from _versions(question)
        case "compare":
            yield from _compare(question, seer)


def _find(question: dict[str, Any], seer: Seer) -> Iterator[Line]:
    pattern = Pattern(question["pattern"])
    for drive in question["drives"]:
        kept = catalogue.kept(drive["name"], drive["up_to"])
        search = Search(pattern, seer, question["limit"])
        unknown = []
        for version in kept:
            try:
                with _opened(version) as reader:
                    search.look(version.name, reader)
            except (ManifestDamaged, FileNotFoundError):
                unknown.append(version.name)
        for path in sorted(search.found.paths):
            states = search.found.paths[path]
            yield {
                "drive": drive["name"],
                "path": "/" + os.fsdecode(path),
                "versions": sum(len(state.versions) for state in states),
                "newest": bool(kept) and states[-1].versions[-1] == kept[-1].name,
                "states": [_state(state) for state in states],
            }
        yield {
            "searched": drive["name"],
            "versions": len(kept) - len(unknown),
            "unknown": unknown,
            "more": search.found.more,
        }


def _state(state: State) -> Line:
    return {
        "first": state.versions[0],
        "last": state.versions[-1],
        "versions": len(state.versions),
        **_described(state.record),
    }


def _described(record: list[bytes]) -> Line:
    known = checksum(record)
    return {
        "kind": _KINDS.get(record[0], "unknown"),
        "size": int(record[5]) if record[0] == b"f" else 0,
        "mtime": manifest.nanoseconds(record[6]) / 1e9,
        "xxh128": "" if known == manifest.UNKNOWN else known.decode("ascii", "replace"),
    }


def _versions(question: dict[str, Any]) -> Iterator[Line]:
    (drive,) = question["drives"]
    kept = catalogue.kept(drive["name"], drive["up_to"])
    line: Line = {}
    held: Holding | None = None
    known = False
    for number, version in enumerate(kept):
        pair = _between(kept[number - 1], version) if number else None
        if line:
            # What it holds alone, it has and neither the one before nor this one.
            yield {**line, "only": pair[1].bytes(held) if pair is not None and known else None}
        held = pair[2] if pair is not None else None
        known = pair is not None or number == 0
        line = _version(version, pair[0] if pair is not None else None, question["texts"])
    if line:
        everything = known and held is None
        alone = _all(kept[-1]) if everything else held
        yield {**line, "only": alone.bytes(None) if alone is not None else None}


def _between(old: catalogue.Kept, new: catalogue.Kept) -> tuple[Summary, Holding, Holding] | None:
    """What ``changes.compare`` tells of two versions; None where one's manifest is lost."""
    try:
        with ExitStack() as stack:
            readers = [stack.enter_context(_opened(version)) for version in (old, new)]
            return compare(*readers)
    except (ManifestDamaged, FileNotFoundError):
        return None


def _all(version: catalogue.Kept) -> Holding | None:
    """All that a version holds that stands alone."""
    everything = Holding()
    try:
        with _opened(version) as reader:
            for raw in reader:
                key, record = fields(raw)
                everything.add(key, record)
    except (ManifestDamaged, FileNotFoundError):
        return None
    return everything


@contextmanager
def _opened(version: catalogue.Kept) -> Iterator[manifest.Reader]:
    """Its manifest.  One that is damaged is removed: the next run puts it back from the drive."""
    if version.manifest is None:
        raise FileNotFoundError(version.name)
    reader = None
    try:
        with manifest.opened(version.manifest) as reader:
            yield reader
    except ManifestDamaged:
        # It may be another one that is damaged.
        if reader is None or reader.damaged:
            version.manifest.unlink(missing_ok=True)
        raise


def _version(version: catalogue.Kept, summary: Summary | None, texts: bool) -> Line:
    record = version.record
    told = record.get("warnings")
    warnings = [w for w in told if isinstance(w, str)] if isinstance(told, list) else []
    return {
        "version": version.name,
        "sequence": version.sequence,
        "finished": foreign.number(record.get("finished")),
        "files": foreign.number(record.get("files")),
        "bytes": foreign.number(record.get("bytes")),
        "recorded": version.manifest is not None,
        "changes": attrs.asdict(summary) if summary is not None else None,
        "warned": len(warnings),
        "warnings": warnings if texts else [],
    }


def _compare(question: dict[str, Any], seer: Seer) -> Iterator[Line]:
    (drive,) = question["drives"]
    kept = {v.name: v for v in catalogue.kept(drive["name"], drive["up_to"])}
    made = [moment.Made.named(version.name, version.sequence) for version in kept.values()]
    names = [moment.choose(when, made, time.time()).name for when in question["between"]]
    yield {"from": names[0], "to": names[1]}
    with ExitStack() as stack:
        try:
            readers = [stack.enter_context(_opened(kept[name])) for name in names]
        except (ManifestDamaged, FileNotFoundError) as exc:
            raise Refused(
                "What one of these versions holds is not known on this computer.",
                "The next run takes that from the drive, if it is there.",
            ) from exc
        sights = [seer.look(reader) for reader in readers]
        for change in changes(*readers):
            sides = zip(sights, (change.before, change.after), strict=True)
            if not all(side is None or sight.shows(change.path, side) for sight, side in sides):
                continue
            line: Line = {"change": change.what, "path": "/" + os.fsdecode(change.path)}
            if change.before is not None:
                line["before"] = _described(change.before)
            if change.after is not None:
                line["after"] = _described(change.after)
            yield line


def main() -> int:
    """Answer the question; the exit status."""
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY, _MOST_MEMORY))
    question = json.load(sys.stdin)
    try:
        _answer(question)
        sys.stdout.flush()
    except BrokenPipeError:
        os._exit(0)  # who asked has left; what is not yet written can't be any more
    return 0


def _answer(question: dict[str, Any]) -> None:
    try:
        for line in answer(question):
            _say(line)
        _say({"end": True})
    except CryptbackError as exc:
        _say({"error": type(exc).__name__, "sentence": exc.sentence, "hint": exc.hint})
    except MemoryError:
        sentence = "The answer is too large."
        _say({"error": "Refused", "sentence": sentence, "hint": "Ask for something narrower."})


def _say(line: Line) -> None:
    sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    leave(main())
