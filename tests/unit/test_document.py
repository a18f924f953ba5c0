"""An entry that is written is read back the same."""

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptbackd import config
from cryptbackd.config import After, Backup, Entry, Keep, Verify, When
from cryptbackd.document import document
from cryptbackd.errors import ConfigError

words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
paths = words.map(lambda text: "/" + "".join(c for c in text if c.isprintable() and c != "."))
counts = st.integers(0, 1000)
durations = st.none() | st.integers(60, 10**8)


def is_pattern(text: str) -> bool:
    """Whether a pattern may be like that."""
    try:
        config.parse(f'uuid = "1A2B-3C4D"\n[backup]\ninclude = ["/"]\nexclude = [{toml(text)}]', "")
    except ConfigError:
        return False
    return True


def toml(text: str) -> str:
    return '"' + "".join(f"\\U{ord(c):08x}" for c in text) + '"'


entries = st.builds(
    Entry,
    uuid=st.sampled_from(["1A2B-3C4D", "3fa705ab-929c-4d78-9a70-de7be22c1925"]),
    container=st.sampled_from([None, "backup.luks", 'a "b"/ü c']),
    owner=st.sampled_from([None, "me"]),
    backup=st.builds(
        Backup,
        include=st.lists(paths, min_size=1, max_size=4).map(tuple),
        exclude=st.lists(words.filter(is_pattern), max_size=4).map(tuple),
        cross_filesystems=st.booleans(),
    ),
    keep=st.builds(Keep, last=counts, daily=counts, yearly=counts),
    when=st.builds(When, at_most=durations, remind=durations),
    verify=st.builds(
        Verify, sample=st.none() | st.integers(0, 100).map(lambda n: n / 100), full_every=counts
    ),
    after=st.builds(After, power_off=st.booleans()),
)


@given(entries)
def test_read_back_it_is_the_same(entry: Entry) -> None:
    again = config.parse(document(entry), "entry")
    sample = entry.verify.sample
    assert again.verify.sample == (sample if sample is None else pytest.approx(sample))
    assert attrs.evolve(again, verify=entry.verify) == entry


def test_as_a_person_reads_it() -> None:
    entry = config.parse(
        'uuid = "1A2B-3C4D"\ncontainer = "backup.luks"\nowner = "me"\n'
        '[backup]\ninclude = ["/home/me"]\nexclude = ["*.iso"]\n[keep]\ndaily = 7\n'
        '[when]\nremind = "14d"\n[verify]\nsample = "5%"\n[after]\npower_off = true\n',
        "entry",
    )
    assert document(entry) == (
        "# Written by `cryptback init`; see cryptback-drives(5).\n"
        'uuid = "1A2B-3C4D"\ncontainer = "backup.luks"\nowner = "me"\n\n'
        '[backup]\ninclude = ["/home/me"]\nexclude = ["*.iso"]\n\n[keep]\ndaily = 7\n\n'
        '[when]\nremind = "14d"\n\n[verify]\nsample = "5%"\n\n'
        "[after]\npower_off = true\n"
    )
