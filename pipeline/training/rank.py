"""What one rank of a training does, from its first check to its last step.

`pipeline.training.worker` is its process: arguments, logs, how it ends.
"""

from __future__ import annotations

import os
import signal
import time
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from rich.markup import escape

from pipeline.checkpoint import checkpoint_name, find_checkpoint
from pipeline.console import console
from pipeline.data.batches import TrainingBatches
from pipeline.data.rows import RowReader
from pipeline.data.shard_cache import room_note
from pipeline.durable import write_json
from pipeline.errors import WorldError
from pipeline.events import append_event
from pipeline.heavy_imports import import_deepspeed
from pipeline.recipe import Recipe
from pipeline.run_folder import RunFolder
from pipeline.tracking import Tracker
from pipeline.tracking.metrics_lines import read_metrics
from pipeline.tracking.node_monitor import NodeMonitor, node_number
from pipeline.training.agreement import from_rank_0, ranks_by_host, read_together
from pipeline.training.attempt import (
    hold_run,
    report_hang,
    report_loss,
    report_stop,
    reported_hangs,
    reported_losses,
)
from pipeline.training.checks import TrainingPlan, check_training, world_size_from_environment
from pipeline.training.computation import describe_computation
from pipeline.training.depth_control import DepthControl
from pipeline.training.elastic import what_changes
from pipeline.training.engine_start import start_engine
from pipeline.training.fallback import settle_checkpoint
from pipeline.training.gate_health import GateHealth
from pipeline.training.guards import Guards
from pipeline.training.hang_report import hang_line
from pipeline.training.loop import Hooks, train_segment
from pipeline.training.metrics_file import MetricsFile
from pipeline.training.oversight import Oversight
from pipeline.training.passed_over import PassedOver, read_passed_over
from pipeline.training.peer_watch import PeerWatch
from pipeline.training.phases import describe_phases, phase_at, segments
from pipeline.training.progress import TrainingProgress
from pipeline.training.rank_checks import check_ranks
from pipeline.training.saves_in_flight import SavesInFlight
from pipeline.training.saving import Saver, remove_leftovers
from pipeline.training.stopping import BEGAN_VARIABLE, Stopped, StopRequests, StopSignals
from pipeline.training.strategy import engine_config
from pipeline.training.watchdog import PATIENCE, Hang, Watchdog

_FINISH_SECONDS = 15.0
"""Time for MLflow after a failure: torchrun kills ranks that have not ended after 30 s."""


_SETTLE_SECONDS = 3.0
"""Ranks that stand still, or have lost another one, find it out within this time of each other."""
_COLLECTIVE_SHARE = 0.9
"""Of the collectives' own timeout: a hang is found before they give up and only say that they lost somebody."""


def init_distributed(recipe: Recipe) -> None:
    """Join the other ranks over NCCL, or over gloo on the CPU; collective."""
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    else:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    deepspeed = import_deepspeed()
    if not on_gpu:
        # DeepSpeed would compile a shared-memory all-reduce, which asks for a C++ compiler on every machine; gloo is
        # enough on a CPU.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        dist_backend="nccl" if on_gpu else "gloo",
        timeout=timedelta(seconds=recipe.train.timeout_seconds),
        verbose=False,
    )


def train_rank(recipe: Recipe, folder: RunFolder, attempt: int, resume: str, signals: StopSignals) -> None:
    """This rank's part of the training; collective. Raises `Stopped` on every rank where any is asked to stop."""
    rank, train = dist.get_rank(), recipe.train
    began = float(os.environ.get(BEGAN_VARIABLE, signals.began))
    requests = StopRequests(signals, folder.path, rank, train.stop_after_seconds, began)
    limit = min(60 * train.hang_minutes, _COLLECTIVE_SHARE * train.timeout_seconds)
    monitor = NodeMonitor(folder, node_number(os.environ), recipe.track.system_metrics_every_seconds)
    watchdog = Watchdog(limit, partial(_report_hang, folder, attempt, rank, dist.get_world_size()))
    peers = PeerWatch(train.lost_host_seconds, partial(_report_loss, folder, attempt, rank, watchdog))
    with watchdog, monitor, peers:
        if rank == 0:
            with hold_run(folder.path):
                hosts = ranks_by_host()  # none of the others goes on before all have said theirs
                _train_as_rank_0(recipe, folder, attempt, resume, requests, watchdog, peers, hosts)
        else:
            with peers.explaining():
                ranks_by_host()
                plan = _plan(recipe, folder, resume)
                _run_segments(recipe, folder, plan, Hooks(), requests, watchdog)
    dist.destroy_process_group()


def _report_hang(folder: RunFolder, attempt: int, rank: int, world_size: int, hang: Hang) -> None:
    """Leave where this rank stands; the lowest rank that can adds what all of them left to events.jsonl."""
    report_hang(folder.logs, attempt, rank, world_size, hang)
    time.sleep(_SETTLE_SECONDS)
    reports = reported_hangs(folder.logs, attempt)
    if reports[0]["rank"] == rank:
        append_event(folder, "training_hung", attempt=attempt, message=hang_line(reports))


def _report_loss(folder: RunFolder, attempt: int, rank: int, watchdog: Watchdog, line: str) -> None:
    """Leave that this rank has lost others; the lowest rank that can adds it to events.jsonl."""
    report_loss(folder.logs, attempt, rank, line)
    time.sleep(_SETTLE_SECONDS)
    losses = reported_losses(folder.logs, attempt)
    if losses[0]["rank"] == rank:
        append_event(folder, "training_failed", attempt=attempt, error=line)
    watchdog.last_words()


def _plan(recipe: Recipe, folder: RunFolder, resume: str) -> TrainingPlan:
    """Checked while rank 0 holds the run, so that no other training moves what is being looked at; collective."""
    ranks = world_size_from_environment()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    plan = read_together(lambda: check_training(recipe, folder, ranks, resume), device)
    settled = settle_checkpoint(folder, device)
    if plan.resume_from is not None and plan.resume_from.name != settled:
        plan = check_training(recipe, folder, ranks, resume, settled)
    first_step = from_rank_0(plan.first_step)
    if plan.first_step != first_step:
        raise WorldError(
            f"{folder.checkpoints}: this rank sees {checkpoint_name(plan.first_step)} as the newest checkpoint, rank 0 "
            f"sees {checkpoint_name(first_step)}: the file system is not the same for both yet"
        )
    return plan


def _train_as_rank_0(
    recipe: Recipe,
    folder: RunFolder,
    attempt: int,
    resume: str,
    requests: StopRequests,
    watchdog: Watchdog,
    peers: PeerWatch,
    hosts: dict[str, list[int]],
) -> None:
    """What rank 0 does beside its share: the run's files, the progress line, MLflow. hosts: the ranks of each."""
    leftovers = remove_leftovers(folder.checkpoints)  # first: on a full disk they may be all the room there is
    plan = _plan(recipe, folder, resume)
    if leftovers:
        append_event(folder, "leftovers_removed", checkpoints=leftovers)
    folder.write_recipe()
    write_json(folder.path / "deepspeed.json", engine_config(recipe, plan.world_size))
    started = {"step": plan.first_step, "world_size": plan.world_size, "recipe_hash": recipe.hash()}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    computation = describe_computation(recipe, device)
    append_event(folder, "training_started", attempt=attempt, **started, hosts=hosts, computation=computation)
    if plan.resume_from and (changes := what_changes(plan.resume_from, recipe, plan.world_size, plan.zero_stage)):
        changed = f"{plan.resume_from.name} goes on with {'; '.join(changes)}; loaded {plan.loading.value}"
        append_event(folder, "continued_elsewhere", attempt=attempt, message=changed)
        console.print(f"train: {changed}")
    tracker = Tracker(folder, plan.manifest_hash, attempt)
    told = "; ".join(f"{name}: {value}" for name, value in computation.items())
    console.print(f"train: {plan.world_size} ranks over {dist.get_backend()}; {told}")
    console.print(f"train: {describe_phases(recipe.train, recipe.tokens_per_step)}")
    data = recipe.data
    if note := room_note(data.shards, data.cache_bytes, data.shuffle, plan.manifest.train.shards):
        console.print(f"[yellow]{note}[/yellow]", highlight=False)
    watchdog.last_words = lambda: tracker.finish("FAILED", _FINISH_SECONDS)
    try:
        tracker.start()
        with (
            MetricsFile(folder.metrics_file, plan.first_step) as metrics_file,
            TrainingProgress(plan.first_step, recipe.train.steps, plan.config.max_passes) as progress,
        ):

            def post_step(step: int, metrics: dict[str, float]) -> None:
                metrics_file.append(step, metrics)
                progress.show(step, metrics)

            def tell(kind: str, message: str, **fields: Any) -> None:
                append_event(folder, kind, message=message, **fields)
                console.print(f"[yellow]{escape(message)}[/yellow]")

            def roll_back(passed_over: PassedOver) -> None:
                passed_over.write(folder.path)
                append_event(folder, "rolled_back", attempt=attempt, **passed_over.model_dump(mode="json"))

            hooks = Hooks(post_step, tell, roll_back, lambda: tracker.run_id)
            with peers.explaining():
                _run_segments(recipe, folder, plan, hooks, requests, watchdog)
    except Stopped as stop:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the other ranks have ended, torchrun ends what is left
        requests.clear()
        append_event(
            folder, "training_stopped", attempt=attempt, step=stop.step, requeue=stop.requeue, message=str(stop)
        )
        report_stop(folder.logs, attempt, stop)
        tracker.finish("KILLED", _FINISH_SECONDS, str(stop))
        raise
    except BaseException as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # another rank's end must not cut short what is still to be said
        append_event(folder, "training_failed", attempt=attempt, error=str(error).partition("\n")[0])
        tracker.finish("KILLED" if isinstance(error, (KeyboardInterrupt, SystemExit)) else "FAILED", _FINISH_SECONDS)
        raise
    requests.clear()  # one that came too late must not stop the next training of this folder
    append_event(folder, "training_finished", attempt=attempt, step=recipe.train.steps)
    tracker.finish("FINISHED")


def _run_segments(
    recipe: Recipe,
    folder: RunFolder,
    plan: TrainingPlan,
    hooks: Hooks,
    requests: StopRequests,
    watchdog: Watchdog,
) -> None:
    """Every segment that is left, each with an engine of its own; collective."""
    train, rank = recipe.train, dist.get_rank()
    guards = Guards(train.guards, hooks.note)
    checkpoint = plan.resume_from
    passed_over, known = from_rank_0(_left_behind(recipe, folder, plan) if rank == 0 else None)
    guards.remember(*known)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with (
        SavesInFlight(train.save_in_background, requests.saved) as saves,
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
        gate_health = GateHealth(plan.config.max_passes, hooks.note)
        depth_control = DepthControl(plan.config.max_passes, checkpoint.state.depth_control if checkpoint else None)
        oversight = Oversight(requests, watchdog, guards, gate_health, saves, depth_control)
        for segment in segments(train.phases):
            step = checkpoint.step if checkpoint else 0
            if step >= segment.end_step:
                continue
            watchdog.alive("building the engine", PATIENCE)
            oversight.stop_if_wished(step, device)
            engine, frozen = start_engine(recipe, plan, segment.trained, checkpoint, oversight, device)
            save = Saver(recipe, folder, plan, segment, hooks.run_id, frozen, saves, depth_control)
            if checkpoint is None:
                oversight.save(save, engine, 0)
            check_ranks(recipe, plan, step, passed_over.data_step(step), engine.module, segment.trained)
            train_segment(engine, recipe, plan, segment, step, batches, rank, hooks, oversight, passed_over, save)
            engine.destroy()
            checkpoint = find_checkpoint(folder.checkpoints, checkpoint_name(segment.end_step))


def _left_behind(
    recipe: Recipe, folder: RunFolder, plan: TrainingPlan
) -> tuple[PassedOver, tuple[str, list[float], list[float]]]:
    """What earlier attempts leave to this one: rows to pass over, and what the guards compare with.

    That is the phase of the last step, its losses and gradient norms, as many as were logged of the guards' window.
    """
    phase, steps_of_phase = phase_at(recipe.train.phases, max(0, plan.first_step - 1))
    window = min(recipe.train.guards.spike_window_steps, steps_of_phase + 1)
    of_window = [
        line.metrics
        for line in read_metrics(folder.metrics_file)
        if plan.first_step - window < line.step <= plan.first_step
    ]
    losses, norms = (
        [metrics[name] for metrics in of_window if name in metrics] for name in ("train/loss", "train/grad_norm")
    )
    return read_passed_over(folder.path), (phase.name, losses, norms)
