"""A user's list: what it names, and whose it is."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptbackd.worker import lists, rights


def test_a_list_has_comments_blank_lines_and_the_home_directory() -> None:
    raw = b"# mine\n\n  ~/letters \n~\n/srv/data/\r\n/srv//data\n~/a # b\n"
    assert lists.parse(raw, "/home/me") == (
        ["/home/me/letters", "/home/me", "/srv/data", "/home/me/a # b"],
        [],
    )


@pytest.mark.parametrize("line", ["letters", "../x", "/home/me/../you", "~you/x", "$HOME", "/a\0b"])
def test_what_is_no_absolute_path_is_left_out_and_named(line: str) -> None:
    assert lists.parse(f"/srv\n{line}\n".encode(), "/home/me") == (["/srv"], [(2, line)])


def test_a_name_need_not_be_text() -> None:
    named, bad = lists.parse(b"/srv/\xff\n", "/home/me")
    assert [os.fsencode(path) for path in named] == [b"/srv/\xff"]
    assert bad == []


@given(st.binary())
def test_every_path_is_absolute_and_clean(raw: bytes) -> None:
    named, _bad = lists.parse(raw, "/home/me")
    for path in named:
        assert path.startswith("/")
        assert os.path.normpath(path) == path
        assert ".." not in path.split("/")
    assert len(set(named)) == len(named)


def test_whose_a_list_is_follows_from_the_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    def user(name: str, uid: int, home: str) -> pwd.struct_passwd:
        return pwd.struct_passwd((name, "x", uid, uid, "", home, "/bin/sh"))

    users = [
        user("root", 0, "/root"),
        user("daemon", 1, "/usr/sbin"),
        user("nobody", 65534, "/"),
        user("me", 1000, "/home/me"),
        user("guest", 1001, "/home/me/guest"),
    ]
    monkeypatch.setattr(pwd, "getpwall", lambda: users)
    monkeypatch.setattr(os, "getgrouplist", lambda _name, gid: [gid, 27])
    found = rights.owner_of_home("/home/me/list")
    assert found == rights.Rights("me", 1000, 1000, (1000, 27), "/home/me")
    guest = rights.owner_of_home("/home/me/guest/list")
    assert guest is not None
    assert guest.name == "guest"
    assert rights.owner_of_home("/home/men/list") is None
    assert rights.owner_of_home("/usr/sbin/list") is None
    assert rights.owner_of_home("/etc/list") is None


@pytest.mark.usefixtures("as_root")
def test_paths_are_opened_with_the_rights_of_the_user_alone(tmp_path: Path) -> None:
    nobody = rights.of("nobody")
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_uid == 0 and "pytest" in str(parent):
            parent.chmod(0o755)
    (tmp_path / "open").write_text("open")
    (tmp_path / "open").chmod(0o644)
    (tmp_path / "closed").mkdir(0o700)
    (tmp_path / "closed" / "file").write_text("closed")
    (tmp_path / "link").symlink_to(tmp_path / "closed" / "file")
    names = ["open", "closed/file", "link", "missing"]
    paths = [str(tmp_path / name) for name in names]
    found = rights.opened(nobody, paths * 30, os.O_RDONLY)
    first = found[paths[0]]
    assert isinstance(first, int)
    assert os.read(first, 10) == b"open"
    assert [type(found[path]).__name__ for path in paths[1:]] == [
        "PermissionError",
        "PermissionError",
        "FileNotFoundError",
    ]
    magic = rights.opened(nobody, ["/proc/self/root"], os.O_PATH)["/proc/self/root"]
    assert isinstance(magic, OSError)
    assert os.geteuid() == 0


def test_a_list_names_no_more_than_fits_into_a_versions_record() -> None:
    lists._want_short([f"/home/me/{number}" for number in range(10_000)], lists._ROOM // 4)
    with pytest.raises(OSError, match="200,000 paths are more"):
        lists._want_short([f"/home/me/{number}" for number in range(200_000)], lists._ROOM)
