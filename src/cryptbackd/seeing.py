"""What a user may see of a version: what they could have read, by what its manifest tells.

Owner, group and mode of the path count, and the right to search each directory above it.  A name
in a directory that they could search and not read is shown to its owner alone: anybody else would
have had to know it.  Of access control lists a manifest has only what the mode shows.  Root sees
everything.
"""

from __future__ import annotations

import bisect
import re
from typing import NamedTuple

from .manifest import Block, Reader

_READ, _SEARCH = 4, 1
_DIRECTORY = re.compile(rb"(?:^|\0)([^\0]+?)//d ([0-7]{1,6}) ([0-9]{1,10}) ([0-9]{1,10}) ")
_MOST_BLOCKS = 4096


class Folder(NamedTuple):
    """A directory, as a user has it."""

    may_search: bool
    may_read: bool
    is_theirs: bool


_ROOT = Folder(may_search=True, may_read=True, is_theirs=False)
_NONE = Folder(may_search=False, may_read=False, is_theirs=False)


class Seer:
    """A user who looks into manifests; what was learned of blocks serves for others, too."""

    def __init__(self, uid: int, groups: frozenset[int]) -> None:
        self.uid = uid
        self._groups = groups
        self._folders: dict[bytes, dict[bytes, Folder]] = {}

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

    def folders(self, reader: Reader, block: Block) -> dict[bytes, Folder]:
        """The directories in a block."""
        found = self._folders.get(block.digest)
        if found is None:
            if len(self._folders) >= _MOST_BLOCKS:
                self._folders.clear()
            found = {
                path: self._folder(int(mode, 8), int(uid), int(gid))
                for path, mode, uid, gid in _DIRECTORY.findall(reader.text(block))
            }
            self._folders[block.digest] = found
        return found

    def _folder(self, mode: int, uid: int, gid: int) -> Folder:
        may_search, may_read = (self.may(right, mode, uid, gid) for right in (_SEARCH, _READ))
        return Folder(may_search, may_read, uid == self.uid)


class Sight:
    """One manifest as one user sees it."""

    def __init__(self, seer: Seer, reader: Reader) -> None:
        self._seer = seer
        self._reader = reader
        self._firsts = [block.first for block in reader.blocks]
        self._known: dict[bytes, Folder] = {b"": _ROOT}
        """Directories; one that the user could not have come to may not be searched."""

    def shows(self, path: bytes, record: list[bytes]) -> bool:
        """Whether the user could read *path*, which has these fields (``changes.fields``)."""
        if self._seer.uid == 0:
            return True
        owner = int(record[2])
        if not self._seer.may(_READ, int(record[1], 8), owner, int(record[3])):
            return False
        above = self._folder(path.rpartition(b"/")[0])
        return above.may_search and (above.may_read or owner == self._seer.uid)

    def _folder(self, path: bytes) -> Folder:
        unknown = []
        while path not in self._known:
            unknown.append(path)
            path = path.rpartition(b"/")[0]
        folder = self._known[path]
        for each in reversed(unknown):
            above, own = folder, self._own(each)
            reached = above.may_search and (above.may_read or own.is_theirs)
            folder = own._replace(may_search=own.may_search and reached)
            self._known[each] = folder
        return folder

    def _own(self, folder: bytes) -> Folder:
        at = bisect.bisect_right(self._firsts, folder + b"//") - 1
        if at < 0:
            return _NONE
        return self._seer.folders(self._reader, self._reader.blocks[at]).get(folder, _NONE)
