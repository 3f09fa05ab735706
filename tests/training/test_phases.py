from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.recipe_reader import parse_recipe, read_recipe
from pipeline.recipe_train import Constant, Cosine, Linear, OptimizerSection, Phase, TrainSection, WarmupStableDecay
from pipeline.training.phases import (
    describe_phases,
    learning_rates,
    phase_at,
    ponder_fraction,
    schedule_share,
    segments,
)

phases = st.lists(
    st.builds(
        Phase,
        name=st.just("p"),
        steps=st.integers(1, 20),
        train=st.sampled_from(["all", "gates", ["lm_head.*"], ["lm_head.*", "gates.*"], ["gates.*", "lm_head.*"]]),
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
            assert phase_at(given_phases, step)[0].trained == segment.trained


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


shares = st.floats(0, 1)
schedules = st.one_of(
    st.builds(Cosine, warmup_share=shares, floor_share=shares),
    st.builds(Linear, warmup_steps=st.integers(0, 100), floor_share=shares),
    st.builds(WarmupStableDecay, warmup_share=shares, decay_share=shares, floor_share=shares),
    st.builds(Constant, warmup_steps=st.integers(0, 100)),
)


def fitting(schedule, total: int) -> tuple[int, int]:
    """Steps of warm-up and of decay; other schedules are refused before a run starts."""
    warmup, decay = schedule.warmup(total), schedule.decay(total)
    assume(warmup + decay <= total)
    return warmup, decay


@given(schedules, st.integers(2, 300))
def test_a_schedule_rises_to_its_peak_stays_and_falls_to_its_floor(schedule, total):
    warmup, decay = fitting(schedule, total)
    rates = [schedule_share(schedule, step, total) for step in range(total)]
    assert all(0 <= rate <= 1 for rate in rates)
    if warmup:
        assert (rates[0], rates[warmup - 1]) == (1 / warmup, 1.0)
    assert all(rate == 1.0 for rate in rates[max(0, warmup - 1) : total - decay])
    assert all(a <= b for a, b in itertools.pairwise(rates[:warmup]))
    assert all(a >= b for a, b in itertools.pairwise(rates[warmup:]))
    if decay:
        assert math.isclose(rates[-1], schedule.floor_share, abs_tol=1e-12)
        assert min(rates[warmup:]) >= schedule.floor_share - 1e-12


@given(schedules, st.integers(2, 300))
def test_a_schedule_does_not_jump(schedule, total):
    warmup, decay = fitting(schedule, total)
    rates = [schedule_share(schedule, step, total) for step in range(total)]
    for step, (before, after) in enumerate(itertools.pairwise(rates), start=1):
        if step < warmup:
            steepest = 1 / warmup
        elif step < total - decay:
            steepest = 0.0
        else:
            # A cosine is pi/2 times as steep in its middle as a straight line; a decay of one step is a jump.
            steepest = (1 - schedule.floor_share) * math.pi / 2 / max(1, decay - 1)
        assert abs(after - before) <= steepest + 1e-12


def test_the_shapes_differ_between_peak_and_floor():
    half = 50
    assert math.isclose(schedule_share(Linear(warmup_steps=0, floor_share=0.0), half, 101), 0.5)
    assert math.isclose(schedule_share(Cosine(warmup_steps=0, floor_share=0.0), half, 101), 0.5)
    assert math.isclose(schedule_share(Cosine(warmup_steps=0, floor_share=0.0), 25, 101), (1 + math.sqrt(0.5)) / 2)
    stable = WarmupStableDecay(warmup_steps=10, decay_share=0.2, floor_share=0.1)
    assert [schedule_share(stable, step, 100) for step in (9, 50, 80, 99)] == pytest.approx([1, 1, 1, 0.1])
    assert schedule_share(stable, 90, 100) == pytest.approx(1 - 0.9 * 10 / 19)
    assert schedule_share(Constant(warmup_steps=4), 99, 100) == 1.0


def test_without_anything_said_the_rate_is_the_paper_s_cosine():
    assert OptimizerSection(peak_lr=1e-3).schedule == Cosine()
    rates = [schedule_share(Cosine(), step, 1000) for step in range(1000)]
    assert rates[0] == 1 / 20
    assert (rates[19], rates[20]) == (1.0, 1.0)
    assert math.isclose(rates[-1], 0.1)
    assert math.isclose(rates[20 + 489], 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 489 / 979)))


def trained(phases: list[Phase], **optimizer) -> TrainSection:
    section = OptimizerSection(**{"peak_lr": 1.0, **optimizer})
    return TrainSection(micro_batch=1, global_batch=1, phases=phases, optimizer=section)


@given(phases, st.integers(0, 5))
def test_phases_without_a_schedule_share_the_run_s(given_phases, position):
    """Wherever a phase with its own schedule stands: it has its own rise and end, the others go on as without it."""
    own = Phase(name="own", steps=10, halting=False, schedule=Linear(warmup_steps=2, floor_share=0.0), peak_lr=3.0)
    position = min(position, len(given_phases))
    plain = own.model_copy(update={"schedule": None, "peak_lr": None})
    with_own = trained([*given_phases[:position], own, *given_phases[position:]])
    without = trained([*given_phases[:position], plain, *given_phases[position:]])
    start = sum(phase.steps for phase in given_phases[:position])
    for step in range(with_own.steps):
        rates = learning_rates(with_own, step)
        if start <= step < start + 10:
            assert rates.backbone == 3.0 * schedule_share(Linear(warmup_steps=2, floor_share=0.0), step - start, 10)
        else:
            assert rates == learning_rates(without, step)
            assert rates.backbone == schedule_share(Cosine(), step, with_own.steps)


def test_a_phase_s_own_peak_and_gate_factor_scale_the_run_s_schedule():
    one = Phase(name="one", steps=4, halting=False)
    other = Phase(name="other", steps=4, halting=False, peak_lr=2.0, gate_lr_factor=5.0)
    train = trained([one, other], gate_lr_factor=0.5, schedule=Constant(warmup_steps=0))
    assert [(learning_rates(train, step).backbone, learning_rates(train, step).gates) for step in (3, 4)] == [
        (1.0, 0.5),
        (2.0, 10.0),
    ]


@given(st.integers(1, 10**12), st.integers(1, 10**7))
def test_tokens_become_whole_steps_rounded_up(tokens, tokens_per_step):
    phase = Phase(name="p", tokens=tokens, halting=False).in_steps(tokens_per_step)
    assert phase.steps * tokens_per_step >= tokens > (phase.steps - 1) * tokens_per_step
    assert phase.tokens == 0


def test_the_resolved_recipe_has_tokens_as_steps_and_says_both():
    recipe = read_recipe("quickstart", ["train.phases.0.steps=0", "train.phases.0.tokens=1e5"])
    assert recipe.tokens_per_step == 2048
    assert [phase.steps for phase in recipe.train.phases] == [49, 120]
    again = parse_recipe(recipe.resolved(), "resolved")
    assert again == recipe and again.hash() == recipe.hash()
    same = read_recipe("quickstart", ["train.phases.0.steps=49"])
    assert same.hash() == recipe.hash()
    assert describe_phases(recipe.train, recipe.tokens_per_step) == (
        "pondering: 49 steps (100,352 tokens), train all; halting: 120 steps (245,760 tokens), train all"
    )


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["train.phases.0.tokens=1e4"], "train.phases.0: give the phase's length in steps or in tokens, not both"),
        (["train.phases.0.steps=0"], "train.phases.0: give the phase's length in steps or in tokens"),
        (["train.phases.0.train=[]"], "train.phases.0.train"),
        (["train.phases.0.train=['a b']"], "train.phases.0.train.0"),
        (["train.phases.1.train=gates", "model.max_passes=1"], "train.phases.1.train gates: with model.max_passes 1"),
        (["train.phases.0.schedule={kind: cosin}"], "'cosine', 'linear', 'wsd', 'constant'"),
        (["train.phases.0.schedule={kind: linear, decay_share: 0.1}"], "unknown key 'decay_share'"),
        (["train.optimizer.schedule={kind: wsd, warmup_share: 0.1, warmup_steps: 3}"], "not both"),
        (
            ["train.phases.1.schedule={kind: cosine, warmup_steps: 121}"],
            "train.phases.1.schedule: 121 steps of warm-up and 0 of decay are more than its 120",
        ),
        (
            ["train.optimizer.schedule={kind: wsd, warmup_share: 0.5, decay_share: 0.6}"],
            "train.optimizer.schedule: 120 steps of warm-up and 144 of decay are more than its 240",
        ),
    ],
)
def test_what_no_phase_can_be(overrides, told):
    with pytest.raises(UserError) as raised:
        read_recipe("quickstart", overrides)
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


PAPER = {
    # Peak LR, factor on the embedding, steps of the first phase and of all (method sections 4 and 5).
    "pythia-70m-scratch": (1e-3, 1.0, 20_000, 50_000),
    "pythia-160m-scratch": (6e-4, 1.0, 20_000, 50_000),
    "pythia-410m-scratch": (3e-4, 3.0, 20_000, 50_000),
    "pythia-1.4b-continued": (2e-4 / 10, 3.0, math.ceil(1e9 / 524_288), math.ceil(1e9 / 524_288) + 19_074),
    "pythia-2.8b-continued": (1.2e-4 / 10, 3.0, math.ceil(1e9 / 524_288), math.ceil(1e9 / 524_288) + 9_537),
    "pythia-1.4b-from-stock": (2e-4 / 10, 1.0, 4_000, 19_074),
}


@pytest.mark.parametrize("name", PAPER)
def test_shipped_recipes_carry_the_paper_s_numbers(name):
    recipe = read_recipe(name)
    train, optimizer = recipe.train, recipe.train.optimizer
    peak, embed_scale, first, steps = PAPER[name]
    assert (recipe.tokens_per_step, train.global_batch) == (524_288, 256)
    assert (optimizer.peak_lr, recipe.model.initial_embed_scale) == (pytest.approx(peak), embed_scale)
    assert (train.phases[0].steps, train.steps) == (first, steps)
    assert (optimizer.beta1, optimizer.beta2, optimizer.eps, optimizer.weight_decay) == (0.9, 0.95, 1e-8, 0.1)
    assert (optimizer.schedule, optimizer.clip_grad_norm) == (Cosine(), 1.0)
    assert (recipe.model.max_passes, recipe.model.halt_threshold, train.precision) == (4, 1e-4, "bf16")
    before, last = train.phases
    assert (before.halting, before.ponder_weight) == (False, 0.0)
    assert before.train == ("gates" if name.endswith("-continued") else "all")
    assert last.halting and last.train == "all"
    assert (last.ponder_weight, last.ponder_fraction) == (0.1, 0.1)
    assert (last.ramp_start_step, last.ramp_steps) == (0, 4_000)
