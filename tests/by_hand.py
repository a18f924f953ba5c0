"""Files out of a container by hand, as the README tells it, on a machine without cryptbackd.

The commands are taken out of the README word by word: what it promises is what is run.
"""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

from tests.machine import Machine

README = Path(__file__).parents[1] / "README.md"
MANIFEST = (Path(__file__).parent / "machine" / "guest" / "manifest.py").read_bytes()
DEVICE = "/dev/sdX1"
"""How the README calls the drive's partition."""


def commands(title: str) -> list[str]:
    """The lines of the block of shell commands that follows this line in the README."""
    block = re.search(rf"^{re.escape(title)}$\n+```sh\n(.*?)^```$", README.read_text(), re.M | re.S)
    if block is None:
        raise LookupError(f"the README has no block of commands after: {title}")
    return block[1].splitlines()


def from_page(page: str, name: str) -> list[str]:
    """The lines of a block of commands of a recovery kit's page."""
    block = re.search(rf'<pre id="{re.escape(name)}">(.*?)</pre>', page, re.DOTALL)
    if block is None:
        raise LookupError(f"the page has no commands called {name}")
    return html.unescape(block[1]).splitlines()


VARIABLES = "/run/by-hand"
MOUNT = "Mount the drive, if your desktop hasn't done so already:"
OPEN = "If the container is a file on the drive:"
OPEN_PARTS = "If the container is several files (`backup.luks.001` is one of them), as on FAT32:"
OPEN_PARTITION = "If the partition itself is encrypted, there is nothing to mount first:"
CLOSE = "When you are done:"
CLOSE_PARTS = "When you are done, with several files:"
CLOSE_PARTITION = "When you are done, with an encrypted partition:"


def run(vm: Machine, lines: list[str], partition: str, passphrase: str = "") -> str:
    """What a person sees who types these commands, and the passphrase when it is asked for."""
    kept = [f". {VARIABLES}", *lines, f"echo \"loop='$loop'\" > {VARIABLES}"]  # as in one shell
    script = "\n".join(["set -e", f"touch {VARIABLES}", *kept]).replace(DEVICE, partition)
    return vm.run(script, passphrase.encode() + b"\n", timeout=120).out


def manifest(vm: Machine, directory: str) -> list[str]:
    """All that is to be kept of the files below a directory in the machine, a line each."""
    return manifests(vm, directory)[0]


def manifests(vm: Machine, *directories: str) -> list[list[str]]:
    """The same of several, which takes less time than of one after another."""
    # By way of a file: the agent takes no more than 16 MiB of output.
    script = 'python3 -I - "$@" > /tmp/manifest'
    vm.run(["/bin/sh", "-c", script, "sh", *directories], MANIFEST, timeout=120)
    text = vm.pull("/tmp/manifest").decode()
    vm.run(["rm", "/tmp/manifest"])
    return split(text)


def split(text: str) -> list[list[str]]:
    """What the script prints of several directories: the lines of each."""
    return [part.splitlines() for part in text.split("\n\n")]


def versions(vm: Machine) -> list[str]:
    """The versions in the opened container, oldest first."""
    shown = vm.run("cd /mnt/versions && for f in *.json; do tr -d '\\n' < $f; echo; done").out
    records = [json.loads(line) for line in shown.splitlines()]
    return [str(r["version"]) for r in sorted(records, key=lambda r: int(r["sequence"]))]


def difference(source: list[str], copy: list[str]) -> str:
    """How the two manifests differ, a line for each file and field; empty if they don't."""
    ours, theirs = _by_name(source), _by_name(copy)
    lines = []
    for name in sorted(ours.keys() | theirs.keys()):
        one, other = ours.get(name, {}), theirs.get(name, {})
        fields = [field for field in one | other if one.get(field) != other.get(field)]
        lines += [f"{name}: {f}: {one.get(f)} became {other.get(f)}" for f in fields]
    return "\n".join(lines)


def _by_name(manifest: list[str]) -> dict[str, dict[str, Any]]:
    records = [json.loads(line) for line in manifest]
    return {record["name"]: record for record in records}
