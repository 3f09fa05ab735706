"""Where a step stands in the recipe's phases, and the numbers that follow: a pure function of the step.

Nothing here has state, so a resumed run needs the step alone (method sections 3 and 4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.recipe import OptimizerSection, Phase


@dataclass(frozen=True)
class Segment:
    """Consecutive steps that train one set of parameters, and so share one engine."""

    trained: str
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
        if found and found[-1].trained == phase.train:
            found[-1] = Segment(phase.train, found[-1].first_step, end)
        else:
            found.append(Segment(phase.train, step, end))
        step = end
    return found


def ponder_fraction(phase: Phase, phase_step: int) -> float:
    """k_s = k_max (s - S0) / (S1 - S0) between S0 and S1, then k_max (method section 3)."""
    since = phase_step - phase.ramp_start_step
    if since < 0:
        return 0.0
    if since >= phase.ramp_steps:
        return phase.ponder_fraction
    return phase.ponder_fraction * since / phase.ramp_steps


def learning_rate(optimizer: OptimizerSection, step: int, total_steps: int) -> float:
    """Linear warm-up over `warmup_share` of all steps, then a cosine down to `floor_share` of the peak."""
    warmup = round(optimizer.warmup_share * total_steps)
    if step < warmup:
        return optimizer.peak_lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup - 1)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    return optimizer.peak_lr * (optimizer.floor_share + (1.0 - optimizer.floor_share) * cosine)
