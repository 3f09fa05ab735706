"""One rank of a training: `torchrun --module pipeline.training.worker RECIPE --runs ROOT`.

Any launcher that sets torchrun's environment (RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT) will do.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from launch.local import die_with_parent
from pipeline.checkpoint import find_checkpoint, load_model
from pipeline.console import console
from pipeline.data.batches import TrainingBatches
from pipeline.data.rows import RowReader
from pipeline.events import append_event
from pipeline.recipe import Recipe
from pipeline.recipe_reader import read_recipe
from pipeline.run_folder import RunFolder
from pipeline.training.attempt import ATTEMPT_VARIABLE, hold_run, log_to_file, next_attempt, report_failure
from pipeline.training.checks import TrainingPlan, check_training, world_size_from_environment
from pipeline.training.engine import build_engine
from pipeline.training.loop import train_segment
from pipeline.training.metrics_file import MetricsFile
from pipeline.training.model_start import start_model
from pipeline.training.phases import segments
from pipeline.training.progress import TrainingProgress
from pipeline.training.saving import Saver, remove_leftovers


@dataclass(frozen=True)
class Hooks:
    """What happens beside the arithmetic, on rank 0 only; the other ranks keep the defaults."""

    post_step: Callable[[int, dict[str, float]], None] = lambda step, metrics: None
    """With the number of steps taken and a logged step's metrics."""
    run_id: Callable[[], str | None] = lambda: None
    """The MLflow run, None while its server has not answered."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="pipeline.training.worker")
    parser.add_argument("recipe")
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--resume", choices=["auto", "never"], default="auto")
    given = parser.parse_args(arguments)
    die_with_parent()
    rank = int(os.environ["RANK"])
    recipe = read_recipe(given.recipe)
    folder = RunFolder(given.runs, recipe)
    attempt = int(os.environ.get(ATTEMPT_VARIABLE) or next_attempt(folder.logs))
    log_to_file(folder.logs, attempt, rank)
    try:
        _train(recipe, folder, rank, attempt, given.resume)
        return 0
    except BaseException as error:
        return report_failure(folder.logs, attempt, rank, error)


def _train(recipe: Recipe, folder: RunFolder, rank: int, attempt: int, resume: str) -> None:
    plan = check_training(recipe, folder, world_size_from_environment(), resume)
    _init_distributed(recipe)
    if rank:
        dist.barrier()
        _run_segments(recipe, folder, plan, rank, Hooks())
    else:
        with hold_run(folder.path):
            _train_as_rank_0(recipe, folder, plan, attempt)
    dist.destroy_process_group()


def _train_as_rank_0(recipe: Recipe, folder: RunFolder, plan: TrainingPlan, attempt: int) -> None:
    """What rank 0 does beside its share: the run's files, the progress line, MLflow."""
    from pipeline.tracking import Tracker

    remove_leftovers(folder.checkpoints)
    append_event(
        folder,
        "training_started",
        attempt=attempt,
        step=plan.first_step,
        world_size=plan.world_size,
        recipe_hash=recipe.hash(),
    )
    tracker = Tracker(folder, plan.manifest_hash, attempt)
    with (
        MetricsFile(folder.metrics_file, plan.first_step) as metrics_file,
        TrainingProgress(plan.first_step, recipe.train.steps, plan.config.max_passes) as progress,
    ):
        tracker.start()

        def post_step(step: int, metrics: dict[str, float]) -> None:
            metrics_file.append(step, metrics)
            progress.show(step, metrics)

        dist.barrier()
        try:
            _run_segments(recipe, folder, plan, 0, Hooks(post_step, lambda: tracker.run_id))
        except BaseException as error:
            append_event(folder, "training_failed", attempt=attempt, error=str(error).partition("\n")[0])
            tracker.finish("FAILED")
            raise
    append_event(folder, "training_finished", attempt=attempt, step=recipe.train.steps)
    tracker.finish("FINISHED")


def _run_segments(recipe: Recipe, folder: RunFolder, plan: TrainingPlan, rank: int, hooks: Hooks) -> None:
    """Every segment that is left, each with an engine of its own; collective."""
    train = recipe.train
    checkpoint = plan.resume_from
    with (
        RowReader(folder.shards, plan.manifest, "train") as reader,
        TrainingBatches(
            reader, recipe.seed, plan.manifest_hash, rank, plan.world_size, train.micro_batch, train.global_batch
        ) as batches,
    ):
        for segment in segments(train.phases):
            step = checkpoint.step if checkpoint else 0
            if step >= segment.end_step:
                continue
            if checkpoint is not None and checkpoint.state.trained != segment.trained:
                # Another set of parameters: weights go on, the optimizer starts anew.
                engine = build_engine(recipe, load_model(checkpoint).train(), segment.trained, plan.world_size)
            else:
                engine = build_engine(recipe, start_model(recipe).train(), segment.trained, plan.world_size)
                if checkpoint is not None:
                    engine.load_checkpoint(str(folder.checkpoints), tag=checkpoint.name)
            save = Saver(recipe, folder.checkpoints, plan, segment, hooks.run_id)
            if checkpoint is None:
                save(engine, 0)
            train_segment(engine, recipe, plan, segment, step, batches, rank, hooks.post_step, save)
            engine.destroy()
            checkpoint = find_checkpoint(folder.checkpoints)


def _init_distributed(recipe: Recipe) -> None:
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
    if int(os.environ["RANK"]) == 0:
        backend = "NCCL" if on_gpu else "gloo on the CPU"
        console.print(f"train: {dist.get_world_size()} ranks over {backend}, DeepSpeed {deepspeed.__version__}")


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # A failed rank must not wait for the others in an exit handler: they may be waiting for it.
    os._exit(code)
