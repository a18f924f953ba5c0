"""A disk that hangs is told from one that is slow."""

from cryptbackd.daemon.answering import Counters, Watch, read_counters


def looks(watch: Watch, *seen: Counters | None, doomed: bool = False) -> list[bool]:
    return [
        watch.look(5.0 * number, counters, doomed=doomed) for number, counters in enumerate(seen)
    ]


def test_a_disk_that_works_answers() -> None:
    assert looks(Watch(), *(Counters(8, n) for n in range(6))) == [True] * 6


def test_an_idle_disk_answers() -> None:
    assert looks(Watch(), *[Counters(0, 7)] * 6) == [True] * 6


def test_requests_that_do_not_end_are_no_answer_after_ten_seconds() -> None:
    assert looks(Watch(), *[Counters(1, 7)] * 4) == [True, True, False, False]


def test_it_answers_again() -> None:
    seen = [Counters(1, 7)] * 3 + [Counters(1, 8), Counters(1, 8), Counters(0, 9)]
    assert looks(Watch(), *seen) == [True, True, False, True, True, True]


def test_a_killed_worker_that_stays_hangs() -> None:
    assert looks(Watch(), *[None] * 4, doomed=True)[-1] is False
    assert looks(Watch(), *[None] * 4) == [True] * 4


def test_a_disk_that_is_gone_has_no_counters() -> None:
    assert read_counters("/dev/no-such-disk") is None
