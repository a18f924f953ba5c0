"""Entries: what is read, and how a fault is named."""

import os
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cryptbackd import config, moment, protocol
from cryptbackd.errors import ConfigError, UnknownDrive
from cryptbackd.model import Device, JobKind, LedgerEntry

GOOD = """
uuid = "1A2B-3C4D"
container = "backup.luks"
owner = "me"

[backup]
include = ["/home/me", "/etc"]
exclude = [".cache", "*.iso"]
cross_filesystems = false

[keep]
last = 3
daily = 7

[when]
at_most = "1h"
"""


def test_a_good_entry() -> None:
    entry = config.parse(GOOD, "home.toml")
    assert entry.uuid == "1A2B-3C4D"
    assert entry.backup.include == ("/home/me", "/etc")
    assert entry.keep.last == 3
    assert entry.keep.weekly == 0
    assert entry.when.at_most == 3600
    assert entry.verify.full_every == 20
    assert entry.after.power_off is False


def test_no_rules_to_keep_by_are_the_same_as_none_at_all() -> None:
    without = config.parse(GOOD.replace("[keep]\nlast = 3\ndaily = 7\n", ""), "f").keep
    assert config.parse(GOOD.replace("last = 3\ndaily = 7\n", ""), "f").keep == without
    assert config.parse(GOOD.replace("= 3", "= 0").replace("= 7", "= 0"), "f").keep == without


def test_without_a_container_the_partition_is_meant() -> None:
    entry = config.parse('uuid = "x1"\n[backup]\ninclude = ["/etc"]\n', "f")
    assert entry.container is None


@pytest.mark.parametrize(
    ("change", "path", "says"),
    [
        (("last = 3", "lats = 3"), "keep.lats", "no such key is known"),
        (("last = 3", 'last = "3"'), "keep.last", 'found "3", wanted a whole number'),
        (("last = 3", "last = true"), "keep.last", "wanted a whole number"),
        (("last = 3", "last = -1"), "keep.last", "found -1"),
        (("last = 3", "last = 1.0"), "keep.last", "found 1.0"),
        (("daily = 7", "fortnightly = 1"), "keep.fortnightly", "hourly, daily, weekly, monthly"),
        (('uuid = "1A2B-3C4D"', ""), "uuid", "it is missing"),
        (('uuid = "1A2B-3C4D"', 'uuid = "../x"'), "uuid", "filesystem UUID"),
        (('"backup.luks"', '"../backup.luks"'), "container", "without"),
        (('"backup.luks"', '"/backup.luks"'), "container", "file name on the drive"),
        (('"backup.luks"', "7"), "container", "found 7"),
        (('"/home/me"', '"home"'), "backup.include", "an absolute path"),
        (('"/home/me"', "1"), "backup.include", "found 1"),
        (('["/home/me", "/etc"]', '"/etc"'), "backup.include", "wanted a list"),
        (('"*.iso"', '"a\\nb"'), "backup.exclude", "rsync pattern"),
        (('"1h"', '"soon"'), "when.at_most", 'a time such as "30min"'),
        (('"1h"', "3600"), "when.at_most", "found 3600"),
        (
            ("cross_filesystems = false", "cross_filesystems = 0"),
            "backup.cross_filesystems",
            "true",
        ),
        (('owner = "me"', 'owner = ["me"]'), "owner", "a user's name"),
        (("[keep]\nlast = 3\ndaily = 7", "keep = 3"), "keep", "wanted a table"),
    ],
)
def test_a_fault_is_named_with_its_place(change: tuple[str, str], path: str, says: str) -> None:
    broken = GOOD.replace(*change)
    if change[1] == "keep = 3":  # a bare key must stand before the tables
        broken = "keep = 3\n" + GOOD.replace(change[0], "")
    assert broken != GOOD
    with pytest.raises(ConfigError) as caught:
        config.parse(broken, "home.toml")
    assert caught.value.sentence.startswith(f"home.toml: {path}: ")
    assert says in caught.value.sentence
    assert caught.value.hint


def test_what_is_no_toml() -> None:
    with pytest.raises(ConfigError, match="this is not TOML"):
        config.parse("uuid = ", "home.toml")


def test_nothing_to_copy() -> None:
    with pytest.raises(ConfigError, match="nothing to copy"):
        config.parse('uuid = "x"\n', "home.toml")


@given(st.text(max_size=200))
def test_what_is_no_entry_is_told_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.parse(text, "f")
    assert caught.value.sentence.isprintable()


_PATHS = st.text(
    st.characters(categories=["L", "N", "P", "S"], exclude_characters="/\0"),
    min_size=1,
    max_size=20,
).filter(lambda s: s not in (".", "..") and s.isprintable())


@given(
    include=st.lists(_PATHS, max_size=3),
    lists=st.lists(_PATHS, max_size=2),
    exclude=st.lists(_PATHS, max_size=3),
    container=st.none() | _PATHS,
)
def test_what_init_writes_is_read_back(
    include: list[str], lists: list[str], exclude: list[str], container: str | None
) -> None:
    assume(include or lists)
    paths, from_ = (tuple(f"/{path}" for path in given) for given in (include, lists))
    text = config.render("1A2B-3C4D", container, None, paths, tuple(exclude), from_)
    entry = config.parse(text, "f")
    assert entry.backup.include == paths
    assert entry.backup.include_from == from_
    assert entry.backup.exclude == tuple(exclude)
    assert entry.container == container


@pytest.mark.parametrize("name", ["home", "a", "0-x_y", "a" * 31])
def test_good_names(name: str) -> None:
    assert config.check_name(name) == name


@pytest.mark.parametrize("name", ["", "-a", "_a", "A", "a b", "a/b", "..", "a" * 32, "a\n", "ä"])
def test_bad_names(name: str) -> None:
    with pytest.raises(ConfigError):
        config.check_name(name)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "home.toml").write_text(GOOD)
    (tmp_path / "home.toml").chmod(0o644)
    return tmp_path


@pytest.mark.usefixtures("as_root")
def test_one_bad_file_disables_itself_alone(directory: Path) -> None:
    (directory / "bad.toml").write_text("uuid = 1")
    (directory / "bad.toml").chmod(0o644)
    (directory / "BAD NAME.toml").write_text(GOOD)
    (directory / "note.txt").write_text("not ours")
    found = config.read_all(directory)
    assert set(found.good) == {"home"}
    assert set(found.bad) == {"bad", "BAD NAME"}
    assert found.texts["home"] == GOOD


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("mode", [0o666, 0o664, 0o646])
def test_a_file_that_others_can_write_is_refused(directory: Path, mode: int) -> None:
    (directory / "home.toml").chmod(mode)
    with pytest.raises(ConfigError, match="writable by nobody else"):
        config.read("home", directory)


@pytest.mark.usefixtures("as_root")
def test_a_file_of_somebody_else_is_refused(directory: Path) -> None:
    os.chown(directory / "home.toml", 1000, 1000)
    with pytest.raises(ConfigError, match="belongs to user 1000"):
        config.read("home", directory)


def test_a_link_is_not_followed(directory: Path) -> None:
    (directory / "link.toml").symlink_to(directory / "home.toml")
    with pytest.raises(ConfigError):
        config.read("link", directory)


def test_a_pipe_is_not_waited_for(directory: Path) -> None:
    os.mkfifo(directory / "pipe.toml")
    with pytest.raises(ConfigError, match="not a regular file"):
        config.read("pipe", directory)


def test_no_such_entry(directory: Path) -> None:
    with pytest.raises(UnknownDrive):
        config.read("other", directory)
    assert config.read_all(directory / "nowhere") == config.Entries({}, {}, {})


def test_an_entry_fits_into_what_a_worker_is_told(tmp_path: Path) -> None:
    """Whatever characters it is made of; longer ones are refused, and told."""
    entry = 'uuid = "x1"\n[backup]\ninclude = ["/etc"]\n# '
    device = Device("/dev/" + "x" * 200, 8, 1, "/dev/" + "x" * 200, 7, "u" * 64, "vfat")
    ledger = LedgerEntry(2**63 - 1, "v" * 255, "n" * 64, "a" * 64)
    for character in ("x", '"', "\t", "é", "€", "\U0001f600"):
        room = config.LONGEST - len(entry)
        text = entry + character * (room // len(character.encode()))
        config.parse(text, "f")
        options = {"at": "\U0001f600" * moment.LONGEST, "user": 1, "groups": list(range(400))}
        start = protocol.Start(JobKind.RESTORE, "x" * 31, device, text, ledger, options)
        assert protocol.fits(start), character
        with pytest.raises(ConfigError, match="more than 60 KiB"):
            config.parse(text + "x" * len(character.encode()) * 2, "f")


@pytest.mark.usefixtures("as_root")
def test_a_file_that_is_too_long_disables_that_entry_alone(tmp_path: Path) -> None:
    for name, text in (("good", GOOD), ("long", GOOD + "#" * (2 << 20))):
        file = tmp_path / f"{name}.toml"
        file.write_text(text)
        file.chmod(0o600)
    entries = config.read_all(tmp_path)
    assert list(entries.good) == ["good"]
    assert "include_from" in entries.bad["long"].hint
