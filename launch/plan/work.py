"""How much a run computes, how long that takes and what it costs (method section 7, `pipeline.model.flops`)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.model import AdaPonderConfig
from pipeline.model.flops import Checkpointing, MultiplyAccumulates, TrainingWork, mean_keys, training_work
from pipeline.recipe import Recipe
from pipeline.recipe_train import Phase

_NOTHING = MultiplyAccumulates(0.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class RunWork:
    """Multiply-accumulates of a whole run."""

    steps: int
    tokens: int
    model: MultiplyAccumulates
    """What the gradients need: what model FLOPs utilisation (MFU) counts."""
    recomputed: MultiplyAccumulates
    """What is computed again to save memory, on top."""

    @property
    def recomputed_share(self) -> float:
        """Over the model's work."""
        return self.recomputed.total / self.model.total

    def days(self, peak_flops: float, mfu: float, gpus: int) -> float:
        """At that share of the GPUs' peak; recomputation is part of what keeps the share low."""
        return 2 * self.model.total / (peak_flops * mfu * gpus) / 86400


def run_work(recipe: Recipe, config: AdaPonderConfig, checkpointing: Checkpointing, mean_depth: float) -> RunWork:
    """All phases together. `mean_depth` counts where halted tokens are skipped; elsewhere every pass runs for all."""
    model, recomputed = _NOTHING, _NOTHING
    for phase in recipe.train.phases:
        work = phase_work(recipe, config, phase, checkpointing, mean_depth)
        tokens = float(phase.steps * recipe.tokens_per_step)
        model += tokens * work.model
        recomputed += tokens * work.recomputed
    return RunWork(recipe.train.steps, recipe.train.steps * recipe.tokens_per_step, model, recomputed)


def phase_work(
    recipe: Recipe, config: AdaPonderConfig, phase: Phase, checkpointing: Checkpointing, mean_depth: float
) -> TrainingWork:
    """Of a token in that phase. What a backward pass leaves out for a pattern of parameters is not left out here."""
    skips = recipe.train.skip_halted and phase.halting
    return training_work(
        config,
        mean_keys(recipe.tokenize.seq_len),
        depth_histogram(mean_depth, config.max_passes) if skips else None,
        frozen_backbone=phase.trained == "gates",
        chunked_mixture=recipe.train.vocabulary_chunk_tokens > 0,
        checkpointing=checkpointing,
    )


def depth_histogram(mean: float, passes: int) -> list[float]:
    """Shares of the tokens at depth 1..K with that mean, at the two depths around it."""
    below = min(math.floor(mean), passes - 1) if passes > 1 else 1
    shares = [0.0] * passes
    shares[below - 1] = 1.0 - (mean - below)
    if passes > 1:
        shares[below] += mean - below
    return shares
