"""Verification: read files back from the drive and compare them with the manifests.

Nothing in the container is changed: its filesystem is mounted read-only.  Whatever is found, the
stack is taken down in order and it is proven that the drive may be pulled.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import attrs

from ... import config, protocol
from ...errors import Damaged
from ...manifest import Record
from ...model import Outcome, Phase, RunResult
from ...moment import Made, choose
from ...text import count, printable, size
from .. import header as headers
from .. import workspace
from ..control import Control, Meter
from ..damage import Verification, opened
from ..layers.mounted import Mounted
from ..manifests import Manifests, total
from ..readback import Readback
from ..remaining import told
from ..sample import chance, part
from ..scrub import Scrubbed, scrub
from ..versions import VERSIONS, record
from ..versions.record import Version
from .backup import proven_free, unlocked

_MOST_NAMED = 500
"""Damaged files that are named, each in a line of the journal."""
_MOST_TOLD = 64 << 10
"""Bytes of the list for programs, which goes into one message."""


@attrs.frozen
class Options:
    """What was asked for.

    ``full``: all files of all versions, on btrfs with a scrub; else those of the version that
    ``at`` means (empty: the newest), all of them or the share ``sample``.
    """

    full: bool = False
    sample: float = 1.0
    at: str = ""


def verify(start: protocol.Start, control: Control) -> RunResult:
    """Verify the drive of the entry ``start.name``; its options are those of :class:`Options`."""
    options = Options(**start.options)
    entry = config.parse(start.entry, start.name)
    header = headers.load(start.name)
    place = workspace.make(start.name)
    control.phase(Phase.ATTACHING)
    with proven_free(start.device, control, writes=False), ExitStack() as stack:
        tree = stack.enter_context(
            unlocked(start.name, entry, start.device, header, place, control, read_only=True)
        )
        stack.enter_context(told(control))
        found = record.versions(tree.path / VERSIONS)
        verdict = record.judge(found, start.ledger)
        if verdict:
            control.warn(
                f"The drive is not as this computer remembers it. {verdict}", "drive_older"
            )
        job = _Job(start, options, tree, found, control)
        job.verify()
    control.phase(Phase.FINISHED)
    return job.result()


class _Job:
    """The verification of an opened drive."""

    def __init__(
        self,
        start: protocol.Start,
        options: Options,
        tree: Mounted,
        found: list[Version],
        control: Control,
    ) -> None:
        self._name = start.name
        self._options = options
        self._tree = tree
        self._newest_first = found[::-1]
        self._chosen = self._choose(found)
        self._control = control
        self._manifests = Manifests(start.name, control)
        self._meter = Meter(control, 0)
        self._done = 0
        self._scrubbed: Scrubbed | None = None
        self._verification = Verification(
            tree.fstype,
            Readback(tree.fstype, tree.beneath, self._passed),
            start.device.node,
            remember=options.full,
        )

    def _choose(self, found: list[Version]) -> list[Version]:
        """The versions to be looked at, newest first."""
        made = [Made.named(version.path.name, version.sequence) for version in found]
        chosen = choose(self._options.at, made, time.time())
        if self._options.full:
            return self._newest_first
        return [version for version in found if version.path.name == chosen.name]

    def verify(self) -> None:
        """Read everything that is to be read; raises DriveFailed and Cancelled."""
        self._control.phase(Phase.VERIFYING)
        self._meter = Meter(self._control, round(total(self._chosen) * self._options.sample))
        for version in self._chosen:
            with opened(version) as root:
                for each in self._records(version):
                    self._control.check()
                    before = self._done
                    self._verification.check(root, version, each)
                    if each.kind == "f":  # what was read already counts, too
                        self._done = max(self._done, before + each.size)
        self._verification.find_copies(self._newest_first, self._manifests.records)
        if self._options.full and self._tree.fstype == "btrfs":
            self._control.phase(Phase.SCRUBBING)
            self._scrubbed = scrub(self._tree, self._control)
        self._tell()

    def _records(self, version: Version) -> Iterator[Record]:
        def records() -> Iterator[bytes]:
            return self._manifests.records(version)

        if self._options.sample >= 1:
            return map(Record.parse, records())
        return part(records, self._options.sample, chance())

    def _passed(self, length: int) -> None:
        self._control.check()
        self._done += length
        self._meter.at(self._done)

    def _tell(self) -> None:
        damages = list(self._verification.damages.values())
        for damage in damages[:_MOST_NAMED]:
            self._control.warn(damage.sentence(self._name), "damaged", many=True)
        if len(damages) > _MOST_NAMED:
            rest = count(len(damages) - _MOST_NAMED, "more file")
            self._control.warn(f"{rest} are damaged.", "damaged")
        if self._scrubbed is not None and self._scrubbed.errors:
            self._control.warn(_scrub_sentence(self._scrubbed), "damaged")

    def result(self) -> RunResult:
        """How it ended, once the drive is let go."""
        seen = self._verification
        read = f"{count(seen.files, 'file')} ({size(self._read_size)})"
        where = self._where()
        warnings = self._control.warnings.told
        if self._is_damaged:
            here = {version.path.name for version in self._chosen}
            damaged = sum(not here.isdisjoint(each.versions) for each in seen.damages.values())
            what = "are damaged" if damaged != 1 else "is damaged"
            told = f"{count(damaged, 'file')} of {where} {what}" if damaged else "Not all is sound"
            result = RunResult(
                Outcome.FAILED,
                f"{told}; read back from the drive: {read}.",
                "If the files on this computer are sound, copy them anew: `cryptback run"
                f" {self._name} --full`. Drives that damage files get worse: have a second one.",
                error=Damaged.__name__,
            )
        else:
            unknown = count(seen.unknown, "file")
            rest = f" Of {unknown} no checksum is known." if seen.unknown else ""
            result = RunResult(
                Outcome.WARNINGS if warnings else Outcome.DONE,
                f"Read back from the drive: {read} of {where}; none is damaged.{rest}",
            )
        return attrs.evolve(
            result,
            safe=self._control.safe,
            warnings=warnings,
            files=seen.files,
            size=self._read_size,
            data=self._data(),
        )

    @property
    def _read_size(self) -> int:
        return self._verification.readback.size

    @property
    def _is_damaged(self) -> bool:
        scrubbed = self._scrubbed is not None and self._scrubbed.errors > 0
        return bool(self._verification.damages or self._manifests.wrong or scrubbed)

    def _where(self) -> str:
        if self._options.full:
            return count(len(self._chosen), "version")
        return f"the version {printable(self._chosen[0].path.name, 40)}"

    def _data(self) -> dict[str, Any]:
        seen = self._verification
        named: list[dict[str, object]] = []
        room = _MOST_TOLD
        for damage in seen.damages.values():
            values = damage.values()
            room -= len(json.dumps(values))
            if room < 0:
                break
            named.append(values)
        return {
            "versions": len(self._chosen),
            "newest": self._chosen[0].path.name,
            "files": seen.files,
            "bytes": self._read_size,
            "not_compared": seen.unknown,
            "damaged": len(seen.damages),
            "damaged_files": named,
            "damaged_manifests": self._manifests.wrong,
            "scrub": attrs.asdict(self._scrubbed) if self._scrubbed is not None else None,
        }


def _scrub_sentence(found: Scrubbed) -> str:
    parts = [
        count(found.unreadable, "block") + " can't be read" if found.unreadable else "",
        count(found.wrong, "block") + " have a wrong checksum" if found.wrong else "",
        count(found.superblocks, "superblock") + " are damaged" if found.superblocks else "",
    ]
    told = ", ".join(part for part in parts if part)
    return f"The scrub of btrfs found {count(found.errors, 'error')}: {told}."
