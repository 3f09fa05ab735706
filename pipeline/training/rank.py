"""What one rank of a training does, from its first check to its last step.

`pipeline.training.worker` is its process: arguments, logs, how it ends.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file

from pipeline.checkpoint import FROZEN_FILE, checkpoint_name, find_checkpoint, load_model
from pipeline.console import console
from pipeline.data.batches import TrainingBatches
from pipeline.data.rows import RowReader
from pipeline.data.shard_cache import room_note
from pipeline.durable import write_json
from pipeline.errors import WorldError
from pipeline.events import append_event
from pipeline.recipe import Recipe
from pipeline.run_folder import RunFolder
from pipeline.tracking import Tracker
from pipeline.training.agreement import read_together
from pipeline.training.attempt import hold_run
from pipeline.training.checks import TrainingPlan, check_training, world_size_from_environment
from pipeline.training.computation import describe_computation, set_computation
from pipeline.training.engine import build_engine, engine_config, frozen_weights, set_optimizer_settings
from pipeline.training.loop import train_segment
from pipeline.training.metrics_file import MetricsFile
from pipeline.training.model_start import start_model
from pipeline.training.phases import segments
from pipeline.training.progress import TrainingProgress
from pipeline.training.saving import Saver, remove_leftovers

_FINISH_SECONDS = 15.0
"""Time for MLflow after a failure: torchrun kills ranks that have not ended after 30 s."""


@dataclass(frozen=True)
class Hooks:
    """What happens beside the arithmetic, on rank 0 only; the other ranks keep the defaults."""

    post_step: Callable[[int, dict[str, float]], None] = lambda step, metrics: None
    """With the number of steps taken and a logged step's metrics."""
    on_skipped_step: Callable[[int], None] = lambda step: None
    """With the number of a step that was skipped because its gradients were not finite."""
    run_id: Callable[[], str | None] = lambda: None
    """The MLflow run, None while its server has not answered."""


def init_distributed(recipe: Recipe) -> None:
    """Join the other ranks over NCCL, or over gloo on the CPU; collective."""
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    else:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    if not on_gpu:
        # DeepSpeed would compile a shared-memory all-reduce, which asks for a C++ compiler on every machine; gloo is
        # enough on a CPU.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        dist_backend="nccl" if on_gpu else "gloo",
        timeout=timedelta(seconds=recipe.train.timeout_seconds),
        verbose=False,
    )


def from_rank_0(value: Any) -> Any:
    """Rank 0's value, on every rank; collective."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def train_rank(recipe: Recipe, folder: RunFolder, attempt: int, resume: str) -> None:
    """This rank's part of the training; collective."""
    if dist.get_rank() == 0:
        with hold_run(folder.path):
            dist.barrier()
            _train_as_rank_0(recipe, folder, attempt, resume)
    else:
        dist.barrier()
        plan = _plan(recipe, folder, resume)
        _run_segments(recipe, folder, plan, Hooks())
    dist.destroy_process_group()


def _plan(recipe: Recipe, folder: RunFolder, resume: str) -> TrainingPlan:
    """Checked while rank 0 holds the run, so that no other training moves what is being looked at; collective."""
    plan = check_training(recipe, folder, world_size_from_environment(), resume)
    first_step = from_rank_0(plan.first_step)
    if plan.first_step != first_step:
        raise WorldError(
            f"{folder.checkpoints}: this rank sees {checkpoint_name(plan.first_step)} as the newest checkpoint, rank 0 "
            f"sees {checkpoint_name(first_step)}: the file system is not the same for both yet"
        )
    return plan


def _train_as_rank_0(recipe: Recipe, folder: RunFolder, attempt: int, resume: str) -> None:
    """What rank 0 does beside its share: the run's files, the progress line, MLflow."""
    plan = _plan(recipe, folder, resume)
    folder.write_recipe()
    write_json(folder.path / "deepspeed.json", engine_config(recipe, plan.world_size))
    remove_leftovers(folder.checkpoints)
    started = {"step": plan.first_step, "world_size": plan.world_size, "recipe_hash": recipe.hash()}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    computation = describe_computation(recipe, device)
    append_event(folder, "training_started", attempt=attempt, **started, computation=computation)
    tracker = Tracker(folder, plan.manifest_hash, attempt)
    told = "; ".join(f"{name}: {value}" for name, value in computation.items())
    console.print(f"train: {plan.world_size} ranks over {dist.get_backend()}; {told}")
    data = recipe.data
    if note := room_note(data.shards, data.cache_bytes, data.shuffle, plan.manifest.train.shards):
        console.print(f"[yellow]{note}[/yellow]", highlight=False)
    try:
        tracker.start()
        with (
            MetricsFile(folder.metrics_file, plan.first_step) as metrics_file,
            TrainingProgress(plan.first_step, recipe.train.steps, plan.config.max_passes) as progress,
        ):

            def post_step(step: int, metrics: dict[str, float]) -> None:
                metrics_file.append(step, metrics)
                progress.show(step, metrics)

            def on_skipped_step(step: int) -> None:
                append_event(folder, "step_skipped", step=step, reason="gradients not finite")
                console.print(f"[yellow]step {step} was skipped: its gradients were not finite[/yellow]")

            _run_segments(recipe, folder, plan, Hooks(post_step, on_skipped_step, lambda: tracker.run_id))
    except BaseException as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # another rank's end must not cut short what is still to be said
        append_event(folder, "training_failed", attempt=attempt, error=str(error).partition("\n")[0])
        tracker.finish("KILLED" if isinstance(error, (KeyboardInterrupt, SystemExit)) else "FAILED", _FINISH_SECONDS)
        raise
    append_event(folder, "training_finished", attempt=attempt, step=recipe.train.steps)
    tracker.finish("FINISHED")


def _run_segments(recipe: Recipe, folder: RunFolder, plan: TrainingPlan, hooks: Hooks) -> None:
    """Every segment that is left, each with an engine of its own; collective."""
    train, rank = recipe.train, dist.get_rank()
    checkpoint = plan.resume_from
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with (
        read_together(lambda: RowReader(folder.open_shards(), plan.manifest, "train"), device) as reader,
        TrainingBatches(
            reader,
            recipe.seed,
            plan.manifest_hash,
            rank,
            plan.world_size,
            train.micro_batch,
            train.global_batch,
            recipe.data.shuffle,
        ) as batches,
    ):
        for segment in segments(train.phases):
            step = checkpoint.step if checkpoint else 0
            if step >= segment.end_step:
                continue
            resumed = checkpoint is not None and checkpoint.state.trained == segment.trained
            # After a change of the trained set the weights go on and the optimizer starts anew.
            model = load_model(checkpoint) if checkpoint and not resumed else start_model(recipe)
            set_computation(model, recipe)
            frozen = frozen_weights(recipe, model, segment.trained) if rank == 0 else {}
            if frozen and resumed and checkpoint:
                frozen = load_file(checkpoint.path / FROZEN_FILE)
            engine = build_engine(recipe, model.train(), segment.trained, plan.world_size)
            save = Saver(recipe, folder.checkpoints, plan, segment, hooks.run_id, frozen)
            if resumed and checkpoint:
                loaded, _ = engine.load_checkpoint(str(folder.checkpoints), tag=checkpoint.name)
                if loaded is None:  # DeepSpeed only warns, and would go on from the start
                    raise WorldError(f"{checkpoint.path}: DeepSpeed finds no states for this rank in it")
                set_optimizer_settings(engine, train.optimizer)
            elif checkpoint is None:
                save(engine, 0)
            train_segment(
                engine, recipe, plan, segment, step, batches, rank, hooks.post_step, hooks.on_skipped_step, save
            )
            engine.destroy()
            checkpoint = find_checkpoint(folder.checkpoints, checkpoint_name(segment.end_step))
