"""Arguments of calls on the bus: what stands between them and what is done, method by method.

The whole way, by the real bus to the installed service, is in ``tests/vm/test_bus_fuzz.py``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from cryptbackd import config, moment, sizes
from cryptbackd.daemon import init_options, keyslots, verification
from cryptbackd.errors import ConfigError, Refused
from tests.fuzz import mutate, properties
from tests.fuzz.fuzzer import Fuzzer

_INIT = {
    "name": "home", "container": "backup.luks", "size": 1 << 30, "filesystem": "btrfs",
    "include": ["/home/me"], "exclude": ["*.iso"], "owner": "me", "run": True, "adopt": False,
    "detached": True, "settings": 'uuid = "x"\n', "fingerprint": "ab" * 32,
}  # fmt: skip
_PASSPHRASE = {"action": "enroll-tpm2", "what": "tpm2", "pin": True, "pbkdf_memory": 64}
_VERIFY = {"full": False, "sample": 0.5, "at": "yesterday"}
_VERSIONS = [
    moment.Made.named(name, number)
    for number, name in enumerate(
        ("2026-11-20T10:00:00Z", "2026-11-24T19:03:11Z", "odd\n\x1b[0m", "\udcff"), 1
    )
]
_WHEN = (
    "yesterday", "2 days ago", "last week", "2026-11-20 18:00", "2026-11", "monday", "now",
    "oldest", "three months ago", "2026-11-24t19", "day before yesterday at 10:00 utc",
    "9 years ago", "0000-00-00", "9999-12-31", "9999-12", "1 minute ago",
)  # fmt: skip
_SIZES = ("8G", "+512M", "max", "1.5T", "200 GiB", "+1", "0", "9" * 400, "1" + "0" * 310 + "E")


def _init(options: dict[str, Any]) -> str:
    init_options.check(options)
    purposes = init_options.purposes({**init_options.INIT_OPTIONS, **options})
    assert all(isinstance(purpose, str) for purpose in purposes)
    return "taken"


def _passphrase(options: dict[str, Any]) -> str:
    assert set(keyslots.purposes(options)) <= {"current", "new", "recovery-key", "pin"}
    return "taken"


def _verify(options: dict[str, Any]) -> str:
    verification.check(options)
    assert 0 < options.get("sample", 1.0) <= 1
    return "taken"


def _resize(text: str) -> str:
    try:
        wanted = sizes.parse(text)
    except ValueError:
        return "refused"
    assert type(wanted.size) is int
    assert wanted.how is sizes.How.MAX or wanted.size >= sizes.MIB
    try:
        sizes.want_possible(None, wanted)
        sizes.length(wanted, current=1 << 30, taken=1 << 30, free=1 << 30, total=4 << 30, most=None)
    except Refused as error:
        properties.told(error)
    return "taken"


def _at(text: str) -> str:
    chosen = moment.choose(text, _VERSIONS, time.mktime((2026, 11, 25, 12, 0, 0, 0, 0, 0)))
    assert chosen in _VERSIONS
    properties.harmless(moment.spoken(chosen))
    return "taken"


def _name(text: str) -> str:
    properties.inside(config.check_name(text))
    assert text.isascii()
    assert len(text) <= 31
    assert "/" not in text
    return "taken"


WAYS: dict[str, Callable[[Any], str]] = {
    "init": _init, "passphrase": _passphrase, "verify": _verify, "resize": _resize, "at": _at,
    "name": _name,
}  # fmt: skip


def _text(samples: tuple[str, ...]) -> st.SearchStrategy[str]:
    raws = tuple(sample.encode() for sample in samples)
    return st.one_of(
        mutate.changed(raws).map(lambda raw: raw.decode("utf-8", "replace")),
        st.sampled_from(mutate.NASTY_TEXT),
        st.text(max_size=30),
        st.lists(st.sampled_from(samples), max_size=3).map(" ".join),
        st.sampled_from(samples).map(lambda text: text * 20_000),
    )


_CALLS = st.one_of(
    st.tuples(st.just("init"), mutate.trees([_INIT])),
    st.tuples(st.just("passphrase"), mutate.trees([_PASSPHRASE])),
    st.tuples(st.just("verify"), mutate.trees([_VERIFY])),
    st.tuples(st.just("resize"), _text(_SIZES)),
    st.tuples(st.just("at"), _text(_WHEN)),
    st.tuples(st.just("name"), _text(("home", "a" * 31, "a-b_c", "../etc"))),
)


def check(raw: bytes) -> str:
    """It is taken, or refused in words that harm nobody."""
    way, value = json.loads(raw)
    # The bus itself sees to it that options are a dictionary with text for keys.
    if not isinstance(value, dict if way in ("init", "passphrase", "verify") else str):
        return "no call"

    def asked() -> str:
        with properties.refusing(Refused, ConfigError):
            return f"{way} {WAYS[way](value)}"

    return properties.outcome(asked)


FUZZER = Fuzzer(
    "bus-arguments",
    "arguments of calls on the bus: options of an init, of changes of passphrases and of a"
    " verification, names, sizes, times",
    _CALLS.map(json.dumps).map(str.encode),
    check,
)
