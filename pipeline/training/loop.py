"""The training loop over one segment: steps that share an engine.

Training never branches on data: every pass and every gate runs on every rank in every step. Halting is masks, or picks
the tokens that a pass is computed for, though there be none. So the collectives of all ranks always match.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
import torch.distributed as dist

from pipeline.data.batches import TrainingBatches
from pipeline.errors import WorldError
from pipeline.kept_checkpoints import saves_at
from pipeline.recipe import Recipe
from pipeline.training.agreement import begin_together
from pipeline.training.checks import TrainingPlan
from pipeline.training.engine import Engine, set_halting, set_learning_rates
from pipeline.training.guards import Note, RollBack
from pipeline.training.oversight import Oversight
from pipeline.training.passed_over import PassedOver
from pipeline.training.phases import Segment, learning_rates, phase_at, ramp_share
from pipeline.training.rank_checks import check_ranks
from pipeline.training.rank_times import RankTimes
from pipeline.training.step_clock import StepClock
from pipeline.training.step_metrics import StepSums
from pipeline.training.stopping import Stopped
from pipeline.training.throughput import Throughput
from pipeline.training.watchdog import PATIENCE


@dataclass(frozen=True)
class Hooks:
    """What happens beside the arithmetic, on rank 0 only; the other ranks keep the defaults."""

    post_step: Callable[[int, dict[str, float]], None] = lambda step, metrics: None
    """With the number of steps taken and a logged step's metrics."""
    note: Note = lambda kind, message, **fields: None
    """An event and a line on the console."""
    roll_back: Callable[[PassedOver], None] = lambda passed_over: None
    """With what the next attempt passes over."""
    run_id: Callable[[], str | None] = lambda: None
    """The MLflow run, None while its server has not answered."""


def train_segment(
    engine: Engine,
    recipe: Recipe,
    plan: TrainingPlan,
    segment: Segment,
    first_step: int,
    batches: TrainingBatches,
    rank: int,
    hooks: Hooks,
    oversight: Oversight,
    passed_over: PassedOver,
    save: Callable[[Engine, int], None],
) -> None:
    """Take the steps from `first_step` to the segment's end; collective.

    `save` gets the engine and the number of steps taken, on every rank, where the recipe asks for it, at the end of
    each phase and before a stop. Raises `Stopped` where any rank wants to stop or a guard rolls back, `WorldError`
    where a guard says so or the ranks no longer train the same, and on every rank when a rank cannot read its rows or a
    checkpoint could not be written; what was saved before is kept. At the end the last checkpoint is complete.
    """
    train, guards, depth_control = recipe.train, oversight.guards, oversight.depth_control
    device = engine.device
    clock = StepClock(device)
    speed = Throughput(recipe, plan.config, plan.manifest.seq_len, plan.world_size, segment.trained, device)
    rank_times = RankTimes(train.rank_times_every_steps, train.slow_rank_ratio, device, hooks.note)
    skipped = engine.skipped_steps
    kept = first_step  # the step that the newest checkpoint holds, once `oversight.settle` says that it is complete
    not_looked_at: _StepLoss | None = None
    step_seconds = 0.0

    def look(taken: int, loss: float, grad_norm: float | None) -> None:
        try:
            guards.look(taken, loss, grad_norm)
        except RollBack as why:
            oversight.settle()
            if passed_over.rolled_back_to.count(kept) >= train.guards.roll_backs_in_a_row:
                raise WorldError(
                    f"{why}: the training went back to step {kept} {train.guards.roll_backs_in_a_row} times already; a "
                    "lower train.optimizer.peak_lr or other data may help"
                ) from why
            hooks.roll_back(passed_over.rolled_back(kept, taken))
            raise Stopped(
                f"rolled back to step {kept}, since {why}: the rows from there on to step {taken} are passed over; the "
                "same command continues",
                step=kept,
                requeue=True,
                again=oversight.requests.wish() is None,
            ) from why

    for step in range(first_step, segment.end_step):
        clock.begin()
        phase, phase_step = phase_at(train.phases, step)
        rates = learning_rates(train, step)
        set_learning_rates(engine, rates)
        set_halting(engine.module.config, phase, train.skip_halted)
        torch.manual_seed(step_seed(recipe.seed, step, rank))
        taken = step + 1
        saved = saves_at(train, taken) or phase_step + 1 == phase.steps
        # A step that is saved is looked at, so that no checkpoint holds weights after a loss that was not finite.
        logged = saved or taken % train.log_every_steps == 0
        sums = StepSums(plan.config, device) if logged else None
        # What runs for the first time may be compiled first.
        oversight.watchdog.alive(f"step {taken}", PATIENCE if step == first_step or phase_step == 0 else 1.0)
        wish = oversight.requests.wish(step_seconds)
        start = begin_together(
            partial(clock.part("data")(batches.step), passed_over.data_step(step)),
            device,
            wish is not None,
            not_looked_at.sums if not_looked_at else None,
            oversight.saves.failed,
        )
        if start.save_failed:
            oversight.saves.raise_failure()
        if not_looked_at is not None:
            loss_sum, micro_batches_taken, depths, tokens = start.sums
            depth_control.took(phase_at(train.phases, step - 1)[0], depths / tokens)
            look(step, loss_sum / micro_batches_taken, _grad_norm(engine))
        if start.stop_wanted:
            if kept != step:
                oversight.save(save, engine, step)
            oversight.settle()
            oversight.stop(step, wish, "no step was taken since" if step == first_step else "saved")
        guards.phase(phase.name)
        weight = depth_control.ponder_weight(phase, phase_step)
        fraction = depth_control.ponder_fraction(phase, phase_step)
        step_loss = _StepLoss(device)
        reason = "its gradients were not finite"
        with rank_times.watching(taken):
            for number, (inputs, shift_labels) in enumerate(start.found):
                with clock.part("forward"):
                    output = engine(
                        input_ids=inputs.to(device, non_blocking=True),
                        shift_labels=shift_labels.to(device, non_blocking=True),
                        ponder_weight=weight,
                        ponder_fraction=fraction,
                        hold_depth=phase.target_depth is not None,
                    )
                loss = cast(torch.Tensor, output.loss)
                step_loss.add(loss, cast(torch.Tensor, output.depths))
                last = number + 1 == len(start.found)
                if last and guards.decides_before_the_step and guards.skips(taken, step_loss.mean()):
                    # DeepSpeed leaves out a step whose gradients are no numbers, in ZeRO 1 to 3 and on every rank
                    # alike: the one way to skip a step that leaves its gradient buffers and counters in order.
                    loss, reason = loss * math.nan, "its loss is a spike"
                with clock.part("backward"):
                    engine.backward(loss)
                with clock.part("optimizer"):
                    engine.step()
                if sums is not None:
                    sums.add(output)
        rank_times.look(taken, clock.worked)
        guards.took(taken, engine.skipped_steps > skipped, reason)
        skipped = engine.skipped_steps
        not_looked_at = step_loss
        if sums is not None:
            metrics = sums.metrics()
            depth_control.took(phase, metrics["depth/mean"])
            norm = _grad_norm(engine)
            look(taken, metrics["train/loss"], norm)
            not_looked_at = None
            # Not finite: the step is skipped.
            if norm is not None and math.isfinite(norm):
                metrics["train/grad_norm"] = norm
            metrics |= {
                "train/lr": rates.backbone,
                "train/lr_gates": rates.gates,
                "train/skipped_steps": float(engine.skipped_steps),
                "train/ponder_weight": weight,
                "train/ponder_fraction": fraction,
                "train/tokens": float(taken * train.global_batch * plan.manifest.seq_len),
            }
            metrics |= oversight.gate_health.look(taken, phase, ramp_share(phase, phase_step) == 1, metrics)
            if passed_over.data_steps:
                metrics["train/steps_passed_over"] = float(passed_over.data_step(step) - step)
            metrics |= clock.lap() | rank_times.found()
            metrics |= speed.metrics(metrics["speed/step_seconds"], metrics)
            hooks.post_step(taken, metrics)
        if train.cross_check_every_steps and taken % train.cross_check_every_steps == 0:
            check_ranks(recipe, plan, taken, passed_over.data_step(taken), engine.module, segment.trained)
        step_seconds = clock.end()
        if saved:
            oversight.save(save, engine, taken)
            kept = taken
            clock.saved()
    oversight.settle()


class _StepLoss:
    """A step's loss and depth over this rank's micro-batches, left on the device: adding to them waits for nothing."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(4, dtype=torch.float64, device=device)
        """Losses and micro-batches, passes and tokens."""

    def add(self, loss: torch.Tensor, depths: torch.Tensor) -> None:
        self.sums[0] += loss.detach()
        self.sums[1] += 1
        self.sums[2] += depths.sum()
        self.sums[3] += depths.numel()

    def mean(self) -> float:
        """Over all ranks' micro-batches so far; collective."""
        sums = self.sums.clone()
        dist.all_reduce(sums)
        loss, micro_batches, _, _ = sums.tolist()
        return loss / micro_batches


def _grad_norm(engine: Engine) -> float | None:
    """Of the last step, before clipping, over all ranks; None before the first."""
    norm = engine.get_global_grad_norm()
    return None if norm is None else float(norm)


def step_seed(seed: int, step: int, rank: int) -> int:
    """The generator's seed for a step on a rank: a function of the three, so that resuming needs no generator state."""
    digest = hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)
