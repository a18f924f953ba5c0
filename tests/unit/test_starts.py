"""What a start imports: whoever has a slow computer waits for each module."""

from __future__ import annotations

import subprocess

import pytest

from tests.unit.conftest import SRC

LOOK = """
import importlib, sys
sys.path.insert(0, sys.argv[1])
for name in sys.argv[2:]:
    importlib.import_module(name)
print(*sys.modules)
"""
DRAWING = {"rich"}
KEYS = {"keyring", "secretstorage"}
DAEMON = {"asyncio", "dbus_fast", "pyudev", "sqlite3", "sdnotify", "systemd"}
WORDS = {"attr", "tomllib"}
COMMAND_LINE = {"click"}
CALL = ["cli", "cli.bus", "cli.main", "cli.output", "dbus_text", "errors", "leaving", "text"]
STUB = ["errors", "kernel", "leaving", "secret", "worker", "worker.__main__", "worker.main"]


def modules(*names: str) -> set[str]:
    """What is there when these of our modules were imported, as in an installed program."""
    full = [f"cryptbackd.{name}" for name in names]
    command = ["/usr/bin/python3", "-I", "-c", LOOK, str(SRC), *full]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return set(shown.split())


@pytest.mark.parametrize(
    ("started", "ours", "never"),
    [
        (["cli.main"], CALL, DRAWING | KEYS | WORDS),
        (["cli.main", "cli.status"], [*CALL, "cli.follow", "cli.status"], DRAWING | KEYS | WORDS),
        (["worker.__main__"], STUB, DRAWING | KEYS | WORDS | DAEMON | COMMAND_LINE | {"json"}),
        (
            ["worker.__main__", "worker.sweep"],
            [*STUB, "paths", "run", "text", "worker.gone", "worker.sweep"],
            DRAWING | KEYS | WORDS | DAEMON | COMMAND_LINE | {"hashlib"},
        ),
    ],
    ids=["--help", "status", "worker", "sweep"],
)
def test_a_start_imports_what_it_needs(
    started: list[str], ours: list[str], never: set[str]
) -> None:
    found = modules(*started)
    mine = {name for name in found if name.startswith("cryptbackd.")}
    assert mine == {f"cryptbackd.{name}" for name in ours}
    assert not found & never


@pytest.mark.parametrize("job", ["backup", "verify", "restore", "release", "survey"])
def test_a_job_imports_nothing_of_the_daemon(job: str) -> None:
    found = modules("worker.__main__", "worker.control", f"worker.jobs.{job}")
    assert not found & (DRAWING | KEYS | DAEMON | COMMAND_LINE | {"pyfuse3", "trio"})
