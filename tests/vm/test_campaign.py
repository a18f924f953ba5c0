"""A case of the campaign as it is run a hundred times there, that it keeps working."""

from __future__ import annotations

import pytest

from tests.campaign.__main__ import run
from tests.campaign.case import Stage


@pytest.mark.timeout(600)
def test_whenever_the_power_fails_nothing_is_lost() -> None:
    with Stage() as stage:
        for kind in ("pulled", "power-cut"):
            verdict = run(stage, kind, 1)
            assert verdict.good, verdict
