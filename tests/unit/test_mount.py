"""The place where a user sees the versions, and what is said of it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cryptbackd.cli import browse, bus, close, follow, mount
from cryptbackd.errors import Refused


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of an ordinary user's login."""
    monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    os.chown(tmp_path, os.geteuid() + 1000, -1)
    return tmp_path


def test_each_user_has_a_place_of_their_own(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert mount.home() == mine / "cryptback"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert mount.home() == Path(f"/run/user/{os.getuid()}/cryptback")
    monkeypatch.setattr(os, "getuid", lambda: 0)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(mine))  # as sudo may leave it
    assert mount.home() == Path("/run/cryptback-browse")


def test_a_place_that_is_somebody_elses_is_not_used(mine: Path) -> None:
    (mine / "cryptback").mkdir()  # as root, who runs the tests
    with pytest.raises(Refused, match="not a directory of yours"):
        mount.place("home")


def test_a_link_in_the_place_of_it_is_not_followed(mine: Path) -> None:
    (mine / "elsewhere").mkdir()
    os.chown(mine / "elsewhere", os.getuid(), -1)
    (mine / "cryptback").symlink_to("elsewhere")
    os.chown(mine / "cryptback", os.getuid(), -1, follow_symlinks=False)
    with pytest.raises(Refused, match="not a directory of yours"):
        mount.place("home")


def test_a_place_is_made_once(mine: Path) -> None:
    above = mine / "cryptback"
    above.mkdir(mode=0o700)
    os.chown(above, os.getuid(), -1)
    assert mount.place("home") == mount.place("home") == above / "home"
    assert not mount.is_dead(above / "home")
    assert list(mount.dead()) == []


def test_without_a_login_there_is_no_place(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(mine / "none"))
    with pytest.raises(Refused) as caught:
        mount.place("home")
    assert "XDG_RUNTIME_DIR" in caught.value.hint
    assert list(mount.dead()) == []


@pytest.mark.parametrize(
    ("when", "version"),
    [("", ""), ("newest", "2026-11-21T10:00:00Z"), ("2026-11-20", "2026-11-20T10:00:00Z")],
)
def test_the_path_of_a_version(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    when: str,
    version: str,
) -> None:
    names = ["2026-11-20T10:00:00Z", "2026-11-21T10:00:00Z"]
    monkeypatch.setattr(os, "listdir", lambda _path: names)  # in this order
    asyncio.run(browse._tell(browse._Wish("home", when, False), tmp_path))
    told = capsys.readouterr()
    assert told.out == f"{tmp_path / version if version else tmp_path}\n"
    assert "cryptback close home" in told.err
    asyncio.run(browse._tell(browse._Wish("home", when, True), tmp_path))
    assert json.loads(capsys.readouterr().out)["version"] == version


def test_a_time_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "2026-11-20T10:00:00Z").mkdir()
    with pytest.raises(Refused):
        asyncio.run(browse._tell(browse._Wish("home", "soon", False), tmp_path))


class Closing:
    """The daemon, for which *work* is open, and *home* was until a moment ago."""

    def __init__(self) -> None:
        self.closed: list[str] = []

    async def listen(self) -> None:
        pass

    async def call(self, member: str, _signature: str = "", name: str = "") -> list[Any]:
        if member == "ListDrives":
            return [[{"name": name, "shown_to": mount.me()} for name in ("home", "work")]]
        if name == "home":
            raise Refused("home is not open for browsing.")
        self.closed.append(name)
        return [["r1"]]


@pytest.mark.parametrize(("name", "closed"), [("home", []), (None, ["work"])])
def test_what_is_over_already_keeps_nothing_from_being_closed(
    monkeypatch: pytest.MonkeyPatch, name: str | None, closed: list[str]
) -> None:
    """Nor what a keeper that was killed has left from being removed."""
    there = Closing()

    @asynccontextmanager
    async def connected(**_how: bool) -> AsyncIterator[Closing]:
        yield there

    async def followed(*_what: Any) -> dict[str, Any]:
        return {}

    removed: list[Path] = []
    monkeypatch.setattr(bus, "connected", connected)
    monkeypatch.setattr(follow, "follow", followed)
    monkeypatch.setattr(mount, "dead", lambda: iter([Path("/dead")]))
    monkeypatch.setattr(mount, "unmount", removed.append)
    with pytest.raises(Refused, match="not open"):
        asyncio.run(close._close(name, as_json=True))
    assert there.closed == closed
    assert removed == [Path("/dead")]
