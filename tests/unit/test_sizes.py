"""How long a container is to be."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cryptbackd import sizes
from cryptbackd.errors import Refused
from cryptbackd.sizes import MIB, How, Wanted

GIB = 1 << 30
BYTES = st.integers(0, 1 << 45)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("8G", Wanted(How.TO, 8 * GIB)),
        (" 512 MiB ", Wanted(How.TO, 512 * MIB)),
        ("+2G", Wanted(How.BY, 2 * GIB)),
        ("+1.5T", Wanted(How.BY, 3 << 39)),
        ("max", Wanted(How.MAX)),
    ],
)
def test_what_people_ask_for(text: str, wanted: Wanted) -> None:
    assert sizes.parse(text) == wanted


@pytest.mark.parametrize("text", ["", "+", "-2G", "++2G", "+max", "MAX", "much", "1000", "+0", "0"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a size|less than 1M"):
        sizes.parse(text)


@given(BYTES)
def test_a_sensible_size_leaves_room(free: int) -> None:
    size = sizes.sensible(free)
    assert size % MIB == 0
    assert 0 <= size <= free
    if free > GIB:
        assert free - size >= max(free // 10, 64 * MIB)
        assert size >= free * 8 // 10


def test_a_partition_is_as_long_as_it_is() -> None:
    sizes.want_possible(None, Wanted(How.MAX))
    sizes.want_possible("backup.luks", Wanted(How.TO, GIB))
    for how in (How.TO, How.BY):
        with pytest.raises(Refused, match="the partition itself is encrypted"):
            sizes.want_possible(None, Wanted(how, GIB))


def length(wanted: Wanted, current: int, free: int, most: int | None = None, holes: int = 0) -> int:
    return sizes.length(
        wanted,
        current=current,
        taken=current - holes,
        free=free,
        total=current + free,
        most=most,
    )


@given(BYTES, BYTES, BYTES, st.sampled_from(list(How)), st.none() | BYTES)
def test_whatever_is_asked_for_fits(
    size: int, current: int, free: int, how: How, most: int | None
) -> None:
    assume(most is None or current <= most)
    wanted = Wanted(how, size)
    try:
        target = length(wanted, current, free, most)
    except Refused:
        assert how is not How.MAX
        return
    assert target == current or target % MIB == 0
    assert target <= max(current, current + free - sizes.ROOM_LEFT)
    assert most is None or target <= most
    if how is not How.TO:
        assert target >= current
    if how is How.TO:
        assert abs(target - size) < MIB


def test_max_leaves_a_reserve() -> None:
    assert length(Wanted(How.MAX), GIB, 0) == GIB
    assert length(Wanted(How.MAX), 10 * GIB, 90 * GIB) == 99 * GIB
    assert length(Wanted(How.MAX), 0, 1000 * GIB) == 999 * GIB
    assert length(Wanted(How.MAX), 256 * MIB, 256 * MIB) == (512 - 16) * MIB
    assert length(Wanted(How.MAX), GIB, 90 * GIB, 4 * GIB - 1) == 4 * GIB - MIB


def test_what_has_holes_needs_room_for_them() -> None:
    assert length(Wanted(How.TO, 3 * GIB), 2 * GIB, 2 * GIB) == 3 * GIB
    with pytest.raises(Refused, match=r"has 2.0 GiB now, and 2.0 GiB are free"):
        length(Wanted(How.TO, 3 * GIB), 2 * GIB, 2 * GIB, holes=2 * GIB)


def test_what_its_files_can_have_is_a_limit() -> None:
    with pytest.raises(Refused, match=r"takes too many files: .*4.0 GiB is the most"):
        length(Wanted(How.BY, 3 * GIB), 2 * GIB, 9 * GIB, 4 * GIB)
    with pytest.raises(Refused, match=r"does not fit: it has 2.0 GiB now"):
        length(Wanted(How.BY, 9 * GIB), 2 * GIB, 8 * GIB)


@given(BYTES, BYTES, BYTES)
def test_what_is_in_use_stays(header: int, smallest: int, used: int) -> None:
    least = sizes.least(header, smallest, used)
    assert least % MIB == 0
    assert least >= header + smallest
    assert least >= header + used + 32 * MIB
