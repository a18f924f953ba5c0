"""What the unit tests share: a journal that remembers, and a worker that only speaks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import settings

from cryptbackd import run
from cryptbackd.daemon import children, journal, supervisor
from cryptbackd.daemon.sweep import Swept
from cryptbackd.daemon.tasks import Tasks

# Machines that run tests are slow at times; what root would keep, the user could not remove.
settings.register_profile("unhurried", deadline=None, database=None)
settings.load_profile("unhurried")

SRC = Path(__file__).parents[2] / "src"
FAKE_WORKER = Path(__file__).with_name("fake_worker.py")


@attrs.define
class Journal:
    """The lines that were logged."""

    lines: list[tuple[str, int, dict[str, Any]]] = attrs.field(factory=list)

    def log(self, text: str, priority: int = 6, **fields: Any) -> None:
        """In place of ``journal.log``."""
        self.lines.append((text, int(priority), fields))

    def texts(self) -> list[str]:
        """What was said."""
        return [text for text, _priority, _fields in self.lines]

    def outcomes(self) -> list[str]:
        """The outcomes, in order."""
        return [fields["outcome"].value for _t, _p, fields in self.lines if fields.get("outcome")]


@pytest.fixture(autouse=True)
def _abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a failing test has left is nobody else's to wait for: its loop is gone."""
    monkeypatch.setattr(children, "_abandoned", Tasks())


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Journal:
    told = Journal()
    monkeypatch.setattr(journal, "log", told.log)
    return told


@attrs.define
class Sweeps:
    """The sweeps that were asked for, and what they answer."""

    names: list[str | None] = attrs.field(factory=list)
    answer: Swept = attrs.field(factory=Swept)

    async def sweep(self, name: str | None = None) -> Swept:
        """In place of ``sweep.sweep``."""
        self.names.append(name)
        return self.answer


@pytest.fixture
def sweeps(monkeypatch: pytest.MonkeyPatch) -> Sweeps:
    fake = Sweeps()
    monkeypatch.setattr(supervisor, "sweep", fake.sweep)
    return fake


@pytest.fixture
def as_root() -> None:
    if os.geteuid() != 0:
        pytest.fail("An entry must be root's, so this must run as root: `make unit` sees to it.")


@pytest.fixture
def fake_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    spawn = run.spawn

    def instead(argv: Sequence[str], **how: Any) -> subprocess.Popen[bytes]:
        if argv[-1] == "cryptbackd.query":
            return spawn([*argv[:3], sys.executable, *argv[-2:]], **how)
        if argv[-1] == "cryptbackd.daemon.doorkeeper":
            return spawn([sys.executable, *argv[-2:]], **how)
        assert argv[:5] == ["/usr/bin/python3", "-I", "-m", "cryptbackd.worker", "--socket"]
        return spawn([sys.executable, str(FAKE_WORKER), argv[-1]], **how)

    monkeypatch.setattr(run, "spawn", instead)
    monkeypatch.setattr(run, "ENVIRONMENT", {**run.ENVIRONMENT, "PYTHONPATH": str(SRC)})
