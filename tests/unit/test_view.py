"""The tree that is shown of the versions: nothing leads out of it, and nothing is mixed up."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptbackd.worker.view.tree import ROOT, Tree


@pytest.fixture
def versions(tmp_path: Path) -> Path:
    """Two versions, one with something of each kind."""
    for name in ("one", "two"):
        (tmp_path / name / "home").mkdir(parents=True)
        (tmp_path / name / "home" / "a").write_text(name)
    home = tmp_path / "two" / "home"
    os.link(home / "a", home / "b")
    (home / "out").symlink_to("/etc/passwd")
    (home / "up").symlink_to("..")
    (home / "dir-out").symlink_to("/etc")
    os.mkfifo(home / "pipe")
    (tmp_path / "secret").write_text("beside the versions")
    return tmp_path


@pytest.fixture
def tree(versions: Path) -> Iterator[Tree]:
    roots = [os.open(versions / name, os.O_PATH) for name in ("one", "two")]
    shown = Tree([b"one", b"two"], roots, 5, 6)
    before = len(os.listdir("/proc/self/fd"))
    here = os.getcwd()
    yield shown
    os.chdir(here)
    assert len(os.listdir("/proc/self/fd")) == before
    shown.close()


def find(tree: Tree, path: str) -> int:
    number = ROOT
    for part in path.split("/"):
        number, _status = tree.lookup(number, os.fsencode(part))
    return number


def content(tree: Tree, path: str) -> bytes:
    fd = tree.file(find(tree, path))
    try:
        return os.read(fd, 100)
    finally:
        os.close(fd)


def test_each_version_has_its_own_files(tree: Tree) -> None:
    assert tree.names(ROOT) == [b"one", b"two"]
    assert (content(tree, "one/home/a"), content(tree, "two/home/a")) == (b"one", b"two")
    assert set(tree.names(find(tree, "two/home"))) == {
        b"a", b"b", b"out", b"up", b"dir-out", b"pipe"
    }  # fmt: skip
    root = tree.status(ROOT)
    assert (root.st_uid, root.st_gid, stat.filemode(root.st_mode)) == (5, 6, "dr-x------")


def test_names_of_one_file_have_one_number(tree: Tree) -> None:
    assert find(tree, "two/home/a") == find(tree, "two/home/b")
    assert find(tree, "one/home/a") != find(tree, "two/home/a")


def test_links_are_shown_and_not_followed(tree: Tree) -> None:
    for name, target in (("out", b"/etc/passwd"), ("up", b".."), ("dir-out", b"/etc")):
        number = find(tree, f"two/home/{name}")
        assert stat.S_ISLNK(tree.status(number).st_mode)
        assert tree.link(number) == target
        for use in (tree.file, tree.names):
            with pytest.raises(OSError, match="symbolic link"):
                use(number)
        with pytest.raises(OSError, match="symbolic link"):
            tree.lookup(number, b"passwd")


@pytest.mark.parametrize("name", [b"..", b"../secret", b"../../secret", b"/etc/passwd"])
def test_names_that_lead_up_are_refused(tree: Tree, name: bytes) -> None:
    """The kernel would not ask for them."""
    with pytest.raises(OSError, match=r"cross-device|No such file"):
        tree.lookup(find(tree, "two"), name)
    with pytest.raises(OSError, match="No such file"):
        tree.lookup(ROOT, name)


def test_what_is_no_file_is_not_opened(tree: Tree) -> None:
    for path in ("two/home/pipe", "two/home"):
        with pytest.raises(PermissionError):
            tree.file(find(tree, path))
    with pytest.raises(IsADirectoryError):
        tree.file(ROOT)


def test_a_directory_that_became_a_link_is_not_followed(tree: Tree, versions: Path) -> None:
    """As on a filesystem that somebody forged, or that falls apart."""
    number = find(tree, "one/home/a")
    (versions / "one" / "home").rename(versions / "one" / "was")
    (versions / "one" / "home").symlink_to("was")
    with pytest.raises(OSError, match="symbolic link"):
        tree.file(number)


def test_attributes_are_shown_unless_they_are_the_systems(tree: Tree, versions: Path) -> None:
    path = versions / "two" / "home" / "a"
    os.setxattr(path, "user.colour", b"red")
    os.setxattr(path, "trusted.secret", b"of root")
    number = find(tree, "two/home/a")
    assert tree.attributes(number) == ["user.colour"]
    assert tree.attribute(number, "user.colour") == b"red"
    for name in ("trusted.secret", "user.none"):
        with pytest.raises(OSError, match="No data"):
            tree.attribute(number, name)
    assert tree.attributes(find(tree, "two/home/out")) == []
    assert tree.attributes(ROOT) == []


def test_paths_may_be_longer_than_the_kernel_takes_at_once(tree: Tree, versions: Path) -> None:
    name = "x" * 250
    number, fd = find(tree, "one"), os.open(versions / "one", os.O_RDONLY)
    for _ in range(40):
        os.mkdir(name, dir_fd=fd)
        deeper = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = deeper
        number, _status = tree.lookup(number, name.encode())
    os.close(os.open("end", os.O_CREAT, dir_fd=fd))
    os.close(fd)
    assert tree.names(number) == [b"end"]
    number, _status = tree.lookup(number, b"end")
    os.close(tree.file(number))
    assert tree.attributes(number) == []


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["a", "b", "out", "."]), st.integers(1, 3)), max_size=30
    )
)
def test_a_number_is_known_until_it_is_forgotten_and_never_given_again(
    steps: list[tuple[str, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    where = tmp_path_factory.mktemp("version")
    for name in ("a", "b", "out"):
        (where / name).touch()
    tree = Tree([b"one"], [os.open(where, os.O_PATH)], 0, 0)
    top, _status = tree.lookup(ROOT, b"one")
    known: dict[str, tuple[int, int]] = {}
    ever: dict[int, str] = {}
    for name, lookups in steps:
        if name != "." and name not in known:
            for _ in range(lookups):
                number, _status = tree.lookup(top, name.encode())
            assert ever.setdefault(number, name) == name
            known[name] = number, lookups
        elif name in known:
            number, left = known.pop(name)
            tree.forget(number, left)
            with pytest.raises(KeyError):
                tree.status(number)
            del ever[number]
            ever[number] = f"{name}, forgotten"
        for number, _lookups in known.values():
            assert stat.S_ISREG(tree.status(number).st_mode)
    tree.close()
