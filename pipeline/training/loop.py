"""The training loop over one segment: steps that share an engine.

Training never branches on data: every pass and every gate runs on every rank in every step. Halting is masks, or picks
the tokens that a pass is computed for, though there be none. So the collectives of all ranks always match.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch

from pipeline.data.batches import TrainingBatches
from pipeline.errors import WorldError
from pipeline.recipe import Recipe
from pipeline.training.agreement import read_together
from pipeline.training.checks import TrainingPlan
from pipeline.training.engine import Engine, set_halting, set_learning_rate
from pipeline.training.phases import Segment, learning_rate, phase_at, ponder_fraction
from pipeline.training.step_metrics import StepSums
from pipeline.training.throughput import peak_flops, training_flops_per_token


def train_segment(
    engine: Engine,
    recipe: Recipe,
    plan: TrainingPlan,
    segment: Segment,
    first_step: int,
    batches: TrainingBatches,
    rank: int,
    post_step: Callable[[int, dict[str, float]], None],
    on_skipped_step: Callable[[int], None],
    save: Callable[[Engine, int], None],
) -> None:
    """Take the steps from `first_step` to the segment's end; collective.

    `post_step` gets the number of steps taken and the metrics of a logged step; `on_skipped_step` the number of a step
    that DeepSpeed skipped because its gradients were not finite; `save` the engine and the number of steps taken, on
    every rank, every `checkpoint_every_steps` and at the end. Raises `WorldError` when the loss is no
    longer finite, and on every rank when a rank cannot read its rows; what was saved before is kept.
    """
    train = recipe.train
    device = engine.device
    clock = _Clock(recipe, plan, segment, device, first_step)
    skipped = engine.skipped_steps
    for step in range(first_step, segment.end_step):
        phase, phase_step = phase_at(train.phases, step)
        fraction = ponder_fraction(phase, phase_step)
        rate = learning_rate(train.optimizer, step, train.steps)
        set_learning_rate(engine, rate)
        set_halting(engine.module.config, phase, train.skip_halted)
        torch.manual_seed(step_seed(recipe.seed, step, rank))
        taken = step + 1
        saved = taken % train.checkpoint_every_steps == 0 or taken == segment.end_step
        # A step that is saved is looked at, so that no checkpoint holds weights after a loss that was not finite.
        logged = saved or taken % train.log_every_steps == 0
        sums = StepSums(plan.config, device) if logged else None
        micro_batches = read_together(partial(batches.step, step), device)
        for inputs, shift_labels in micro_batches:
            output = engine(
                input_ids=inputs.to(device, non_blocking=True),
                shift_labels=shift_labels.to(device, non_blocking=True),
                ponder_weight=phase.ponder_weight,
                ponder_fraction=fraction,
            )
            engine.backward(output.loss)
            engine.step()
            if sums is not None:
                sums.add(output)
        if engine.skipped_steps > skipped:
            skipped = engine.skipped_steps
            on_skipped_step(taken)
        if sums is not None:
            metrics = sums.metrics()
            if not math.isfinite(metrics["train/loss"]):
                raise WorldError(
                    f"the loss of step {taken} is {metrics['train/loss']}: nothing after the last checkpoint is kept; "
                    "a lower train.optimizer.peak_lr or other data may help"
                )
            norm = engine.get_global_grad_norm()
            # None: without ZeRO DeepSpeed clips in fp32 but does not tell the norm. Not finite: the step is skipped.
            if norm is not None and math.isfinite(norm):
                metrics["train/grad_norm"] = float(norm)
            metrics |= {
                "train/lr": rate,
                "train/skipped_steps": float(engine.skipped_steps),
                "train/ponder_weight": phase.ponder_weight,
                "train/ponder_fraction": fraction,
                "train/tokens": float(taken * train.global_batch * plan.manifest.seq_len),
            }
            post_step(taken, metrics | clock.lap(taken, metrics))
        if saved:
            save(engine, taken)
            clock.restart(taken)


class _Clock:
    """Speed between logged steps, time spent saving left out; utilisation (MFU) by the logged step's own depths."""

    def __init__(self, recipe: Recipe, plan: TrainingPlan, segment: Segment, device: torch.device, step: int) -> None:
        self._config, self._seq_len = plan.config, plan.manifest.seq_len
        self._tokens_per_step = recipe.train.global_batch * self._seq_len
        self._skips = recipe.train.skip_halted
        self._frozen_backbone = segment.trained == "gates"
        # The known peaks are bf16's.
        peak = peak_flops(device) if recipe.train.precision == "bf16" else None
        self._peak = peak * plan.world_size if peak else None
        self.restart(step)

    def restart(self, step: int) -> None:
        self._began, self._began_step = time.monotonic(), step

    def lap(self, step: int, metrics: dict[str, float]) -> dict[str, float]:
        seconds = (time.monotonic() - self._began) / (step - self._began_step)
        tokens_per_second = self._tokens_per_step / seconds
        self.restart(step)
        speed = {"speed/tokens_per_second": tokens_per_second, "speed/step_seconds": seconds}
        if self._peak:
            flops = training_flops_per_token(
                self._config,
                self._seq_len,
                _depth_histogram(metrics, self._config.max_passes) if self._skips else None,
                frozen_backbone=self._frozen_backbone,
            )
            speed["speed/mfu"] = tokens_per_second * flops / self._peak
        return speed


def _depth_histogram(metrics: dict[str, float], passes: int) -> list[float]:
    """Share of the tokens at depth 1, 2, ..., `passes`, from a step's metrics."""
    active = [metrics[f"depth/keep_ratio_pass_{i + 1}"] for i in range(passes)] + [0.0]
    return [here - after for here, after in pairwise(active)]


def step_seed(seed: int, step: int, rank: int) -> int:
    """The generator's seed for a step on a rank: a function of the three, so that resuming needs no generator state."""
    digest = hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)
