"""The line of ``systemctl status``, and what of a drive is told to whom."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptbackd.daemon import values
from cryptbackd.daemon.history import Run
from cryptbackd.daemon.status import DriveView, State, line
from cryptbackd.model import JobKind, Outcome, Phase, Progress

NOW = 1_000_000.0


def running(phase: Phase, progress: Progress | None = None) -> DriveView:
    return DriveView("home", State.RUNNING, phase=phase, progress=progress)


@pytest.mark.parametrize(
    ("view", "shown"),
    [
        (
            running(
                Phase.SYNCING, Progress(int(0.41 * 2.1 * 2**30) + 1, int(2.1 * 2**30), 63e6, 42.4)
            ),
            "home: syncing 41 % of 2.1 GiB, 63 MB/s, 0:42 left",
        ),
        (running(Phase.SYNCING, Progress(5, 0)), "home: syncing"),
        (running(Phase.SYNCING, Progress(0, 1024)), "home: syncing 0 % of 1.0 KiB"),
        (running(Phase.POWERING_OFF), "home: powering off"),
        (
            DriveView("home", State.NOT_ANSWERING, phase=Phase.SYNCING),
            "home: the drive does not answer",
        ),
        (DriveView("home", State.QUEUED), "home: waiting for its turn"),
    ],
)
def test_what_goes_on(view: DriveView, shown: str) -> None:
    assert line([view], NOW) == shown


def test_nothing_goes_on() -> None:
    home = DriveView("home", State.ABSENT, last_success=NOW - 7300)
    work = DriveView("work", State.IDLE, last_success=NOW - 90_000)
    bad = DriveView("bad", State.BAD)
    assert line([home, work], NOW) == "idle, 2 drives known, last backup of home 2 h ago"
    assert line([home, bad], NOW) == "idle, 1 drive known, last backup of home 2 h ago, 1 bad entry"
    assert line([bad, bad], NOW) == "idle, 0 drives known, 2 bad entries"
    assert line([], NOW) == "idle, 0 drives known"


def test_several_at_once() -> None:
    views = [running(Phase.LOCKING), DriveView("work", State.ABSENT), DriveView("x", State.QUEUED)]
    assert line(views, NOW) == "home: locking; x: waiting for its turn"


@given(
    st.lists(
        st.builds(
            DriveView,
            name=st.from_regex(r"[a-z0-9][a-z0-9_-]{0,30}", fullmatch=True),
            state=st.sampled_from(State),
            phase=st.none() | st.sampled_from(Phase),
            progress=st.none()
            | st.builds(
                Progress,
                st.integers(0, 2**63),
                st.integers(0, 2**63),
                st.floats(0, 1e12),
                st.floats(-1, 1e9),
            ),
            last_sentence=st.text(),
            problem=st.text(),
            last_success=st.floats(0, 2e9),
        ),
        max_size=4,
    )
)
def test_the_line_is_always_one_line_of_ascii(views: list[DriveView]) -> None:
    shown = line(views, NOW)
    assert shown.isascii()
    assert shown.isprintable()
    assert shown


@pytest.mark.parametrize(
    ("sentence", "others"),
    [
        (
            'An operation failed unexpectedly: Input/output error ("/run/home/a/secret").',
            "An operation failed unexpectedly: Input/output error …",
        ),
        (
            "Files could not be removed: /usr/bin/rm failed: rm: cannot remove '/a/secret': why",
            "Files could not be removed: /usr/bin/rm failed: rm: cannot remove …",
        ),
        ("/dev/sdb1 is not the drive any more.", "/dev/sdb1 is not the drive any more."),
    ],
)
def test_what_a_sentence_names_is_for_whom_the_drive_is_for(sentence: str, others: str) -> None:
    run = Run("1", "home", JobKind.BACKUP, 1.0, 2.0, Outcome.FAILED, sentence=sentence)
    view = DriveView("home", State.IDLE, last_sentence=sentence)
    for texts, told in ((True, sentence), (False, others)):
        assert values.run_values(run, texts=texts)["sentence"].value == told
        assert values.drive_values(view, texts=texts)["last_sentence"].value == told
