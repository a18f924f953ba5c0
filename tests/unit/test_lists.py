"""A user's list: what it names, and whose it is."""

from __future__ import annotations

import os
import pwd
import signal
import socket
import subprocess
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptbackd import config, kernel
from cryptbackd.trusted import open_as_root
from cryptbackd.worker import careful, lists, rights, sources
from cryptbackd.worker.control import Control
from cryptbackd.worker.mountinfo import Mount, holding, mounts, of_descriptor
from cryptbackd.worker.rsync_job import Job, arguments

JOB = Job(Path("/stage"), Path("/target"), (), (), ())


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


def test_a_path_that_is_longer_than_a_filter_may_be_is_left_out() -> None:
    longest = "/" + "é" * 999 + "x"
    assert lists.parse(f"{longest}\n{longest}x\n".encode(), "/home/me") == (
        [longest],
        [(2, f"{longest}x")],
    )
    home = lists.parse(b"~/" + b"x" * 1995, "/home/me")
    assert (len(home[0]), len(home[1])) == (0, 1)


def test_a_list_names_what_there_is_room_for_in_arguments() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        control = Control(ours)
        usual = [f"/home/me/{number:051d}" for number in range(5000)]
        assert lists.fitting("/l", usual[:3000], 1 << 20, control) == usual[:3000]
        assert not control.warnings
        wild = [f"/{number}{'*' * 1990}" for number in range(1000)]
        fit = lists.fitting("/l", wild, 1 << 20, control)
        others = [f"/other/{number}" for number in range(50)]
        own = attrs.evolve(JOB, own=tuple(fit), others=tuple(others))
        theirs_ = attrs.evolve(JOB, own=("/",), others=tuple(fit))
        for job in (own, theirs_):
            argv = arguments(job, dry=True, door=3)
            assert sum(len(os.fsencode(word)) + 9 for word in argv) < (1 << 20) + 10_000
        assert len(control.warnings) == 1
        assert control.warnings[0].endswith(
            f" and all {1000 - len(fit)} paths from there on are left out."
        )
    assert not control.doubts


def test_a_source_in_another_one_is_left_to_that() -> None:
    named = ["/srv/b/c", "/srv/b-c", "/srv/b", "/srv/bc/../b/d", "//srv/a"]
    assert sources.outermost(named) == ["/srv/a", "/srv/b", "/srv/b-c"]
    assert sources.outermost(["/srv", "/"]) == ["/"]


def test_a_source_that_was_read_for_itself_goes_on_being_one() -> None:
    """Where its disk isn't mounted, the one that it lies in has an empty directory there."""
    named = ["/srv", "/srv/disk", "/srv/other"]
    assert sources.outermost(named, {"/srv": "ext4:1", "/srv/disk": "xfs"}) == named[:2]


def test_what_lies_in_a_source_that_is_kept_is_read_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither rsync nor a listing goes through the one that is kept."""
    monkeypatch.setattr(lists, "unveil", lambda: None)
    every = ["/", "/srv", "/srv/disk", "/srv/disk/a", "/srv/disk/a/b", "/srv/disk/vm"]
    keeps = ["/srv/disk", "/srv/disk/a"]

    def plan(paths: Sequence[str], *, open_: object, elsewhere: object) -> sources.Plan:
        read = (sources.Source(path, "") for path in paths if path not in keeps)
        kept = (sources.Source(path, "") for path in paths if path in keeps)
        return sources.Plan(tuple(read), tuple(kept), ("/mnt",), recursive=False)

    entry = config.parse(config.render("0000-0000", "c.luks", None, tuple(every), ()), "e")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        asked = lists.gather(entry, plan, {}, every, Control(ours))
    assert [[source.path for source in group.plan.read] for group in asked.groups] == [
        ["/", "/srv"],
        ["/srv/disk/a/b"],
        ["/srv/disk/vm"],
    ]
    assert asked.kept == ("/srv/disk", "/srv/disk/a")
    assert asked.skipped_mounts == ("/mnt",)
    assert sorted(asked.others(asked.groups[1])) == sorted({*every} - {"/srv/disk/a/b"})


def mounted(path: str, root: str = "/", devno: str = "8:1", fstype: str = "ext4") -> Mount:
    served = ("user_id=1000",) if fstype.startswith("fuse") else ()
    return Mount("1", devno, root, path, fstype, "x", served)


TABLE = [
    mounted("/"),
    mounted("/home", "/home"),  # as a service sees it, read-only
    mounted("/home/me/disk", devno="8:17"),
    mounted("/home/me/bound", "/srv/elsewhere"),
    mounted("/home/me/served", devno="0:99", fstype="fuse.sshfs"),
]


@pytest.mark.parametrize(
    ("path", "hidden", "crossed"),
    [
        ("/home", False, False),
        ("/home/me/a", False, False),
        ("/home/me/disk", True, False),
        ("/home/me/disk/a/b", True, False),
        ("/home/me/disks", False, False),
        ("/home/me/bound/a", True, False),
        ("/home/me/served", True, True),
    ],
)
def test_what_is_mounted_in_a_source_is_not_in_it(path: str, hidden: bool, crossed: bool) -> None:
    assert sources.is_hidden(path, "/", TABLE) is hidden
    assert sources.is_hidden(path, "/", TABLE, crossed=True) is crossed
    if path.startswith("/home/me/"):
        assert sources.is_hidden(path, "/home/me", TABLE) is hidden
    assert not sources.is_hidden(path, path, TABLE)
    assert not sources.is_hidden(f"{path}/x", path, TABLE)


def test_another_subvolume_is_not_in_a_source() -> None:
    table = [mounted("/", "/@", "0:33", "btrfs"), mounted("/home", "/@home", "0:33", "btrfs")]
    assert sources.is_hidden("/home/me", "/", table)
    assert not sources.is_hidden("/home/me", "/home", table)


def test_another_subvolume_is_left_out_with_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of one btrfs show one device number in mountinfo."""
    table = [
        mounted("/", "/@", "0:33", "btrfs"),
        mounted("/home", "/@home", "0:33", "btrfs"),
        mounted("/srv", "/@/srv", "0:33", "btrfs"),  # what lies there anyway
    ]
    monkeypatch.setattr(sources, "mounts", lambda: table)
    monkeypatch.setattr(sources, "mount_of", lambda path: holding(path, table))
    found = sources._left_out([sources.Source("/", "")], (), crossed=False)
    assert [mount.path for mount in found] == ["/home"]


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("table", [TABLE, TABLE[:2]], ids=["mounted", "not mounted now"])
def test_a_users_mount_is_theirs_where_root_does_not_come_to_it(
    monkeypatch: pytest.MonkeyPatch, table: list[Mount]
) -> None:
    monkeypatch.setattr(lists, "unveil", lambda: None)
    monkeypatch.setattr(lists, "mounts", lambda: table)
    monkeypatch.setattr(sources, "mounts", lambda: table)
    monkeypatch.setattr(rights, "owner_of_home", lambda *_: rights.of("nobody"))
    named = ["/home/me/a", "/home/me/disk/data", "/home/me/disk/data/x"]
    monkeypatch.setattr(lists, "_read", lambda *_: named)
    elsewheres = []

    def plan(paths: Sequence[str], *, open_: object, elsewhere: set[str]) -> sources.Plan:
        elsewheres.append(elsewhere)
        read = tuple(sources.Source(path, "") for path in paths)
        return sources.Plan(read, (), (), recursive=False)

    text = config.render("0000-0000", "c.luks", None, ("/home/me",), (), ("/l",))
    entry = config.parse(text, "e")
    known = [] if table is TABLE else ["/home/me", "/home/me/disk/data"]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        asked = lists.gather(entry, plan, {}, known, Control(ours))
        # With no list, what it named the last time stays, too.
        monkeypatch.setattr(lists, "_read", no_list)
        again = lists.gather(entry, plan, {"/l": named}, known, Control(ours))
    assert [[source.path for source in group.plan.read] for group in asked.groups] == [
        ["/home/me"],
        ["/home/me/disk/data"],
    ]
    assert "/home/me/disk/data" in elsewheres[0]
    assert "/home/me/disk/data" in again.kept
    assert "/home/me/a" not in again.kept


@pytest.mark.usefixtures("as_root")
def test_what_lies_on_a_disk_in_a_source_of_the_same_rights_is_shown_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the disk is mounted, in the source around it, there is no such directory."""
    monkeypatch.setattr(lists, "unveil", lambda: None)
    monkeypatch.setattr(lists, "mounts", lambda: TABLE)
    monkeypatch.setattr(sources, "mounts", lambda: TABLE)

    def plan(paths: Sequence[str], *, open_: object, elsewhere: set[str]) -> sources.Plan:
        read = tuple(sources.Source(path, "") for path in paths)
        return sources.Plan(read, (), (), recursive=False)

    include = ("/", "/home/me/disk/a", "/home/me/disk/b/c", "/home/me/bound", "/home/me/x")
    entry = config.parse(config.render("0000-0000", "c.luks", None, include, ()), "e")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        asked = lists.gather(entry, plan, {}, [], Control(ours))
    assert [[source.path for source in group.plan.read] for group in asked.groups] == [
        ["/", "/home/me/bound"],
        ["/home/me/disk/a", "/home/me/disk/b/c"],
    ]


@pytest.mark.usefixtures("as_root")
def test_what_lies_on_a_disk_is_staged(tmp_path: Path) -> None:
    (tmp_path / "home/disk").mkdir(parents=True)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control = Control(ours)

    def work() -> None:
        kernel.mount("tmpfs", str(tmp_path / "home/disk"), 0)
        (tmp_path / "home/disk/data").mkdir()
        (tmp_path / "home/disk/data/file").touch()
        include = (f"{tmp_path}/home", f"{tmp_path}/home/disk/data")
        text = config.render("0000-0000", "c.luks", None, include, ())
        plan_for = partial(
            sources.plan,
            cross_filesystems=False,
            last_tree=None,
            last_filesystems={},
            known_skipped=(),
            accept=False,
            control=control,
        )
        asked = lists.gather(config.parse(text, "e"), plan_for, {}, (), control)
        for number, group in enumerate(asked.groups):
            where = tmp_path / f"stage{number}"
            shown = sources.stage(group.plan, asked.others(group), where, None, control)
            assert shown.kept == ()
        assert os.path.exists(f"{tmp_path}/stage1{tmp_path}/home/disk/data/file")

    with ours, theirs:
        in_its_own_namespace(work)


def no_list(*_: object) -> list[str]:
    raise FileNotFoundError(2, "gone")


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


@pytest.mark.usefixtures("as_root")
def test_a_user_can_not_stop_who_has_their_rights() -> None:
    """Whoever waits for its answer would wait for the user."""
    nobody = rights.of("nobody")
    told, tells = os.pipe()
    child = os.fork()
    if child == 0:
        rights._take_on(nobody)
        os.write(tells, b"+")
        signal.pause()
    os.read(told, 1)
    stop = f"import os, signal; os.kill({child}, signal.SIGSTOP)"
    argv = ["/usr/bin/python3", "-I", "-c", stop]
    tried = subprocess.run(argv, user=nobody.uid, group=nobody.gid, extra_groups=[],
                           capture_output=True, text=True, check=False)  # fmt: skip
    status = Path(f"/proc/{child}/status").read_text()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    for fd in (told, tells):
        os.close(fd)
    assert "PermissionError" in tried.stderr
    assert "CapPrm:\t0000000000000000" in status


@pytest.mark.usefixtures("as_root")
def test_a_users_link_shows_no_directory_that_they_could_not_reach(tmp_path: Path) -> None:
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_uid == 0 and "pytest" in str(parent):
            parent.chmod(0o755)
    (tmp_path / "closed" / "secret").mkdir(0o751, parents=True)
    (tmp_path / "closed").chmod(0o700)
    (tmp_path / "open").mkdir(0o750)
    for name, target, user in (
        ("theirs", "closed/secret", 65534),
        ("to-open", "open", 65534),
        ("roots", "closed/secret", 0),
    ):
        (tmp_path / name).symlink_to(tmp_path / target)
        os.chown(tmp_path / name, user, user, follow_symlinks=False)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        others = [f"{tmp_path}/{name}/file" for name in ("theirs", "to-open", "roots")]
        plan = sources.Plan((), (), (), recursive=False)
        sources.stage(plan, others, tmp_path / "stage", None, Control(ours))
    staged = Path(f"{tmp_path}/stage{tmp_path}")
    modes = {path.name: path.stat().st_mode & 0o777 for path in staged.iterdir()}
    assert modes["to-open"] == 0o750
    assert modes["roots"] == 0o751
    assert modes["theirs"] != 0o751


def in_its_own_namespace(work: Callable[[], None]) -> None:
    """Do it in a child that may mount what nobody else is to see."""
    child = os.fork()
    if child == 0:
        try:
            kernel.unshare(kernel.CLONE_NEWNS)
            kernel.set_propagation("/", kernel.MS_REC | kernel.MS_SLAVE)
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _pid, status = os.waitpid(child, 0)
    assert status == 0


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("crossed", [True, False])
def test_what_a_user_serves_below_a_source_is_not_shown(tmp_path: Path, *, crossed: bool) -> None:
    home = tmp_path / "home"
    (home / "me" / "served").mkdir(parents=True)
    (home / "roots").mkdir()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control = Control(ours)

    def work() -> None:
        kernel.mount("tmpfs", str(home / "roots"), 0)
        (home / "roots" / "file").touch()
        answers_nothing = os.open("/dev/fuse", os.O_RDWR)
        whose = f"fd={answers_nothing},rootmode=40000,user_id=1000,group_id=1000"
        kernel.mount("fuse", str(home / "me" / "served"), 0, whose)
        plan = sources.plan(
            [str(home)],
            cross_filesystems=crossed,
            open_=open_as_root,
            last_tree=None,
            last_filesystems={},
            known_skipped=(),
            accept=False,
            control=control,
        )
        assert (str(home / "me" / "served") in plan.skipped_mounts) is True
        assert (str(home / "roots") in plan.skipped_mounts) is not crossed
        # Somebody may mount it when all was looked at.
        plan = attrs.evolve(plan, skipped_mounts=())
        shown = sources.stage(plan, (), tmp_path / "stage", None, control)
        assert [source.path for source in shown.read] == [str(home)]
        staged = f"{tmp_path}/stage{home}"
        below = {each.path: each.fstype for each in mounts() if each.path.startswith(staged)}
        assert "fuse" not in below.values()
        assert os.path.exists(f"{staged}/roots/file") is crossed

    with ours, theirs:
        in_its_own_namespace(work)


@pytest.mark.usefixtures("as_root")
def test_a_mount_that_is_taken_away_on_the_way_there_is_an_error_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mounted").mkdir()

    def work() -> None:
        kernel.mount("tmpfs", str(tmp_path / "mounted"), 0)

        def taken_away(fd: int) -> Mount:
            kernel.detach(str(tmp_path / "mounted"))
            return of_descriptor(fd)

        monkeypatch.setattr("cryptbackd.worker.careful.of_descriptor", taken_away)
        with pytest.raises(OSError, match="Stale"):
            careful.walk(f"{tmp_path}/mounted")

    in_its_own_namespace(work)
