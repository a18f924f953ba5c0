"""The backup: down the stack, one sync, a version, up again, and the proof.

Whatever goes wrong once the drive is open, the stack is taken down in order and it is still
proven that the drive may be pulled; only then is the error told.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs

from ... import __version__, protocol
from ...config import Entry, parse
from ...errors import CryptbackError, DriveFailed, DriveFull, Refused
from ...foreign import number
from ...model import Device, LedgerEntry, Outcome, Phase, RunResult
from ...text import size
from .. import header as headers
from .. import shed, unsettled, unsummed, workspace
from ..changing import FULL, TooMuch, no_room
from ..control import Control
from ..device import is_write_protected, opened, power_off, want_writable
from ..layers.inner import inner
from ..layers.mounted import Mounted
from ..lists import Asked, Group, gather
from ..opening import opening
from ..quick import run as quick
from ..quick.proof import DOUBTS, Circumstances
from ..quick.run import Way
from ..quick.transfer import Place
from ..quick.within import within
from ..recording import Recording, recording, settled
from ..release import release
from ..remaining import tell, told
from ..rsync_job import Job
from ..rsync_version import rsync_version
from ..sources import is_inside, plan, stage
from ..spot import read_back
from ..sync import Synced, sync
from ..versions import VERSIONS, Store, ahead, copies, record, removal, store
from ..whitelist import Header


@attrs.frozen
class Kept:
    """A version that was made, and what the sync before it did."""

    version: record.Version
    synced: Synced


def backup(start: protocol.Start, control: Control) -> RunResult:
    """One run for the entry ``start.name``; see ``protocol.Start``."""
    entry = parse(start.entry, start.name)
    header = headers.load(start.name)
    place = workspace.make(start.name)
    device = start.device
    control.phase(Phase.ATTACHING)
    with proven_free(device, control), ExitStack() as stack:
        tree = stack.enter_context(unlocked(start.name, entry, device, header, place, control))
        stack.enter_context(told(control))
        kept = back_up(
            tree,
            name=start.name,
            entry=entry,
            toml=start.entry,
            ledger=start.ledger,
            forgotten=start.forgotten,
            accept=bool(start.options.get("accept")),
            contents=bool(start.options.get("full")),
            place=place,
            control=control,
        )
    return finished(kept, entry, device, control)


@contextmanager
def proven_free(device: Device, control: Control, *, writes: bool = True) -> Iterator[int]:
    """The opened drive; after the block it is proven that it may be pulled.

    When the block failed, that error is told, and a failing proof is a warning beside it.
    *writes*: raises Refused where nobody can.
    """
    with opened(device) as fd:
        try:
            if writes:
                want_writable(device)
            yield fd
        except Exception as failure:
            try:
                release(device, fd, control, failure)
            except CryptbackError as exc:
                control.warn(exc.sentence)
            raise
        release(device, fd, control)


@contextmanager
def unlocked(
    name: str,
    entry: Entry,
    device: Device,
    header: Header,
    place: Path,
    control: Control,
    *,
    read_only: bool = False,
    untouched: bool = False,
    purpose: str = "open",
) -> Iterator[Mounted]:
    """The whole stack of an enrolled drive, as the tree inside the container.

    *read_only*: the filesystem in the container is only looked at; *untouched*: nothing at all
    is written on the drive, not even what a filesystem would put right when it is mounted, which
    is so as well where it is write-protected.  *purpose*: of the key that is asked for.
    """
    untouched = untouched or (read_only and is_write_protected(device))
    with opening(
        name, entry, device, header, place, control, untouched=untouched, purpose=purpose
    ) as found:
        control.phase(Phase.MOUNTING)
        look_only = read_only or untouched
        with inner(found.volume, place / "tree", read_only=look_only) as tree:
            if not look_only:
                found.settle(tree)
            # What is to be cut off may lie in anybody's directory.
            if look_only and not (found.tail and found.tail.cut):
                shed.keep(shed.LOOKS)
            yield attrs.evolve(tree, beneath=tuple(found.files))


def back_up(
    tree: Mounted,
    *,
    name: str,
    entry: Entry,
    toml: str,
    ledger: LedgerEntry | None,
    forgotten: bool,
    accept: bool,
    contents: bool,
    place: Path,
    control: Control,
) -> Kept:
    """Sync the sources into the opened container and make a version of it.

    A drive that is not as the ledger says, or as a ledger might that is lost (*forgotten*), is
    warned about and nothing on it is deleted.
    """
    started = int(time.time())
    keeper = store(tree)
    directory = tree.path / VERSIONS
    found = record.versions(directory)
    last = found[-1] if found else None
    verdict = record.doubt(found, ledger, forgotten=forgotten)
    _tidy(keeper, directory, verdict, accept=accept, control=control)
    keeper.begin(last.path if last else None)
    last_tree = keeper.last_state()
    remembered = last.record if last else {}
    filesystems = _texts(remembered.get("sources"))
    asked = gather(
        entry,
        functools.partial(
            plan,
            cross_filesystems=entry.backup.cross_filesystems,
            last_tree=last_tree,
            last_filesystems=filesystems,
            known_skipped=list(_texts(remembered.get("skipped_mounts"))),
            accept=accept,
            control=control,
        ),
        _lists(remembered.get("lists")),
        () if accept else filesystems,
        control,
    )
    with recording(name, last, control) as taken:
        unsettled.put_right(keeper.left(), taken, tree, control)
        control.once_safe = functools.partial(settled, name)
        plain = Job(
            stage=place,
            target=keeper.target,
            exclude=entry.backup.exclude,
            own=(),
            others=(),
            delete=accept or not verdict,
            contents=contents,
            received=taken.received,
            failed=taken.failed,
        )
        asked, syncs = _staged(asked, plain, last_tree, control)
        for job in syncs:
            taken.list_sources(job)
        programs = _programs()
        circumstances = Circumstances(
            ledger=ledger,
            last=last,
            entry=toml,
            sources=asked.filesystems(),
            lists=asked.lists,
            skipped=tuple(asked.skipped_mounts),
            untouched=last is not None and keeper.is_untouched(last.path),
            programs=programs,
            every=entry.verify.full_every,
            asked_full=contents,
            accept=accept,
        )
        chosen = quick.way(circumstances, syncs, asked.kept, taken, place, control)

        def make_ready() -> Kept:
            """Sync, and write manifest and record of what is to become a version."""
            if chosen.changes is None:
                _retain(keeper, asked, control)
            synced, changed = _copy(name, chosen, asked, syncs, keeper, last, taken, control)
            control.phase(Phase.KEEPING)
            tell(control)
            # The version must not have its name before its data is on the drive.
            tree.sync()
            control.check()
            version = record.fresh_name(directory)
            fields = {
                "sequence": 1 + max(last.sequence if last else 0, ledger.sequence if ledger else 0),
                "entry_name": name,
                "started": started,
                "finished": int(time.time()),
                "sources": asked.filesystems(),
                "lists": asked.lists,
                "skipped_mounts": dict.fromkeys(asked.skipped_mounts, ""),
                "files": synced.files,
                "bytes": synced.size,
                **(
                    unsummed.recorded(taken, directory / version, syncs, synced, tree, control)
                    if changed is None
                    else taken.write_changed(directory / version, changed)
                ),
                **chosen.fields,
                "warnings": control.warnings.told,
                DOUBTS: control.doubts.told,
                "programs": programs,
                "entry": toml,
                "ledger": attrs.asdict(ledger) if ledger else None,
            }
            return Kept(record.write(directory, version, fields), synced)

        def make_room(full: DriveFull) -> bool:
            """Let versions go, if any may and that can help; whether another try is worth it."""
            may = (accept or not verdict) and not removal.is_hopeless(full.solid, tree)
            return may and removal.make_room(keeper, tree, entry.keep, control)

        def again(why: str) -> None:
            """Begin anew, as a full comparison."""
            keeper.begin(last.path if last else None)
            chosen.compare_in_full(why, control)

        kept = _at_last(make_ready, make_room, again, tree, chosen)
        keeper.keep(kept.version.path)
        taken.made(kept.version)
    _is_made(kept, control)
    ahead.note(name, kept.version, tree.fstype, control)
    if accept or not verdict:
        removal.by_rules(keeper, tree, entry.keep, control)
    copies.bring_in_line(name, versions := record.versions(directory), control)
    read_back(
        tree,
        versions,
        name=name,
        share=entry.verify.sample,
        took=time.time() - started,
        control=control,
    )
    return kept


def _at_last(
    make_ready: Callable[[], Kept],
    make_room: Callable[[DriveFull], bool],
    again: Callable[[str], None],
    tree: Mounted,
    chosen: Way,
) -> Kept:
    """What *make_ready* returns, once there is room for it."""
    while True:
        try:
            with _full_is_told():
                return make_ready()
        except DriveFull as full:
            if not make_room(full):
                raise _too_small(full, tree) from full
            again("the container was full")
        except TooMuch:
            if chosen.changes is None:
                raise
            again("the last version has too long a path, or a file with too many names")


def _is_made(kept: Kept, control: Control) -> None:
    shed.keep(shed.TIDIES)
    control.say(f"version {kept.version.path.name} made.", "version_made")


def _staged(
    asked: Asked, plain: Job, last_tree: Path | None, control: Control
) -> tuple[Asked, list[Job]]:
    """What is asked for, as it could be staged below ``plain.stage``, and the jobs that copy it.

    Raises Refused where there is none.
    """
    groups: list[Group] = []
    jobs: list[Job] = []
    for group in asked.groups:
        where = plain.stage / f"sources{len(groups)}"
        staged = group
        if group.plan.read:
            shown = stage(group.plan, asked.others(group), where, last_tree, control)
            staged = attrs.evolve(group, plan=shown)
        groups.append(staged)
        own = tuple(source.path for source in staged.plan.read)
        if own:
            others = asked.others(staged)
            job = attrs.evolve(plain, stage=where, own=own, others=others, rights=group.rights)
            jobs.append(job)
    if not jobs:
        raise Refused(
            "None of the sources can be read, so there is nothing to back up.",
            "Look at `include` and `include_from` in the entry.",
        )
    return attrs.evolve(asked, groups=tuple(groups)), jobs


def _retain(keeper: Store, asked: Asked, control: Control) -> None:
    """Have the last state of what is kept stand in the target, where it doesn't yet.

    What is read in it does not: that would be files of the last version where they are links, and
    if nothing but the mode of one (or the like) has changed, rsync would change it there, too.
    """
    read = (source.path for group in asked.groups for source in group.plan.read)
    lies_in_kept = [path for path in read if any(is_inside(path, kept) for kept in asked.kept)]
    with within(keeper.target) as target:
        for path in sorted((*asked.kept, *lies_in_kept), key=len):
            if path in asked.kept:
                keeper.retain(path)
            elif keeper.linked:
                target.remove(os.fsencode(path.strip("/")), control.interrupt)


def _copy(
    name: str,
    chosen: Way,
    asked: Asked,
    syncs: list[Job],
    keeper: Store,
    last: record.Version | None,
    taken: Recording,
    control: Control,
) -> tuple[Synced, dict[bytes, bytes | None] | None]:
    """Bring the target up to date; what is to change in the manifest, if no other is needed."""
    if last is not None:
        ahead.read_ahead(name, last)
    place = Place(tuple(syncs), last.path, linked=keeper.linked) if last is not None else None
    if last is not None and place is not None and chosen.changes is not None:
        keeper.fill(last.path)
        done = quick.carry_out(chosen.changes, place, taken, control)
        done.synced.files += number(last.record.get("files"))
        done.synced.size += number(last.record.get("bytes"))
        return done.synced, done.records
    synced = Synced()
    if place is not None:
        quick.keep_whole(place, asked.kept, taken, control)
        synced.add(quick.copy_large(place, taken, control))
    for job in syncs:
        synced.add(sync(attrs.evolve(job, link_dest=keeper.link_dest), control))
    return synced, None


def _tidy(keeper: Store, directory: Path, verdict: str, *, accept: bool, control: Control) -> None:
    """Remove what interrupted runs left; from a drive that is not as it was left, nothing."""
    if not verdict:
        record.tidy(directory)
        removal.finish(keeper, directory, control)
        return
    control.warn(
        verdict + ("" if accept else " Nothing on it is deleted in this run."),
        "drive_older",
    )


@contextmanager
def _full_is_told() -> Iterator[None]:
    """What the kernel says of a full filesystem, as DriveFull."""
    try:
        yield
    except OSError as exc:
        if exc.errno not in FULL:
            raise
        raise no_room() from exc


def _too_small(full: DriveFull, tree: Mounted) -> DriveFull:
    """The end of a run for which no more room can be made."""
    missing = full.missing - tree.free()
    needed = f" About {size(missing)} more are needed." if missing > 0 else ""
    if removal.is_hopeless(full.solid, tree):
        needed += " No version was given up for it, as that is more than the container holds."
    return DriveFull(
        f"There is no room left in the container.{needed}",
        "The versions before are whole. Leave sources out, have [keep] hold fewer versions, or"
        " make the container longer: `cryptback resize`.",
    )


def _texts(value: object) -> dict[str, str]:
    """A record's table of texts; anything else in its place counts as empty."""
    if not isinstance(value, dict):
        return {}
    return {k: v for k, v in value.items() if isinstance(k, str) and isinstance(v, str)}


def _lists(value: object) -> dict[str, list[str]]:
    """A record's table of lists of texts, as :func:`_texts`."""
    if not isinstance(value, dict):
        return {}
    return {
        k: [item for item in v if isinstance(item, str)]
        for k, v in value.items()
        if isinstance(k, str) and isinstance(v, list)
    }


def _programs() -> dict[str, str]:
    return {
        "cryptbackd": __version__,
        "rsync": rsync_version(),
        "linux": os.uname().release,
    }


def finished(kept: Kept, entry: Entry, device: Device, control: Control) -> RunResult:
    """The result of a run whose version is proven to be on the drive; powers it off if asked."""
    powered_off = False
    if entry.after.power_off:
        control.phase(Phase.POWERING_OFF)
        try:
            power_off(device.disk)
            powered_off = True
        except DriveFailed as exc:
            control.warn(exc.sentence)
    control.phase(Phase.FINISHED)
    warned = len(control.warnings)
    return RunResult(
        Outcome.WARNINGS if warned else Outcome.DONE,
        "",
        safe=control.safe,
        powered_off=powered_off,
        warnings=control.warnings.told,
        version=kept.version.path.name,
        files=kept.synced.files,
        size=kept.synced.size,
        changed_files=kept.synced.changed_files,
        changed_bytes=kept.synced.changed_bytes,
        ledger=kept.version.ledger,
    )
