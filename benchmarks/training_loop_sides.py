"""The two sides of `benchmarks.training_loop`: this project's training, and the loop that one would write without it.

Both start from the same weights and see the same rows, so their losses must agree.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from pipeline.data.batches import Step, TrainingBatches
from pipeline.data.rows import RowReader
from pipeline.recipe import Recipe
from pipeline.run_folder import RunFolder
from pipeline.training.checks import TrainingPlan
from pipeline.training.computation import set_computation
from pipeline.training.depth_control import DepthControl
from pipeline.training.engine import build_engine, parameter_groups, set_halting
from pipeline.training.gate_health import GateHealth
from pipeline.training.guards import Guards
from pipeline.training.loop import Hooks, train_segment
from pipeline.training.metrics_file import MetricsFile
from pipeline.training.model_start import start_model
from pipeline.training.oversight import Oversight
from pipeline.training.passed_over import PassedOver
from pipeline.training.phases import Segment, learning_rates, phase_at, ponder_fraction
from pipeline.training.progress import TrainingProgress
from pipeline.training.saves_in_flight import SavesInFlight
from pipeline.training.stopping import StopRequests, StopSignals
from pipeline.training.watchdog import Watchdog


class TimedBatches(TrainingBatches):
    """Counts the time that the training waits for its rows."""

    waited_seconds = 0.0

    def __enter__(self) -> TimedBatches:
        return self

    def step(self, step: int) -> Step:
        began = time.perf_counter()
        try:
            return super().step(step)
        finally:
            self.waited_seconds += time.perf_counter() - began


class ProjectTraining:
    """Steps of this project's training as `adaponder train` takes them, rows from shards and metrics.jsonl included.

    Left out: MLflow, whose sender is a thread of its own, and saving. Used in a `with`.
    """

    def __init__(self, recipe: Recipe, folder: RunFolder, plan: TrainingPlan, signals: StopSignals) -> None:
        self._recipe, self._plan = recipe, plan
        self._rank, self._taken, self._opened = dist.get_rank(), 0, contextlib.ExitStack()
        train, enter = recipe.train, self._opened.enter_context
        reader = enter(RowReader(folder.open_shards(), plan.manifest, "train"))
        self.batches = enter(
            TimedBatches(
                reader,
                recipe.seed,
                plan.manifest_hash,
                self._rank,
                plan.world_size,
                train.micro_batch,
                train.global_batch,
                recipe.data.shuffle,
            )
        )
        self.losses: list[float] = []
        """Of the logged steps."""
        self._hooks = Hooks(self._post_step)
        if self._rank == 0:
            self._metrics_file = enter(MetricsFile(folder.metrics_file, 0))
            self._progress = enter(TrainingProgress(0, train.steps, plan.config.max_passes))
        watchdog = enter(Watchdog(60 * train.hang_minutes, lambda hang: None))
        requests = StopRequests(signals, folder.path, self._rank, train.stop_after_seconds, signals.began)
        guards = Guards(train.guards, self._hooks.note)
        gate_health = GateHealth(plan.config.max_passes, self._hooks.note)
        saves = enter(SavesInFlight(background=False))
        self._oversight = Oversight(
            requests, watchdog, guards, gate_health, saves, DepthControl(plan.config.max_passes)
        )
        model = start_model(recipe)
        set_computation(model, recipe)
        self.engine = build_engine(recipe, model.train(), "all", plan.world_size)

    def __enter__(self) -> ProjectTraining:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()
        self.engine.destroy()

    def _post_step(self, step: int, metrics: dict[str, float]) -> None:
        if self._rank == 0:
            self._metrics_file.append(step, metrics)
            self._progress.show(step, metrics)
        self.losses.append(metrics["train/loss"])

    def take(self, steps: int) -> None:
        """Take the next steps; collective."""
        first, self._taken = self._taken, self._taken + steps
        train_segment(
            self.engine,
            self._recipe,
            self._plan,
            Segment("all", first, self._taken),
            first,
            self.batches,
            self._rank,
            self._hooks,
            self._oversight,
            PassedOver(),
            _never_saved,
        )


def _never_saved(engine: Any, step: int) -> None:
    raise AssertionError(f"step {step} was not to be saved")


class PlainTraining:
    """The same steps by torch alone: fused AdamW on rows that lie in memory, DistributedDataParallel over ranks."""

    def __init__(self, recipe: Recipe, plan: TrainingPlan, rows: list[Step]) -> None:
        """rows: this rank's micro-batches of the steps that will be taken; begun again after the last."""
        self._recipe, self._rows, self._taken = recipe, rows, 0
        self.losses: list[float] = []
        """Of the logged steps."""
        settings = recipe.train.optimizer
        self._model = start_model(recipe).train()
        set_computation(self._model, recipe)
        self._optimizer = torch.optim.AdamW(
            parameter_groups(self._model, settings),
            lr=settings.peak_lr,
            betas=(settings.beta1, settings.beta2),
            eps=settings.eps,
            fused=True,
        )
        self._forward: Any = self._model
        self._no_sync: Callable[[], Any] = contextlib.nullcontext
        if plan.world_size > 1:
            self._forward = DistributedDataParallel(self._model, gradient_as_bucket_view=True)
            self._no_sync = self._forward.no_sync

    def take(self, steps: int) -> None:
        """Take the next steps; collective."""
        for _ in range(steps):
            self._step(self._taken)
            self._taken += 1

    def _step(self, step: int) -> None:
        train = self._recipe.train
        phase, phase_step = phase_at(train.phases, step)
        set_halting(self._model.config, phase, train.skip_halted)
        rates = learning_rates(train, step)
        for group in self._optimizer.param_groups:
            group["lr"] = rates.gates if group["name"].startswith("gates_") else rates.backbone
        micro_batches = self._rows[step % len(self._rows)]
        loss_sum = torch.zeros(())
        for number, (inputs, shift_labels) in enumerate(micro_batches):
            with contextlib.nullcontext() if number + 1 == len(micro_batches) else self._no_sync():
                loss = self._forward(
                    input_ids=inputs,
                    shift_labels=shift_labels,
                    ponder_weight=phase.ponder_weight,
                    ponder_fraction=ponder_fraction(phase, phase_step),
                ).loss
                (loss / len(micro_batches)).backward()
            loss_sum += loss.detach()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), train.optimizer.clip_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        if (step + 1) % train.log_every_steps == 0:
            if dist.get_world_size() > 1:
                dist.all_reduce(loss_sum)
            self.losses.append(loss_sum.item() / len(micro_batches) / dist.get_world_size())


def rows_in_memory(recipe: Recipe, folder: RunFolder, plan: TrainingPlan, steps: int) -> list[Step]:
    """This rank's micro-batches of the first `steps` steps."""
    train = recipe.train
    with (
        RowReader(folder.open_shards(), plan.manifest, "train") as reader,
        TrainingBatches(
            reader,
            recipe.seed,
            plan.manifest_hash,
            dist.get_rank(),
            plan.world_size,
            train.micro_batch,
            train.global_batch,
            recipe.data.shuffle,
        ) as batches,
    ):
        return [batches.step(step) for step in range(steps)]
