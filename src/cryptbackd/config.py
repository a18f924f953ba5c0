"""What was asked: the entries below ``/etc/cryptback/drives.d``.

One file an entry, ``NAME.toml``.  An entry that is not as it must be is a ConfigError that
names the file, the key, what was found and what is wanted; it disables that entry alone.
The language is described in cryptback-drives(5); the duration and size words are those of
``cryptbackd.text``.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, NewType

import attrs

from . import foreign, paths
from .errors import ConfigError, UnknownDrive
from .paths import NAME
from .text import parse_duration, printable

Duration = NewType("Duration", int)
"""Seconds, written as ``30min``, ``1h``, ``14d``."""
Share = NewType("Share", float)
"""A fraction, written as ``5%``."""
AbsolutePath = NewType("AbsolutePath", str)
FileName = NewType("FileName", str)
"""A path below the root of the drive."""
Pattern = NewType("Pattern", str)
Count = NewType("Count", int)
Uuid = NewType("Uuid", str)
User = NewType("User", str)


@attrs.frozen
class Backup:
    """``[backup]``: what is copied."""

    include: tuple[AbsolutePath, ...] = ()
    include_from: tuple[AbsolutePath, ...] = ()
    exclude: tuple[Pattern, ...] = ()
    cross_filesystems: bool = False


@attrs.frozen
class Keep:
    """``[keep]``: how many versions stay; all of them 0: no rules.  See ``versions.retention``."""

    last: Count = Count(0)
    hourly: Count = Count(0)
    daily: Count = Count(0)
    weekly: Count = Count(0)
    monthly: Count = Count(0)
    yearly: Count = Count(0)


@attrs.frozen
class When:
    """``[when]``: how often."""

    at_most: Duration | None = None
    repeat: Duration | None = None
    remind: Duration | None = None


@attrs.frozen
class Verify:
    """``[verify]``: how much is read back."""

    sample: Share | None = None
    """None: a few files."""
    full_every: Count = Count(20)


@attrs.frozen
class After:
    """``[after]``: what happens when all is done."""

    power_off: bool = False


@attrs.frozen
class Entry:
    """One enrolled drive.  ``container`` None: the partition itself is LUKS."""

    uuid: Uuid
    container: FileName | None = None
    owner: User | None = None
    backup: Backup = attrs.field(factory=Backup)
    keep: Keep = attrs.field(factory=Keep)
    when: When = attrs.field(factory=When)
    verify: Verify = attrs.field(factory=Verify)
    after: After = attrs.field(factory=After)


LONGEST = 60 * 1024
"""Bytes of an entry: written as JSON, of which a character can take three times as many, it has to
fit into one packet for the worker (``protocol.MAX_PACKET``) with what else is said there."""
_UUID = re.compile(r"[0-9A-Za-z-]{1,64}")
_SHARE = re.compile(r"(\d{1,3}(?:\.\d{0,9})?|\.\d{1,9})%", re.ASCII)
_LONGEST = 100 * 366 * 86_400
"""Seconds."""


class _Fault(Exception):
    """What is wrong with the key ``path``."""

    def __init__(self, path: str, sentence: str) -> None:
        super().__init__(sentence)
        self.path = path


def _unwanted(path: str, found: object, wanted: str) -> _Fault:
    return _Fault(path, f"found {_found(found)}, wanted {wanted}")


def _found(value: object) -> str:
    if isinstance(value, str | bool | int | float):
        return printable(json.dumps(value, ensure_ascii=False), 60)
    if isinstance(value, dict):
        return "a table"
    return "a list" if isinstance(value, list) else f"a {type(value).__name__}"


_Read = Callable[[object, str], Any]
"""Takes a value of the file and the path of its key; raises _Fault."""


def _text(wanted: str, good: Callable[[str], bool]) -> _Read:
    def read_text(value: object, path: str) -> str:
        if not isinstance(value, str) or "\0" in value or not good(value):
            raise _unwanted(path, value, wanted)
        return value

    return read_text


def _is_absolute(path: str) -> bool:
    return path.startswith("/") and ".." not in path.split("/") and path.isprintable()


def _is_beneath(path: str) -> bool:
    parts = path.split("/")
    return path.isprintable() and all(part not in ("", ".", "..") for part in parts)


def _boolean(value: object, path: str) -> bool:
    if not isinstance(value, bool):
        raise _unwanted(path, value, "true or false")
    return value


def _count(value: object, path: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 1_000_000:
        raise _unwanted(path, value, "a whole number from 0 on")
    return value


def _duration(value: object, path: str) -> int:
    try:
        seconds = parse_duration(value if isinstance(value, str) else "")
    except ValueError:
        seconds = _LONGEST + 1
    if seconds > _LONGEST:
        raise _unwanted(path, value, 'a time such as "30min", "1h" or "14d"')
    return seconds


def _share(value: object, path: str) -> float:
    match = _SHARE.fullmatch(value) if isinstance(value, str) else None
    share = float(match[1]) / 100 if match is not None else -1.0
    if not 0 <= share <= 1:
        raise _unwanted(path, value, 'a percentage such as "1%"')
    return share


def _list_of(item: _Read) -> _Read:
    def read_list(value: object, path: str) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise _unwanted(path, value, "a list")
        return tuple(item(each, path) for each in value)

    return read_list


def _table(cls: type[Any]) -> _Read:
    def read_table(value: object, path: str) -> Any:
        if not isinstance(value, dict):
            raise _unwanted(path, value, "a table")
        begins = f"{path}." if path else ""
        fields = {field.name: field for field in attrs.fields(cls)}
        found = {}
        for name, field in fields.items():
            if name in value:
                found[name] = _READ[_kind(field)](value[name], begins + name)
            elif field.default is attrs.NOTHING:
                raise _Fault(begins + name, "it is missing")
        for extra in sorted(value.keys() - fields.keys()):
            known = ", ".join(fields)
            raise _Fault(
                begins + printable(extra, 60), f"no such key is known; the keys here are {known}"
            )
        return cls(**found)

    return read_table


def _kind(field: attrs.Attribute[Any]) -> str:
    """The type of a field, as it is written in the class; that there may be none is the same."""
    return str(field.type).removesuffix(" | None")


_PATH = _text('an absolute path without ".."', _is_absolute)
_PATTERN = _text("an rsync pattern in one line", lambda s: s != "" and "\n" not in s)
_READ: dict[str, _Read] = {
    "Uuid": _text(
        "the filesystem UUID that `lsblk -f` shows",
        lambda s: _UUID.fullmatch(s) is not None,
    ),
    "FileName": _text('a file name on the drive, without ".."', _is_beneath),
    "User": _text("a user's name", lambda s: s != "" and s.isprintable() and " " not in s),
    "Count": _count,
    "Duration": _duration,
    "Share": _share,
    "bool": _boolean,
    "tuple[AbsolutePath, ...]": _list_of(_PATH),
    "tuple[Pattern, ...]": _list_of(_PATTERN),
    **{cls.__name__: _table(cls) for cls in (Backup, Keep, When, Verify, After)},
}


def parse(text: str, where: str) -> Entry:
    """The entry in the TOML *text*; *where* is the file's name for errors.

    Raises ConfigError.
    """
    _want_short(len(text.encode("utf-8", "surrogatepass")), where)
    hint = "See cryptback-drives(5)."
    try:
        raw = foreign.toml(text)
    except ValueError as exc:
        raise ConfigError(f"{where}: this is not TOML: {printable(str(exc))}.", hint) from exc
    try:
        entry: Entry = _table(Entry)(raw, "")
    except _Fault as fault:
        raise ConfigError(f"{where}: {fault.path}: {fault}.", hint) from None
    if not entry.backup.include and not entry.backup.include_from:
        raise ConfigError(
            f"{where}: backup.include: it is missing or empty, and so is include_from: there is"
            " nothing to copy.",
            hint,
        )
    if entry.when.repeat is not None and entry.after.power_off:
        raise ConfigError(
            f"{where}: when.repeat: it can't be together with after.power_off = true.", hint
        )
    return entry


def _want_short(length: int, where: str) -> None:
    if length > LONGEST:
        raise ConfigError(
            f"{where}: it has more than {LONGEST // 1024} KiB.",
            "Put what is to be backed up into a list, and name that in include_from: see"
            " cryptback-drives(5).",
        )


def check_name(name: str) -> str:
    """*name*, if an entry may be called so; raises ConfigError otherwise."""
    if NAME.fullmatch(name) is None:
        raise ConfigError(
            f'"{printable(name, 40)}" can\'t be the name of an entry.',
            "It has 1 to 31 characters of a-z, 0-9, _ and -, and begins with a letter or digit.",
        )
    return name


def read(name: str, directory: Path = paths.DRIVES_D) -> tuple[Entry, str]:
    """The entry *name* and the text that it was read from.

    The file must belong to root and be writable by nobody else: whoever can write it
    decides what root copies.  Raises UnknownDrive and ConfigError.
    """
    check_name(name)
    path = directory / f"{name}.toml"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise UnknownDrive(
            f'No drive is enrolled under the name "{name}".', "`cryptback status` lists them."
        ) from None
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}.") from exc
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{path}: it is not a regular file.")
        if status.st_uid != 0 or status.st_mode & 0o022:
            raise ConfigError(
                f"{path}: it belongs to user {status.st_uid} and has mode"
                f" {stat.S_IMODE(status.st_mode):04o}; wanted: root's, writable by nobody else.",
                f"Look at what it says, then: chown root: {path}; chmod go-w {path}",
            )
        raw = file.read(LONGEST + 1)
    _want_short(len(raw), str(path))
    try:
        text = raw.decode()
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path}: byte {exc.start} is not UTF-8.") from exc
    return parse(text, str(path)), text


@attrs.frozen
class Entries:
    """All entries: those that can be used, and the faults of those that can't."""

    good: dict[str, Entry]
    texts: dict[str, str]
    bad: dict[str, ConfigError]


def read_all(directory: Path = paths.DRIVES_D) -> Entries:
    """Every entry below *directory*; a file that is wrong disables that entry alone."""
    entries = Entries({}, {}, {})
    try:
        files = sorted(path for path in directory.iterdir() if path.suffix == ".toml")
    except FileNotFoundError:
        return entries
    for path in files:
        try:
            entries.good[path.stem], entries.texts[path.stem] = read(path.stem, directory)
        except ConfigError as exc:
            entries.bad[printable(path.stem, 40)] = exc
        except UnknownDrive:
            continue
    return entries


def render(
    uuid: str,
    container: str | None,
    owner: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    include_from: tuple[str, ...] = (),
) -> str:
    """The TOML of a new entry, as ``init`` writes it; ``parse`` reads it back the same."""

    def toml(value: str) -> str:
        return json.dumps(value, ensure_ascii=False)

    def array(values: tuple[str, ...]) -> str:
        return "[" + ", ".join(toml(value) for value in values) + "]"

    lines = ["# Written by `cryptback init`; see cryptback-drives(5).", f"uuid = {toml(uuid)}"]
    if container is not None:
        lines.append(f"container = {toml(container)}")
    if owner is not None:
        lines.append(f"owner = {toml(owner)}")
    lines += ["", "[backup]"]
    if include or not include_from:
        lines.append(f"include = {array(include)}")
    if include_from:
        lines.append(f"include_from = {array(include_from)}")
    if exclude:
        lines.append(f"exclude = {array(exclude)}")
    return "\n".join(lines) + "\n"
