from __future__ import annotations

import itertools
import math

from hypothesis import given
from hypothesis import strategies as st

from pipeline.recipe import OptimizerSection, Phase
from pipeline.recipe_reader import read_recipe
from pipeline.training.phases import learning_rate, phase_at, ponder_fraction, segments

phases = st.lists(
    st.builds(
        Phase,
        name=st.just("p"),
        steps=st.integers(1, 20),
        train=st.sampled_from(["all", "gates"]),
        halting=st.booleans(),
        ponder_fraction=st.floats(0, 1),
        ramp_start_step=st.integers(0, 10),
        ramp_steps=st.integers(0, 10),
    ),
    min_size=1,
    max_size=6,
)


@given(phases)
def test_segments_cover_every_step_once_and_train_one_set_each(given_phases):
    found = segments(given_phases)
    assert found[0].first_step == 0
    assert found[-1].end_step == sum(phase.steps for phase in given_phases)
    for segment, following in itertools.pairwise(found):
        assert segment.end_step == following.first_step
        assert segment.trained != following.trained
    for segment in found:
        for step in range(segment.first_step, segment.end_step):
            assert phase_at(given_phases, step)[0].train == segment.trained


@given(phases)
def test_phase_steps_count_from_zero_in_each_phase(given_phases):
    expected = [(i, own) for i, phase in enumerate(given_phases) for own in range(phase.steps)]
    for step, (index, own) in enumerate(expected):
        phase, phase_step = phase_at(given_phases, step)
        assert (phase, phase_step) == (given_phases[index], own)


@given(phases, st.integers(0, 40))
def test_the_ponder_fraction_rises_from_zero_to_its_maximum(given_phases, phase_step):
    phase = given_phases[0]
    fraction = ponder_fraction(phase, phase_step)
    assert 0 <= fraction <= phase.ponder_fraction
    assert fraction <= ponder_fraction(phase, phase_step + 1)
    if phase_step < phase.ramp_start_step:
        assert fraction == 0
    if phase_step >= phase.ramp_start_step + phase.ramp_steps:
        assert fraction == phase.ponder_fraction


def test_the_paper_numbers_from_scratch():
    recipe = read_recipe("pythia-70m-scratch").train
    assert recipe.steps == 50_000
    at = {step: ponder_fraction(*phase_at(recipe.phases, step)) for step in (19_999, 20_000, 22_000, 24_000, 49_999)}
    assert at == {19_999: 0.0, 20_000: 0.0, 22_000: 0.05, 24_000: 0.1, 49_999: 0.1}
    assert [phase_at(recipe.phases, step)[0].halting for step in (19_999, 20_000)] == [False, True]


def test_warm_up_peak_and_floor():
    section = OptimizerSection(peak_lr=1e-3, warmup_share=0.02, floor_share=0.1)
    rates = [learning_rate(section, step, 1000) for step in range(1000)]
    assert rates[0] == 1e-3 / 20
    assert math.isclose(max(rates), 1e-3)
    assert rates.index(max(rates)) in (19, 20)
    assert math.isclose(rates[-1], 1e-4)
    assert all(a >= b for a, b in itertools.pairwise(rates[20:]))


@given(st.integers(1, 50), st.floats(0, 1))
def test_rates_are_positive_and_never_above_the_peak(total, warmup):
    section = OptimizerSection(peak_lr=1.0, warmup_share=warmup)
    assert all(0 < learning_rate(section, step, total) <= 1.0 for step in range(total))
