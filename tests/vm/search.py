"""Looks for secrets, in whatever form they are written: in memory and in files.

Runs in the guest (as a text given to Python), and on this computer for the image of a stick.
What it reads of a process is what a core of it would have, whether or not one may be made.
"""

from __future__ import annotations

import base64
import functools
import glob
import json
import os
import stat
import sys
from collections.abc import Iterator
from urllib.parse import quote, quote_plus

PAGE = 4096
CHUNK = 4 << 20
OVERLAP = 4096
"""What is read twice, so that nothing is missed where two pieces meet."""
THERE = 0b11 << 62
"""A page that is in memory, or in swap (pagemap, Documentation/admin-guide/mm/pagemap.rst)."""


@functools.cache
def forms(secret: str) -> tuple[bytes, ...]:
    """How it may be written; UTF-16 is looked for in another way."""
    raw = secret.encode()
    found = [raw, raw.hex().encode(), raw.hex().upper().encode()]
    found += [quote(secret).encode(), quote_plus(secret).encode()]
    for before in range(3):
        # The characters at the edges depend on what stands beside it.
        encoded = base64.b64encode(bytes(before) + raw)[: (before + len(raw)) * 8 // 6]
        inner = encoded[(0, 2, 3)[before] :]
        found += [inner, inner.translate(bytes.maketrans(b"+/", b"-_"))]
    return tuple(dict.fromkeys(found))


def times(data: bytes, secrets: list[str]) -> int:
    """How often one of the secrets is in the data."""
    found = 0
    halves = data[::2], data[1::2]
    for secret in secrets:
        found += sum(data.count(form) for form in forms(secret))
        # Of UTF-16 every other byte is zero, whichever comes first: so it is of Latin letters.
        found += sum(half.count(secret.encode("latin-1")) for half in halves)
    return found


def in_file(path: str, secrets: list[str]) -> int:
    """How often one of them is in a file."""
    found, start = 0, 0
    with open(path, "rb") as file:
        while data := _some(file.fileno(), start, CHUNK + OVERLAP):
            found += times(data, secrets)
            start += CHUNK
    return found


def in_files(places: list[str], secrets: list[str]) -> list[str]:
    """The files below these places that have one of them, in their content or their name."""
    found = []
    for place in places:
        for directory, _, names in os.walk(place):
            for name in names:
                path = os.path.join(directory, name)
                try:
                    plain = stat.S_ISREG(os.lstat(path).st_mode)
                    if times(os.fsencode(path), secrets) or (plain and in_file(path, secrets)):
                        found.append(path)
                except OSError:  # gone meanwhile, or a file of the kernel that can't be read
                    continue
    return found


def in_process(pid: int, secrets: list[str]) -> int:
    """How often one of them is in what the process can write to, and in what is no file."""
    found = 0
    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    pages = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY)
    try:
        with open(f"/proc/{pid}/maps") as maps:
            lines = maps.readlines()
        for line in lines:
            span, rights, _, _, inode, *name = line.split()
            if not rights.startswith("r") or name[:1] in (["[vvar]"], ["[vsyscall]"]):
                continue
            if "w" not in rights and inode != "0":
                continue
            start, end = (int(word, 16) for word in span.split("-"))
            for first, behind in _runs(pages, start, end):
                for at in range(first, behind, CHUNK):
                    data = _some(memory, at, min(CHUNK + OVERLAP, behind - at))
                    found += times(data, secrets)
    finally:
        os.close(memory)
        os.close(pages)
    return found


def in_processes(pids: list[int], secrets: list[str]) -> dict[str, list[list[str]]]:
    """The command lines of those that were looked at, and of those that have one of them."""
    told: dict[str, list[list[str]]] = {"looked": [], "knows": []}
    everybody = [int(place.split("/")[2]) for place in glob.glob("/proc/[0-9]*")]
    for pid in pids or everybody:
        if pid == os.getpid():
            continue
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                line = file.read().decode(errors="replace").split("\0")[:-1]
            if not line:  # of the kernel, or dead
                continue
            knows = in_process(pid, secrets)
        except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            continue
        told["looked"].append([str(pid), *line])
        if knows:
            told["knows"].append([str(pid), *line])
    return told


def _runs(pages: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The parts of a mapping that were ever touched: the rest is zero, and there is much of it."""
    first = None
    for at in range(start, end, PAGE * PAGE):
        size = min(PAGE * PAGE, end - at) // PAGE
        data = _some(pages, at // PAGE * 8, size * 8)
        for number, entry in enumerate(memoryview(data).cast("Q")):
            if entry & THERE:
                first = at + number * PAGE if first is None else first
            elif first is not None:
                yield first, at + number * PAGE
                first = None
    if first is not None:
        yield first, end


def _some(descriptor: int, start: int, most: int) -> bytes:
    """What there is of it: memory may be unmapped meanwhile, by a process that goes on."""
    try:
        return os.pread(descriptor, most, start)
    except (OSError, OverflowError):
        return b""


def main() -> None:
    asked = json.load(sys.stdin)
    if "places" in asked:
        print(json.dumps(in_files(asked["places"], asked["secrets"])))
    else:
        print(json.dumps(in_processes(asked["pids"], asked["secrets"])))


if __name__ == "__main__":
    main()
