"""The formulas against really allocated states: tests/training/test_strategy_runs.py."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.plan.state_memory import state_memory


@given(st.integers(1, 10**10), st.integers(1, 1024), st.sampled_from(["bf16", "fp32"]))
def test_each_stage_saves_memory_and_one_rank_saves_none(parameters, ranks, sums):
    by_stage = [state_memory(parameters, stage, ranks, sums).gpu for stage in range(4)]
    assert by_stage == sorted(by_stage, reverse=True)
    assert by_stage[0] == (18 if sums == "fp32" else 16) * parameters
    # Stage 3 splits everything: all ranks together hold it once.
    assert by_stage[3] * ranks == pytest.approx(by_stage[0])
    assert len({state_memory(parameters, stage, 1, sums).gpu for stage in range(4)}) == 1


def test_the_numbers_of_the_method_s_facts():
    assert state_memory(2_800_000_000, 1, 8).gpu == pytest.approx(15.4e9)
    assert state_memory(2_800_000_000, 0, 8).gpu == pytest.approx(44.8e9)
