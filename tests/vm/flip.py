"""Where a file's content lies on the raw stick, and a bit of it flipped, as a drive does it."""

from __future__ import annotations

import json

from tests.machine import Machine, Stick
from tests.vm.container import TREE, opened

# Content is looked for in the decrypted mapping, so the filesystem needs not be asked; then the
# drive's own filesystem says where that piece of the container is (FIBMAP).
FIND = r"""
import fcntl, json, struct, sys
wanted, header = json.loads(sys.argv[1]), 16 << 20
blocks = {}
for path in wanted:
    with open(path, "rb") as file:
        blocks[path] = file.read(4096)
found = {}
with open("/dev/mapper/byhand", "rb") as volume:
    at = 0
    while piece := volume.read(4 << 20):
        for path, block in blocks.items():
            place = piece.find(block)
            if path not in found and place >= 0 and place % 4096 == 0:
                found[path] = header + at + place
        at += len(piece)
with open("/mnt/drive/backup.luks", "rb") as container:
    (size,) = struct.unpack("i", fcntl.ioctl(container, 2, bytes(4)))
    for path, place in found.items():
        raw = fcntl.ioctl(container, 1, struct.pack("i", place // size))
        found[path] = struct.unpack("I", raw)[0] * size + place % size
print(json.dumps(found))
"""


def places(vm: Machine, *paths: str, version: str = "") -> list[int]:
    """Where the first block of each file (of random bytes) of a version lies on the stick "main".

    It is plugged in; *version* is the newest, unless another is named.
    """
    with opened(vm) as container:
        root = f"{TREE}/versions/{version}" if version else container.newest()
        named = json.dumps([f"{root}{path}" for path in paths])
        found = json.loads(vm.run(["python3", "-I", "-c", FIND, named], timeout=120).out)
        return [int(found[f"{root}{path}"]) for path in paths]


def flip(stick: Stick, *places: int) -> None:
    """Flip a bit at each place of a stick that is not plugged in."""
    offset = stick.start
    with open(stick.path, "r+b") as file:
        for place in places:
            file.seek(offset + place)
            byte = file.read(1)
            file.seek(offset + place)
            file.write(bytes([byte[0] ^ 0x10]))
