"""Questions about the catalogue, by anybody, and what drives have put into it."""

from __future__ import annotations

import ast
import fnmatch
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from cryptbackd import paths, query
from cryptbackd.errors import ManifestDamaged, Refused
from cryptbackd.search import Pattern
from tests.fuzz import mutate, properties
from tests.fuzz.fuzzer import Fuzzer
from tests.fuzz.kinds import manifests
from tests.fuzz.kinds.version_records import SAMPLES

SECRET = b"canary"
PATTERNS = (
    "fstab", "*.txt", "home/*", "/home/me/a b", "[a-c]*", "[!x]", "[", "[]]", "[z-a]", "a?b", "**",
    "*a*b*c*d*e*f*g*h*i*j*k*", "/", "//", "", "\\", "[[:alpha:]]", "[a&&b]", "[--]", "[^a]", "É",
    "\u0130", "\u017f", "\u212a", "(a+)+$", "[" * 500, "?" * 300, "*/" * 300, "{a,b}", "+",
)  # fmt: skip
WHENS = ("oldest", "now", "2026-11-24T19:03:11Z", "v", "yesterday", "\x1b[0m", "9" * 5000, "")


def _pattern(draw: st.DrawFn) -> str:
    raws = tuple(text.encode() for text in PATTERNS)
    way = st.one_of(
        st.sampled_from(PATTERNS),
        mutate.changed(raws, 2).map(lambda raw: raw.decode("utf-8", "replace")),
        st.text(st.sampled_from("*?[]!-^a/\\"), max_size=12),
    )
    return draw(way).replace("\0", "")[:4096]


@st.composite
def inputs(draw: st.DrawFn) -> bytes:
    """A literal: versions (record, manifest) and a question."""
    what = draw(st.sampled_from(("find", "find", "versions", "compare")))
    question: dict[str, Any] = {"what": what, "uid": draw(st.sampled_from((0, 1000, 54321)))}
    if what == "find":
        question.update(pattern=_pattern(draw), limit=draw(st.sampled_from((1, 100))))
    elif what == "versions":
        question.update(texts=draw(st.booleans()))
    else:
        question.update(between=[draw(st.sampled_from(WHENS)) for _ in range(2)])
    versions = draw(
        st.lists(
            st.tuples(
                st.sampled_from(("2026-11-24T19:03:11Z", "2026-11-25T10:00:00Z", "v", "\x1b[0m")),
                mutate.json_bytes(SAMPLES[:2], 1),
                manifests.inputs() if draw(st.integers(0, 3)) == 0 else st.none(),
                manifests.records(),
            ),
            max_size=3,
            unique_by=lambda version: version[0],
        )
    )
    return repr({"question": question, "versions": versions}).encode()


_HIDDEN = (
    b"root//d 700 0 0 2 4096 1764000000.0 - -  -",
    b"root/" + SECRET + b"//f 644 0 0 1 5 1764000000.0 - -  -",
    b"srv//d 755 0 0 2 4096 1764000000.0 - -  -",
    b"srv/" + SECRET + b"//f 600 0 0 1 5 1764000000.0 - -  -",
)
"""What nobody but root could have read."""


def _made(folder: Path, versions: list[Any]) -> None:
    for name, record, odd, records in versions:
        (folder / f"{name}.json").write_bytes(record)
        if odd is not None:
            raw = manifests.built(ast.literal_eval(odd.decode()))
        else:
            # Nothing else may tell of these folders: the last to do so would have the say.
            kept = [each for each in records if not each.startswith((b"root", b"srv"))]
            blocks = manifests._sorted([*kept, *_HIDDEN])
            raw = manifests.member(blocks, {}) + manifests.last(len(blocks))
        (folder / f"{name}.manifest").write_bytes(raw)


def _fits(text: str) -> None:
    """A pattern without anything special is a piece of the name."""
    pattern = Pattern(text)
    for path in ("/home/me/a b", "/etc/fstab", "/x/É", "/home/\udcff"):
        fits = pattern.fits(path)
        if fits and pattern.literal.isascii():
            assert pattern.literal in path.lower(), "a search would pass it over"
        if text and "/" not in text and not re.search(r"[*?[]", text) and text.isascii():
            assert fits == (text.lower() in path.rpartition("/")[2].lower())
        if text.startswith("/") and text.isascii() and not text.endswith("/") and "[" in text:
            assert fits == bool(
                re.compile(fnmatch.translate(text), re.IGNORECASE).match(path)
            ) or not re.search(r"\*|\?|\[[^]]*\]", text)


def check(raw: bytes) -> str:
    """It is answered in lines of JSON, or refused; and nobody is told of what is not theirs."""
    case = ast.literal_eval(raw.decode())
    question = case["question"]
    before = paths.CATALOGUE
    if question["what"] == "find":
        if not question["pattern"]:
            return "no question"
        _fits(question["pattern"])
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        place = Path(folder, "home")
        place.mkdir()
        _made(place, case["versions"])
        paths.CATALOGUE = Path(folder)
        question["drives"] = [{"name": "home", "up_to": 9}]

        def answered() -> str:
            with properties.refusing(Refused, ManifestDamaged):
                lines = [json.dumps(line) for line in query.answer(question)]
            for line in lines:
                assert "\n" not in line
                values = json.loads(line)
                if question["uid"] != 0 and "path" in values:
                    hidden = os.fsdecode(SECRET)
                    assert hidden not in values["path"], "it tells of what is hidden"
            return str(question["what"])

        try:
            return properties.outcome(answered)
        finally:
            paths.CATALOGUE = before


FUZZER = Fuzzer(
    "questions",
    "questions about the catalogue by any user, over what drives have put into it: `query`,"
    " `search`, `seeing`, `catalogue`",
    inputs(),
    check,
)
