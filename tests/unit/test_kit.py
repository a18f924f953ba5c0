"""The recovery kit: its page, its files, and what is remembered of it."""

from __future__ import annotations

import hashlib
import html
import os
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptbackd import kits
from cryptbackd.cli import kit, passphrase
from cryptbackd.cli.files import reserved
from cryptbackd.cli.kit_page import Facts, page, picture
from cryptbackd.daemon import forgetting
from cryptbackd.daemon.history import History, Insertion, Run
from cryptbackd.errors import Refused
from cryptbackd.model import JobKind
from tests import by_hand

NASTY = 'a\'b "$(id)" <script>alert(1)</script>&amp;.luks'
HEADER = b"a header"
SHA256 = hashlib.sha256(HEADER).hexdigest()


def facts(**changes: object) -> Facts:
    values: dict[str, object] = {
        "name": "home",
        "uuid": "1A2B-3C4D",
        "container": "backup.luks",
        "size": 8 << 30,
        "volume": "01234567-89ab-cdef-0123-456789abcdef",
        "fingerprint": "f" * 64,
        "detached": False,
        "include": ("/home/me", "/etc"),
        "include_from": ("/home/me/list",),
        "header": "cryptback-home.header",
        "header_sha256": SHA256,
        "made": "2026-11-25",
        "host": "desk",
        **changes,
    }
    return Facts(**values)  # type: ignore[arg-type]


class Tags(HTMLParser):
    """Which tags and attributes there are; a tag that is not closed is a fault."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.seen: set[str] = set()
        self.attributes: set[str] = set()
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.attributes |= {name for name, _value in attrs}
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def commands(text: str, name: str) -> str:
    (found,) = re.findall(rf'<pre id="{name}">(.*?)</pre>', text, re.DOTALL)
    return html.unescape(found)


@given(st.text(st.characters(exclude_categories=["C"]), min_size=1), st.booleans(), st.booleans())
def test_whatever_a_name_is_it_is_text_and_one_word(text: str, detached: bool, key: bool) -> None:
    shown = page(
        facts(container=text, include=(f"/{text}",), host=text, detached=detached,
              recovery=text if key else "")
    )  # fmt: skip
    tags = Tags(shown)
    assert tags.open == []
    assert tags.seen <= {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "table", "tr", "th",
        "td", "code", "pre", "br",
    }  # fmt: skip
    assert tags.attributes <= {"lang", "charset", "http-equiv", "content", "class", "id"}
    (losetup,) = re.findall(r"loop=\$\((.*)\)$", commands(shown, "loop"))
    assert shlex.split(losetup)[-1] == f"/media/drive/{text}"


def test_several_files_are_joined_as_the_readme_tells() -> None:
    told = "\n".join(by_hand.commands(by_hand.OPEN_PARTS))
    assert told.startswith(commands(page(facts()), "join"))
    told = "\n".join(by_hand.commands(by_hand.CLOSE_PARTS))
    assert told == commands(page(facts()), "close-joined")
    assert 'id="join"' not in page(facts(container=""))


def test_the_page_needs_nothing_from_elsewhere() -> None:
    svg = '<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><path d="M0,0"/></svg>'
    shown = page(facts(container=NASTY, recovery="a-key", picture=picture(svg)))
    assert "<svg><path" in shown
    assert not re.search(r"<script|https?:|src=|href=|url\(|@import", shown)
    assert picture("no picture") == ""
    assert picture("<svg><script>1</script></svg>") == ""


def test_the_page_tells_what_opens_the_drive() -> None:
    plain = page(facts())
    assert "--header" not in commands(plain, "open")
    assert "--header cryptback-home.header" in commands(plain, "open-with-the-header")
    assert "Recovery key" not in plain
    detached = page(facts(detached=True))
    assert "--header cryptback-home.header" in commands(detached, "open")
    assert "There is no header on the drive" in detached
    assert 'id="open-with-the-header"' not in detached
    bare = page(facts(container=""))
    assert 'id="mount"' not in bare
    assert "/dev/disk/by-uuid/1A2B-3C4D" in commands(bare, "open")
    assert "losetup" not in commands(bare, "close")


# The files


def no(_path: Path) -> bool:
    return False


def yes(_path: Path) -> bool:
    return True


def test_a_file_is_whole_and_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "kit.html"
    with reserved(path, 1 << 16, no) as file:
        assert path.exists()
        file.write(b"page")
        file.keep()
    assert path.read_bytes() == b"page"
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_is_not_kept_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "kit.html"
    with reserved(path, 1, no) as file:
        file.write(b"page")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_replaced_unasked_and_no_link_followed(tmp_path: Path) -> None:
    path, elsewhere = tmp_path / "kit.html", tmp_path / "elsewhere"
    path.symlink_to(elsewhere)
    with pytest.raises(Refused, match="already"), reserved(path, 1, no):
        pass
    assert path.is_symlink()
    with reserved(path, 1, yes) as file:
        file.write(b"page")
        file.keep()
    assert not path.is_symlink()
    assert path.read_bytes() == b"page"
    assert sorted(tmp_path.iterdir()) == [path]


def test_an_old_file_stays_where_the_new_one_fails(tmp_path: Path) -> None:
    path = tmp_path / "kit.html"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), reserved(path, 1, yes):
        raise ZeroDivisionError
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_where_nothing_can_be_written_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="can't be written"), reserved(tmp_path / "no" / "x", 1, no):
        pass
    if os.path.exists("/dev/full"):
        with pytest.raises(Refused), reserved(Path("/proc/kit"), 1, no):
            pass


# What is remembered


def test_a_kit_counts_as_long_as_it_has_the_header(tmp_path: Path) -> None:
    header, notes = tmp_path / "home", tmp_path / "kits"
    header.write_bytes(HEADER)
    assert not kits.has("home", header, notes)
    with pytest.raises(Refused):
        kits.note("home", "../../etc", notes)
    kits.note("home", SHA256, notes)
    assert kits.has("home", header, notes)
    header.write_bytes(b"another")
    assert not kits.has("home", header, notes)
    kits.forget("home", notes)
    kits.forget("home", notes)
    assert list(notes.iterdir()) == []


def test_a_kit_that_can_not_be_remembered_is_told_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Refused, match="can't remember that there is a kit of home"):
        kits.note("home", SHA256, tmp_path / "file" / "kits")


@pytest.mark.parametrize("noted", [False, True])
def test_forgetting_keeps_the_header_unless_a_kit_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noted: bool
) -> None:
    monkeypatch.setattr("cryptbackd.paths.DRIVES_D", tmp_path)
    unfinished = tmp_path / "home.json"
    monkeypatch.setattr("cryptbackd.paths.unfinished", lambda _name: unfinished)
    entry = tmp_path / "home.toml"
    entry.touch()
    header = tmp_path / "headers" / "home"
    header.parent.mkdir()
    header.write_bytes(HEADER)
    (tmp_path / "headers" / "home2").touch()
    (tmp_path / "catalogue" / "home").mkdir(parents=True)
    if noted:
        kits.note("home", SHA256, tmp_path / "kits")
    history = History(tmp_path / "history.db", lambda _sentence: None)
    for name in ("home", "work"):
        history.begin(Run(name, name, JobKind.BACKUP, 1.0), Insertion("boot", 1))
    unfinished.touch()
    with pytest.raises(Refused, match="nothing was forgotten"):
        forgetting.forget("home", history, tmp_path)
    assert entry.exists()
    unfinished.unlink()
    done = forgetting.forget("home", history, tmp_path)
    assert [run.entry for run in history.runs()] == ["work"]
    history.close()
    assert header.exists() is not noted
    assert (tmp_path / "headers" / "home2").exists()
    assert done.kept == ([] if noted else [str(header)])
    assert not entry.exists()
    assert not (tmp_path / "catalogue" / "home").exists()


def test_an_entry_that_can_not_be_removed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cryptbackd.paths.DRIVES_D", tmp_path)
    monkeypatch.setattr("cryptbackd.paths.unfinished", lambda _name: tmp_path / "none")
    (tmp_path / "home.toml").mkdir()
    history = History(tmp_path / "history.db", lambda _sentence: None)
    history.begin(Run("home", "home", JobKind.BACKUP, 1.0), Insertion("boot", 1))
    with pytest.raises(Refused, match="can't be removed"):
        forgetting.forget("home", history, tmp_path)
    assert [run.entry for run in history.runs()] == ["home"]
    history.close()


def test_a_catalogue_that_can_not_be_removed_is_not_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cryptbackd.paths.DRIVES_D", tmp_path)
    monkeypatch.setattr("cryptbackd.paths.unfinished", lambda _name: tmp_path / "none")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "catalogue").mkdir()
    (tmp_path / "catalogue" / "home").symlink_to(tmp_path / "elsewhere")
    history = History(tmp_path / "history.db", lambda _sentence: None)
    with pytest.raises(Refused, match="catalogue/home can't be removed"):
        forgetting.forget("home", history, tmp_path)
    history.close()


def test_a_recovery_key_that_is_not_on_the_page_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C while the header is fetched, which looks at the drive: the key opens that already."""
    done = {"name": "home", "outcome": "done", "sentence": "", "hint": "", "version": "",
            "warnings": [], "safe": False, "touched": False}  # fmt: skip

    async def nothing(_name: str) -> None:
        pass

    async def interrupted(_name: str) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(passphrase, "want_here", nothing)
    monkeypatch.setattr(passphrase, "recovery_key", lambda *_asked: (done, "cbdefghi-jklnrtuv"))
    monkeypatch.setattr(kit, "_known", nothing)
    monkeypatch.setattr(kit, "_fetch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        kit._kit(kit.Plan("home", tmp_path, yes=True, as_json=False), True, 0)
    assert "cbdefghi-jklnrtuv" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_kit_that_is_written_is_told_though_the_service_can_not_remember_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def nothing(_name: str) -> None:
        pass

    async def fetched(_name: str) -> Any:
        return {"problem": ""}, HEADER

    async def full(_name: str, _header: bytes) -> None:
        raise Refused("No room.")

    monkeypatch.setattr(kit, "_known", nothing)
    monkeypatch.setattr(kit, "_fetch", fetched)
    monkeypatch.setattr(kit, "_note", full)
    monkeypatch.setattr(kit, "write", lambda *_what: None)
    plan = kit.Plan("home", tmp_path, yes=True, as_json=False)
    for write in (lambda: kit._kit(plan, False, None), lambda: write_for(plan)):
        with pytest.raises(Refused, match="No room"):
            write()
        assert "The recovery kit of home is written" in capsys.readouterr().out


def write_for(plan: kit.Plan) -> None:
    with kit.places(plan) as places:
        kit.write_for(plan, places)
