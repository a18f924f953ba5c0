"""Words for people."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptbackd import text


@given(st.text())
def test_printable_holds_nothing_that_a_terminal_obeys(foreign: str) -> None:
    assert text.printable(foreign).isprintable()


@given(st.binary(), st.integers(1, 80))
def test_printable_takes_any_bytes_and_keeps_the_limit(foreign: bytes, limit: int) -> None:
    out = text.printable(foreign, limit)
    assert out.isprintable()
    assert len(out) <= limit


def test_printable_shows_what_it_escapes() -> None:
    assert text.printable(b"a\xff\x1b[31mb") == r"a\xff\x1b[31mb"
    assert text.printable("Überblick") == "Überblick"


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1.2 * 2**20, "1.2 MiB"),
        (2.1 * 2**30, "2.1 GiB"),
        (512 * 2**30, "512 GiB"),
        (5000 * 2**60, "5000 EiB"),
    ],
)
def test_sizes(count: float, shown: str) -> None:
    assert text.size(count) == shown


@given(
    st.integers(0, 2**32), st.sampled_from(["", "K", "M", "G"]), st.sampled_from(["", "B", "iB"])
)
def test_sizes_are_read_in_powers_of_1024(number: int, unit: str, ending: str) -> None:
    assert text.parse_size(f"{number}{unit}{ending}") == number * 1024 ** " KMG".index(unit or " ")


@pytest.mark.parametrize("wrong", ["", "G", "8 apples", "-1", "8GG", "1e9", "8E", "9" * 400, "٣"])
def test_what_is_no_size(wrong: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        text.parse_size(wrong)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.4, "0:00"), (42, "0:42"), (725, "12:05"), (11_407, "3:10:07"), (-1, "0:00")],
)
def test_clock(seconds: float, shown: str) -> None:
    assert text.clock(seconds) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "just now"),
        (59, "just now"),
        (300, "5 min ago"),
        (7300, "2 h ago"),
        (200_000, "2 d ago"),
    ],
)
def test_ago(seconds: float, shown: str) -> None:
    assert text.ago(seconds) == shown


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("90s", 90), ("30min", 1800), ("1h", 3600), ("14d", 1_209_600), ("2w", 1_209_600)],
)
def test_durations(written: str, seconds: int) -> None:
    assert text.parse_duration(written) == seconds


@pytest.mark.parametrize("wrong", ["", "1", "h", "1.5h", "1 fortnight", "-1h"])
def test_what_is_no_duration(wrong: str) -> None:
    with pytest.raises(ValueError, match="is not a time"):
        text.parse_duration(wrong)


def test_counts() -> None:
    assert text.count(1, "file") == "1 file"
    assert text.count(12_345, "file") == "12,345 files"
