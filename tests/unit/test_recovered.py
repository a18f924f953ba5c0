"""Settings that come from a drive, and entries that move to another one."""

from __future__ import annotations

import json
import re
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptbackd import config
from cryptbackd.cli import recovered
from cryptbackd.cli.init import Plan
from cryptbackd.errors import ConfigError, Refused
from cryptbackd.worker.jobs.adopt import moved

ENTRY = """\
# my drive
uuid = "1A2B-3C4D" # blue
container = "backup.luks"

# whose it is
owner = "root"

[backup]
include = [
  "/home/me", # all of it
  "/etc",
]
[keep]
last = 3
"""
TOLD = {"name": "home", "entry": ENTRY, "host": "old", "version": "v", "versions": 3}


def plan(**said: Any) -> Plan:
    nothing: dict[str, Any] = dict.fromkeys(field.name for field in attrs.fields(Plan))
    return Plan(
        **{
            **nothing,
            "name": "",
            "include": (),
            "include_from": (),
            "exclude": (),
            "device": "/dev/x",
            **said,
        }
    )


def test_what_the_container_tells_takes_effect() -> None:
    name, settings = recovered.chosen(plan(), TOLD)
    assert name == "home"
    assert config.parse(settings, "") == config.parse(ENTRY, "")
    assert "#" not in settings.split("\n", 1)[1]  # nothing is in it but what was understood


def test_what_was_said_wins() -> None:
    name, settings = recovered.chosen(
        plan(name="other", include=("/srv",), exclude=("*.iso",)), TOLD
    )
    entry = config.parse(settings, "")
    assert (name, entry.backup.include, entry.backup.exclude) == ("other", ("/srv",), ("*.iso",))
    assert entry.keep.last == 3


def test_a_list_that_was_said_wins_over_paths() -> None:
    backup = config.parse(recovered.chosen(plan(include_from=("/l",)), TOLD)[1], "").backup
    assert (backup.include, backup.include_from) == ((), ("/l",))


@pytest.mark.parametrize(
    "setting",
    [
        'exclude = ["a\u2028uuid = ", "thesis"]',
        'exclude = ["a\x85container = ", "thesis"]',
        f'exclude = ["{"a" * 3000}", "thesis"]',
        f'exclude = ["{chr(0x1FFFE) * 1000}", "thesis"]',
    ],
    ids=["line separator", "next line", "long", "escaped"],
)
def test_nothing_of_the_settings_is_hidden_from_who_agrees_to_them(
    setting: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told = {**TOLD, "entry": f'uuid = "1A2B-3C4D"\n[backup]\ninclude = ["/home"]\n{setting}\n'}
    name, settings = recovered.chosen(plan(), told)
    recovered.show(plan(), told, name, settings)
    shown = capsys.readouterr().out
    assert "1A2B-3C4D" not in shown
    assert "…" not in shown
    assert '"thesis"]' in shown.replace("\n    ", "")


def test_what_the_container_tells_a_program_is_nothing_that_a_terminal_obeys(
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = {**TOLD, "host": "\x9b2J\udc80", "entry": ENTRY + "[x]\n# \u202e\n"}
    recovered.show(plan(as_json=True), told, "home", ENTRY)
    shown = capsys.readouterr().out
    assert shown.rstrip("\n").isascii()
    assert json.loads(shown)["host"] == told["host"]


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ({"name": "../../etc"}, "can't be the name of an entry"),
        ({"entry": "uuid = 1"}, "uuid: found 1"),
        ({"entry": ENTRY + "[hooks]\nrun = 'sh'\n"}, "no such key is known"),
        ({"entry": ENTRY.replace('"/etc"', '"/../etc"')}, "include"),
        ({"entry": ""}, "uuid: it is missing"),
    ],
)
def test_what_is_no_entry_is_refused(told: dict[str, str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(sentence)) as refused:
        recovered.chosen(plan(), {**TOLD, **told})
    assert "--include" in refused.value.hint


def test_the_owner_must_exist() -> None:
    told = {**TOLD, "entry": ENTRY.replace('"root"', '"nobody-of-that-name"')}
    with pytest.raises(Refused, match="belongs to nobody-of-that-name, and there is no such user"):
        recovered.chosen(plan(), told)
    _name, settings = recovered.chosen(plan(owner="root"), told)
    assert config.parse(settings, "").owner == "root"


def elsewhere(text: str, container: str | None = "backup.luks") -> config.Entry:
    entry = config.parse(text, "")
    return attrs.evolve(
        entry,
        uuid=config.Uuid("4D3C-2B1A"),
        container=None if container is None else config.FileName(container),
    )


def test_an_entry_moves_with_its_comments() -> None:
    after = elsewhere(ENTRY)
    assert moved(ENTRY, after) == ENTRY.replace('uuid = "1A2B-3C4D" # blue', 'uuid = "4D3C-2B1A"')


@pytest.mark.parametrize("container", [None, "other.luks", 'a "b"'])
@pytest.mark.parametrize(
    "text",
    [
        ENTRY,
        'owner = "root"\nuuid = "1A2B-3C4D"\nbackup = {include = ["/srv"]}\n',
        'uuid = "1A2B-3C4D"\nbackup.include = ["/srv"]\n',
        'uuid = """1A2B-3C4D"""\n\n[backup]\ninclude = ["/srv"]\n',
        '[backup]\ninclude = ["/srv"]\n[keep]\nlast = 1\n'.join(['"uuid" = "1A2B-3C4D"\n', ""]),
    ],
)
def test_an_entry_moves_however_it_is_written(text: str, container: str | None) -> None:
    after = elsewhere(text, container)
    assert config.parse(moved(text, after), "") == after


@given(st.text(alphabet='uid=conta"\n[]# -1A2B3C4D.kers', max_size=60))
def test_an_entry_moves_whatever_is_in_its_comments(text: str) -> None:
    comments = "".join(f"# {line}\n" for line in text.splitlines())
    entry = comments + ENTRY
    after = elsewhere(entry)
    assert config.parse(moved(entry, after), "") == after
