"""Layer 0: a Debian disk image with kernel and initramfs, made by mmdebstrap on this computer."""

from __future__ import annotations

import os
import shlex
import subprocess
import uuid
from dataclasses import dataclass
from pathlib import Path

from tests.machine import cache

SUITE = "trixie"
SIZE = 4 << 30
GUEST = Path(__file__).parent / "guest"


@dataclass(frozen=True)
class Image:
    """A built image."""

    path: Path

    @property
    def disk(self) -> Path:
        return self.path / "disk.raw"

    @property
    def identity(self) -> str:
        """Differs between two builds of the same recipe."""
        return (self.path / "identity").read_text()

    @property
    def kernel(self) -> Path:
        return self.path / "vmlinuz"

    @property
    def initrd(self) -> Path:
        return self.path / "initrd"


def ensure() -> Image:
    """The image, built if the cache has none of this recipe."""
    return Image(cache.entry("image", cache.digest(_inputs()), _build))


def _inputs() -> list[bytes | str]:
    recipe = [GUEST / "packages.txt", GUEST / "prepare", GUEST / "customize", Path(__file__)]
    return [SUITE, *(path.read_bytes() for path in recipe)]


def _packages() -> list[str]:
    lines = (GUEST / "packages.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def _build(path: Path) -> None:
    """Stream mmdebstrap's file system into a directory and make a disk of it."""
    debootstrap = [
        "mmdebstrap",
        "--quiet",
        "--variant=minbase",
        f"--include={','.join(_packages())}",
        "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        "--aptopt=Apt::Install-Recommends false",
        *(f"--aptopt={option}" for option in _apt_options()),
        f'--essential-hook={shlex.quote(str(GUEST / "prepare"))} "$1"',
        f'--customize-hook={shlex.quote(str(GUEST / "customize"))} "$1"',
        "--skip=output/mknod",
        SUITE,
        "-",
        *_mirror(),
    ]
    # Without root a user namespace stands in: files belong to the right users inside of it.
    mapped = [] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--map-auto"]
    script = r"""
        set -e
        cd "$1"
        trap 'rm -rf root' EXIT
        mkdir root
        tar -x -p -C root --numeric-owner --xattrs --xattrs-include='*'
        cp root/boot/vmlinuz-* vmlinuz
        cp root/boot/initrd.img-* initrd
        chmod 644 vmlinuz initrd
        truncate -s "$2" disk.raw
        PATH=$PATH:/usr/sbin:/sbin mkfs.ext4 -q -F -L machine -E lazy_itable_init=0 -d root disk.raw
    """
    unpack = [*mapped, "sh", "-c", script, "sh", str(path), str(SIZE)]
    with subprocess.Popen(debootstrap, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as source:
        subprocess.run(unpack, stdin=source.stdout, check=True)
    if source.returncode:
        raise RuntimeError(f"mmdebstrap failed with exit status {source.returncode}")
    (path / "identity").write_text(uuid.uuid4().hex)


def _mirror() -> list[str]:
    """The Debian mirror that this computer itself uses; nothing: mmdebstrap's default."""
    template = "$(REPO_URI)|$(LABEL)|$(COMPONENT)"
    command = ["apt-get", "indextargets", "--format", template, "Created-By: Packages"]
    listing = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    for line in listing.splitlines():
        uri, _, kind = line.partition("|")
        if kind == "Debian|main":
            return [uri]
    return []


def _apt_options() -> list[str]:
    """How this computer reaches its mirrors (proxy, clock)."""
    dump = subprocess.run(
        ["apt-config", "dump"], capture_output=True, text=True, check=False
    ).stdout
    wanted = ("Acquire::http", "Acquire::Check-")
    return [
        line for line in dump.splitlines() if line.startswith(wanted) and not line.endswith(' "";')
    ]
