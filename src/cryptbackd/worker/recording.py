"""The manifest of the version that a run makes.

A :class:`Recording` lasts as long as its block: lists that it makes on the computer are removed
at the end, the checksums of copied files stay until a version has them.  Whatever goes wrong on
the computer costs the version its manifest, with a warning, and never the version.
"""

from __future__ import annotations

import heapq
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from .. import catalogue, manifest, manifest_writing, paths
from ..errors import ManifestDamaged, ToolFailed
from ..run import run
from .control import Control, cause
from .inventory import Copied, Inventory, Transfers, settle, transfers
from .listing import lines_of, records, sort, sources, tree
from .rsync_job import Job, Received
from .versions.record import Version

_COPIED = ".copied"
"""Checksums of what was copied since the last version, in the catalogue's folder."""
_NO_VERSION = "none"


class Recording:
    """See :func:`recording`.  *kept* None: it can't be recorded."""

    def __init__(
        self,
        aside: Path,
        kept: Transfers | None,
        before: Path | None,
        last: Version | None,
        control: Control,
    ) -> None:
        self._aside = aside
        self._kept = kept
        self._last = last
        self._control = control
        self.listings: list[Path] = []
        """Of the sources, from before the copy; see ``listing.sources``."""
        self.listed_all = True
        """Nothing that the sources have is missing there, but for what vanished meanwhile."""
        self.failed: set[bytes] = set()
        """See ``sync.Job``; the next run is to look at them again."""
        self.lost: set[bytes] = set()
        """Files that an interrupted run had copied, and that did not reach the drive."""
        self.unsummed: dict[bytes, int] = {}
        """See ``Inventory``, of the manifest that was written."""
        self.began = time.time()
        self.before = before
        """The manifest of the version before, held against its record; None: there is none."""

    def list_sources(self, job: Job) -> None:
        """To be called before the copy, so that whatever changes later differs from it.

        Where it can't be written, the manifest tells nothing of the sources, if there is one.
        """
        if self._kept is None:
            return
        out = self._aside / f"sources{len(self.listings)}"
        try:
            self.listed_all &= sources(job, out, self._control)
            self.listings.append(out)
        except ToolFailed:
            self.listed_all = False
            out.unlink(missing_ok=True)

    def sources(self) -> Iterator[bytes]:
        """What was listed, in order, as records without NUL."""
        return heapq.merge(*map(lines_of, self.listings))

    def merged(self) -> Path:
        """One file with all that was listed; raises ToolFailed, and Cancelled."""
        if len(self.listings) == 1:
            return self.listings[0]
        out = self._aside / "sources"
        lists = map(str, self.listings)
        argv = sort(self._aside, "-m", "-o", str(out), *lists)
        run(argv, environment={"LC_ALL": "C"}, deadline=3600, interrupt=self._control.interrupt)
        return out

    def received(self, file: Received) -> None:
        """See ``sync.Job``."""
        if self._kept is not None:
            self._kept.add(file)

    def unsettled(self, most: int) -> Iterator[Copied]:
        """See ``Transfers``."""
        return self._kept.unsettled(most) if self._kept is not None else iter(())

    @property
    def unbroken(self) -> bool:
        """See ``Transfers``."""
        return self._kept is not None and self._kept.unbroken

    def large(self, least: int) -> dict[bytes, tuple[int, int]]:
        """See ``Transfers``."""
        return self._kept.large(least) if self._kept is not None else {}

    def lose(self, path: bytes) -> None:
        """See ``Transfers``."""
        if self._kept is not None:
            self._kept.lose(path)

    def write(self, version: Path, target: Path, *, compared: bool) -> dict[str, object]:
        """Write the manifest of what is to become *version*, which is *target* now.

        It is durable, and what its record tells of it is returned; nothing: there is none.
        *compared*: the copy has compared contents.
        """
        path = version.with_name(f"{version.name}.manifest")
        if self._kept is None:
            return {}
        try:
            written = self._write(path, target, self._kept, compared)
        except ToolFailed as exc:
            _without(self._control, exc.sentence)
            return {}
        return self.described(path, written)

    def write_changed(
        self, version: Path, changes: Mapping[bytes, bytes | None]
    ) -> dict[str, object]:
        """As :meth:`write`, of a version that is like the one before but for *changes*."""
        path = version.with_name(f"{version.name}.manifest")
        assert self.before is not None
        try:
            with manifest.opened(self.before) as before:
                if self._last is not None and not _differ(before, changes):
                    size = self.before.stat().st_size
                    told = manifest_writing.Written(before.records, self._last.manifest, size)
                    if self._link(path, size):
                        return self.described(path, told)
                written = manifest_writing.write_changed(path, before, changes)
        except ManifestDamaged as exc:
            _without(self._control, exc.sentence)
            return {}
        return self.described(path, written)

    def described(self, path: Path, written: manifest_writing.Written) -> dict[str, object]:
        """What a version's record tells of its manifest, which lies at *path*."""
        if self._last is not None and self._last.manifest == written.sha256:
            self._link(path, written.size)
        return {
            "manifest_sha256": written.sha256,
            "manifest_bytes": written.size,
            "paths": written.records,
        }

    def _link(self, path: Path, size: int) -> bool:
        """Have *path* be another name of the last version's manifest, which takes no room."""
        assert self._last is not None
        with suppress(OSError):
            status = os.lstat(self._last.manifest_path)
            if not stat.S_ISREG(status.st_mode) or status.st_size != size:
                return False
            again = path.with_name(f".{path.name}.new")
            os.link(self._last.manifest_path, again, follow_symlinks=False)
            again.rename(path)
            # Where it had that name already, nothing was renamed.
            again.unlink(missing_ok=True)
            return True
        return False

    def _write(
        self, path: Path, target: Path, kept: Transfers, compared: bool
    ) -> manifest_writing.Written:
        with ExitStack() as stack:
            copied = records(sort(self._aside, str(kept.path)), None, self._control)
            found = Inventory(
                self.sources(),
                stack.enter_context(tree(target, self._aside, self._control)),
                stack.enter_context(copied) if kept.path.exists() else iter(()),
                manifest.read_raw(self.before) if self.before is not None else iter(()),
                kept,
                compared=compared,
                failed=self.failed,
            )
            written = manifest_writing.write_raw(path, found, self.before)
        completed = found.completed(manifest.read_raw(path))
        self.unsummed = found.unsummed
        if completed is not None:
            written = manifest_writing.write_raw(path, completed, path)
        return written

    def made(self, version: Version) -> None:
        """The version is there: from now on what is copied is copied after that one."""
        if self._kept is not None:
            self._kept.path.unlink(missing_ok=True)
            with suppress(OSError), transfers(self._kept.path, _nonce(version)):
                pass


@contextmanager
def recording(name: str, last: Version | None, control: Control) -> Iterator[Recording]:
    """Record what is copied to the entry *name* after the version *last*."""
    with ExitStack() as stack:
        try:
            place = catalogue.make(name)
            for left in place.glob(".lists-*"):
                shutil.rmtree(left, ignore_errors=True)
            aside = Path(tempfile.mkdtemp(prefix=".lists-", dir=place))
            stack.callback(shutil.rmtree, aside, ignore_errors=True)
            kept = stack.enter_context(transfers(place / _COPIED, _nonce(last)))
            before = _manifest_of(last, place) if last is not None else None
            made = Recording(aside, kept, before, last, control)
        except OSError as exc:
            _without(control, f"{cause(exc)}.")
            made = Recording(Path(), None, None, last, control)
        yield made


def settled(name: str) -> None:
    """Note that the drive of the entry *name* is proven to have all that was copied to it.

    Where that can't be written, the next run reads it back.
    """
    with suppress(OSError):
        settle(paths.catalogue(name) / _COPIED)


def _differ(before: manifest.Reader, changes: Mapping[bytes, bytes | None]) -> bool:
    for path, record in changes.items():
        was = before.get(path)
        if (was.raw() if was is not None else None) != record:
            return True
    return False


def _without(control: Control, fault: str) -> None:
    control.warn(f"What the version holds could not be recorded on this computer. {fault}")


def _nonce(version: Version | None) -> str:
    return _NO_VERSION if version is None else str(version.record["nonce"])


def _manifest_of(version: Version, place: Path) -> Path | None:
    if not version.manifest:
        return None
    for path in (place / version.manifest_path.name, version.manifest_path):
        try:
            if catalogue.sha256(path) == version.manifest:
                with manifest.opened(path):
                    return path
        except (OSError, ManifestDamaged):
            continue
    return None
