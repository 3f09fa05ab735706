"""Predicted against measured peaks: real trainings on the CPU under ZeRO 0 to 3."""

from __future__ import annotations

import pytest

from benchmarks.planned_memory import compared

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("ranks", [2])
def test_the_quickstart_s_peak_is_within_15_percent(ranks):
    lines = list(compared("quickstart", ranks))
    assert [line["strategy"] for line in lines] == ["zero0", "zero1", "zero2", "zero3"]
    off = {line["strategy"]: line["predicted_over_measured"] for line in lines}
    assert all(0.85 < ratio < 1.15 for ratio in off.values()), lines
