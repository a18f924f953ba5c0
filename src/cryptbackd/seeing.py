"""What a user may see of a version: what they could have read, by what its manifest tells.

Owner, group and mode of the path count, and the right to search each directory above it.  Of
access control lists a manifest has only what the mode shows.  Root sees everything.
"""

from __future__ import annotations

import bisect
import re

from .manifest import Block, Reader

_READ, _SEARCH = 4, 1
_DIRECTORY = re.compile(rb"(?:^|\0)([^\0]+?)//d ([0-7]{1,6}) ([0-9]{1,10}) ([0-9]{1,10}) ")
_MOST_BLOCKS = 4096


class Seer:
    """A user who looks into manifests; what was learned of blocks serves for others, too."""

    def __init__(self, uid: int, groups: frozenset[int]) -> None:
        self.uid = uid
        self._groups = groups
        self._folders: dict[bytes, dict[bytes, bool]] = {}

    def may(self, right: int, mode: int, uid: int, gid: int) -> bool:
        """Whether the user has a right to what has this mode, owner and group."""
        if uid == self.uid:
            return bool(mode & right << 6)
        if gid in self._groups:
            return bool(mode & right << 3)
        return bool(mode & right)

    def look(self, reader: Reader) -> Sight:
        """Look into a manifest."""
        return Sight(self, reader)

    def folders(self, reader: Reader, block: Block) -> dict[bytes, bool]:
        """The directories in a block, and whether the user may search them."""
        found = self._folders.get(block.digest)
        if found is None:
            if len(self._folders) >= _MOST_BLOCKS:
                self._folders.clear()
            found = {
                path: self.may(_SEARCH, int(mode, 8), int(uid), int(gid))
                for path, mode, uid, gid in _DIRECTORY.findall(reader.text(block))
            }
            self._folders[block.digest] = found
        return found


class Sight:
    """One manifest as one user sees it."""

    def __init__(self, seer: Seer, reader: Reader) -> None:
        self._seer = seer
        self._reader = reader
        self._firsts = [block.first for block in reader.blocks]
        self._known: dict[bytes, bool] = {b"": True}

    def shows(self, path: bytes, record: list[bytes]) -> bool:
        """Whether the user could read *path*, which has these fields (``changes.fields``)."""
        if self._seer.uid == 0:
            return True
        return self._seer.may(
            _READ, int(record[1], 8), int(record[2]), int(record[3])
        ) and self._searchable(path.rpartition(b"/")[0])

    def _searchable(self, folder: bytes) -> bool:
        unknown = []
        while folder not in self._known:
            unknown.append(folder)
            folder = folder.rpartition(b"/")[0]
        known = self._known[folder]
        for each in reversed(unknown):
            known = known and self._own(each)
            self._known[each] = known
        return known

    def _own(self, folder: bytes) -> bool:
        at = bisect.bisect_right(self._firsts, folder + b"//") - 1
        if at < 0:
            return False
        return self._seer.folders(self._reader, self._reader.blocks[at]).get(folder, False)
