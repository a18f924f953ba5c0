"""The entries as they change, and the udev markers."""

import os
from pathlib import Path

import pytest

from cryptbackd import config
from cryptbackd.daemon.entries import EntryStore, keep_markers
from cryptbackd.errors import ConfigError, UnknownDrive

pytestmark = pytest.mark.usefixtures("as_root")


def write(directory: Path, name: str, uuid: str = "AAAA-BBBB", include: str = "/etc") -> None:
    path = directory / f"{name}.toml"
    path.write_text(f'uuid = "{uuid}"\n[backup]\ninclude = ["{include}"]\n')
    path.chmod(0o644)


class Watcher:
    """A store, and what it was heard to do."""

    def __init__(self, directory: Path) -> None:
        self.complaints: list[str] = []
        self.readings = 0
        self.store = EntryStore(
            lambda name, _fault: self.complaints.append(name),
            self.read_anew,
            directory,
        )

    def read_anew(self, _entries: config.Entries) -> None:
        self.readings += 1


def test_files_are_read_again_only_when_one_changed(tmp_path: Path) -> None:
    write(tmp_path, "home")
    watcher = Watcher(tmp_path)
    assert watcher.store.now() is watcher.store.now()
    assert watcher.readings == 1
    write(tmp_path, "work")
    assert set(watcher.store.now().good) == {"home", "work"}
    (tmp_path / "home.toml").unlink()
    assert set(watcher.store.now().good) == {"work"}
    (tmp_path / "work.toml").chmod(0o666)
    assert set(watcher.store.now().bad) == {"work"}


def test_a_bad_file_is_told_once_for_each_content(tmp_path: Path) -> None:
    write(tmp_path, "home", include="no-path")
    watcher = Watcher(tmp_path)
    watcher.store.now()
    write(tmp_path, "work")
    watcher.store.now()
    assert watcher.complaints == ["home"]
    write(tmp_path, "home", include="no-other-path")
    watcher.store.now()
    assert watcher.complaints == ["home", "home"]
    watcher.store.forget()
    watcher.store.now()
    assert len(watcher.complaints) == 3


def test_one_entry(tmp_path: Path) -> None:
    write(tmp_path, "home")
    write(tmp_path, "bad", include="no-path")
    store = Watcher(tmp_path).store
    assert store.get("home").uuid == "AAAA-BBBB"
    with pytest.raises(UnknownDrive):
        store.get("other")
    with pytest.raises(ConfigError):
        store.get("bad")


def test_no_directory(tmp_path: Path) -> None:
    assert Watcher(tmp_path / "none").store.now().good == {}


def test_markers_follow_the_entries(tmp_path: Path) -> None:
    entries, markers = tmp_path / "d", tmp_path / "state" / "uuids"
    entries.mkdir()
    write(entries, "home", "AAAA-1111")
    write(entries, "work", "BBBB-2222")
    keep_markers(config.read_all(entries), markers)
    assert sorted(os.listdir(markers)) == ["AAAA-1111", "BBBB-2222"]
    (entries / "work.toml").unlink()
    keep_markers(config.read_all(entries), markers)
    assert os.listdir(markers) == ["AAAA-1111"]


def test_an_entry_with_a_fault_keeps_its_marker(tmp_path: Path) -> None:
    entries, markers = tmp_path / "d", tmp_path / "uuids"
    entries.mkdir()
    write(entries, "home", "AAAA-1111")
    keep_markers(config.read_all(entries), markers)
    write(entries, "home", "AAAA-1111", include="no-path")
    keep_markers(config.read_all(entries), markers)
    assert os.listdir(markers) == ["AAAA-1111"]
