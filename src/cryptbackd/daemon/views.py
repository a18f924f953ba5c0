"""The drives as they are now: what is told of each, put together anew whenever somebody asks."""

from __future__ import annotations

import attrs

from ..config import Entry
from ..model import Device
from ..text import printable
from . import verification
from .entries import EntryStore
from .history import History, Insertion
from .in_use import in_use
from .jobs import Job
from .presence import Presence
from .status import DriveView, State
from .supervisor import Supervisor
from .timetable import Timetable


@attrs.frozen
class Views:
    """Where each part of it is known."""

    history: History
    boot_id: str
    supervisor: Supervisor
    store: EntryStore
    present: Presence
    timetable: Timetable

    def all(self) -> list[DriveView]:
        """Every drive as it is now, by name: those with an entry, and those being enrolled."""
        known = self.store.now()
        names = {*known.good, *known.bad}
        names |= {job.name for job in self.supervisor.jobs() if job.recorded}
        return [self.of(name) for name in sorted(names)]

    def of(self, name: str) -> DriveView:
        """One drive as it is now; raises UnknownDrive."""
        known = self.store.now()
        job = next((j for j in self.supervisor.jobs() if j.name == name and j.recorded), None)
        entry = known.good.get(name)
        problem = ""
        if name in known.bad:
            problem = str(known.bad[name])
        elif entry is None and job is None:
            self.store.get(name)
        here = self.present.showing(entry.uuid) if entry is not None else []
        device = job.device if job is not None else here[0].device if here else None
        last = self.history.last(name)
        stuck = self.supervisor.stuck.get(name)
        if job is not None:
            state = State.RUNNING if job.begun else State.QUEUED
            state = state if job.answering else State.NOT_ANSWERING
        elif stuck:
            state, problem = State.NOT_ANSWERING, " ".join(stuck)
        elif problem:
            state = State.BAD
        else:
            state = State.IDLE if device is not None else State.ABSENT
        return DriveView(
            name=name,
            state=state,
            uuid=entry.uuid if entry is not None else "",
            container=(entry.container or "") if entry is not None else "",
            device=device.node if device is not None else "",
            phase=job.phase if job is not None and job.begun else None,
            progress=job.progress if job is not None else None,
            run=job.id if job is not None else "",
            job=job.kind if job is not None else None,
            last_outcome=last.outcome if last is not None else None,
            last_sentence=last.sentence if last is not None else "",
            last_hint=last.hint if last is not None else "",
            last_finished=last.finished if last is not None else 0.0,
            last_success=self.history.last_success(name),
            **verification.last(self.history, name),
            warnings=tuple(job.warnings.told)
            if job is not None
            else (last.warnings if last is not None else ()),
            safe=state is State.IDLE and device is not None and self._may_unplug(device),
            problem=problem,
            owner=_owner(entry, job),
            shown_to=job.shown_to if job is not None else "",
            reminded=self.timetable.reminded(name),
        )

    def _may_unplug(self, device: Device) -> bool:
        """Whether its disk was proven to be safe to pull, and nobody has begun with it since."""
        if self.supervisor.on_disk(device.diskseq):
            return False
        insertion = Insertion(self.boot_id, device.diskseq)
        return self.history.is_safe(insertion) and not in_use(device.disk)


def _owner(entry: Entry | None, job: Job | None) -> str:
    """Whose a drive is; that which is being enrolled is already whose it is to be."""
    owner = entry.owner if entry is not None else job.options.get("owner") if job else None
    return printable(owner or "", 40)
