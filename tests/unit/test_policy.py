"""One insertion is one run."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptbackd.daemon.policy import MAX_INTERRUPTIONS, Past, Verdict, automatic, candidates
from cryptbackd.model import Device, Outcome

INTERRUPTED = Past(Outcome.FAILED, interrupted=True)
PASTS = st.lists(st.builds(Past, st.none() | st.sampled_from(Outcome), st.booleans()), max_size=6)


def test_a_fresh_insertion_runs() -> None:
    assert automatic([]) is Verdict.RUN


@pytest.mark.parametrize("outcome", list(Outcome))
def test_one_insertion_is_one_run_however_it_ended(outcome: Outcome) -> None:
    assert automatic([Past(outcome)]) is Verdict.FINISHED


def test_an_interrupted_run_is_taken_up_a_few_times() -> None:
    for times in range(MAX_INTERRUPTIONS):
        assert automatic([INTERRUPTED] * times) is Verdict.RUN
    assert automatic([INTERRUPTED] * MAX_INTERRUPTIONS) is Verdict.GAVE_UP


def test_interrupted_and_then_done_is_done() -> None:
    assert automatic([INTERRUPTED, Past(Outcome.DONE)]) is Verdict.FINISHED


def test_what_goes_on_is_not_begun_again() -> None:
    assert automatic([Past(None)]) is Verdict.GOING_ON


def test_an_ejected_disk_is_left_alone() -> None:
    assert automatic([], ejected=True) is Verdict.FINISHED
    assert automatic([INTERRUPTED], ejected=True) is Verdict.FINISHED


def test_two_devices_with_one_uuid_are_both_refused() -> None:
    assert automatic([], candidates=2) is Verdict.AMBIGUOUS


def test_not_again_too_soon() -> None:
    assert automatic([], since_success=100, at_most=3600) is Verdict.TOO_SOON
    assert automatic([], since_success=3600, at_most=3600) is Verdict.RUN
    assert automatic([], since_success=None, at_most=3600) is Verdict.RUN
    assert automatic([], since_success=5, at_most=None) is Verdict.RUN


def test_a_clock_that_was_set_back_does_not_stop_backups() -> None:
    assert automatic([], since_success=-5000, at_most=3600) is Verdict.RUN


@given(PASTS, st.booleans(), st.integers(1, 3))
def test_it_runs_only_after_nothing_but_interruptions(
    past: list[Past], ejected: bool, devices: int
) -> None:
    verdict = automatic(past, ejected=ejected, candidates=devices)
    wanted = (
        all(run.interrupted for run in past)
        and len(past) < MAX_INTERRUPTIONS
        and not ejected
        and devices == 1
    )
    assert (verdict is Verdict.RUN) == wanted


def test_candidates_are_those_with_the_uuid() -> None:
    one, two, other = (
        Device(f"/dev/sd{letter}1", 8, 1, f"/dev/sd{letter}", 3, uuid)
        for letter, uuid in (("b", "x"), ("a", "x"), ("c", "y"))
    )
    assert candidates([one, two, other], "x") == [two, one]
    assert candidates([one, two, other], "z") == []
