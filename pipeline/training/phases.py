"""Where a step stands in the recipe's phases, and the numbers that follow: a pure function of the step.

Nothing here has state, so a resumed run needs the step alone (method sections 3 and 4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.recipe_train import Constant, Cosine, Phase, Schedule, TrainSection


@dataclass(frozen=True)
class Segment:
    """Consecutive steps that train one set of parameters, and so share one engine."""

    trained: str
    """As in `Phase.trained`."""
    first_step: int
    end_step: int
    """One past the last step."""


def phase_at(phases: list[Phase], step: int) -> tuple[Phase, int]:
    """The phase of `step` (0-based) and the phase's own step; the last phase for a finished run."""
    start = 0
    for phase in phases:
        if step < start + phase.steps:
            return phase, step - start
        start += phase.steps
    return phases[-1], phases[-1].steps


def segments(phases: list[Phase]) -> list[Segment]:
    """The run cut where the set of trained parameters changes."""
    found: list[Segment] = []
    step = 0
    for phase in phases:
        end = step + phase.steps
        if found and found[-1].trained == phase.trained:
            found[-1] = Segment(phase.trained, found[-1].first_step, end)
        else:
            found.append(Segment(phase.trained, step, end))
        step = end
    return found


def ponder_fraction(phase: Phase, phase_step: int) -> float:
    """k_s = k_max (s - S0) / (S1 - S0) between S0 and S1, then k_max (method section 3)."""
    return phase.ponder_fraction * ramp_share(phase, phase_step)


def ramp_share(phase: Phase, phase_step: int) -> float:
    """How much of the phase's ramp lies behind a step, between 0 and 1."""
    since = phase_step - phase.ramp_start_step
    if since < 0:
        return 0.0
    return 1.0 if since >= phase.ramp_steps else since / phase.ramp_steps


@dataclass(frozen=True)
class LearningRates:
    """The LRs of one step."""

    backbone: float
    gates: float


def learning_rates(train: TrainSection, step: int) -> LearningRates:
    """The LRs of `step` (0-based): by its phase's schedule and the phase's own step, or else by the optimizer's and the
    step of the whole run."""
    phase, phase_step = phase_at(train.phases, step)
    if phase.schedule is not None:
        share = schedule_share(phase.schedule, phase_step, phase.steps)
    else:
        share = schedule_share(train.optimizer.schedule, step, train.steps)
    rate = share * (train.optimizer.peak_lr if phase.peak_lr is None else phase.peak_lr)
    return LearningRates(rate, rate * train.gate_lr_factor(phase))


def schedule_share(schedule: Schedule, step: int, total_steps: int) -> float:
    """The LR at `step` (0-based) of `total_steps`, as a share of the peak, between 0 and 1.

    The warm-up's last step is the first at the peak; the decay's last is the last of all and at the floor.
    """
    warmup = schedule.warmup(total_steps)
    if step < warmup:
        return (step + 1) / warmup
    decay = schedule.decay(total_steps)
    since = step - (total_steps - decay)
    if isinstance(schedule, Constant) or since < 0 or total_steps == 1:
        return 1.0
    progress = min(1.0, since / (decay - 1)) if decay > 1 else 1.0
    fallen = 0.5 * (1.0 - math.cos(math.pi * progress)) if isinstance(schedule, Cosine) else progress
    return 1.0 - (1.0 - schedule.floor_share) * fallen


def describe_schedule(schedule: Schedule, total_steps: int) -> str:
    """The schedule in words, for a stretch of `total_steps`."""
    warmup, decay = schedule.warmup(total_steps), schedule.decay(total_steps)
    if isinstance(schedule, Constant):
        return f"constant after {warmup:,} steps of warm-up"
    shape = "half a cosine" if isinstance(schedule, Cosine) else "a straight line"
    end = f"{shape} to {schedule.floor_share:.0%} of the peak over the last {decay:,}"
    return f"{warmup:,} steps of warm-up, {end}"


def describe_phases(train: TrainSection, tokens_per_step: int) -> str:
    """The phases in one line, with their lengths in steps and in tokens."""
    return "; ".join(
        f"{phase.name}: {phase.steps:,} steps ({phase.steps * tokens_per_step:,} tokens), train {phase.trained}"
        for phase in train.phases
    )
