"""Time of this project's training steps over those of a plain PyTorch loop on the same network.

    python -m benchmarks.training_loop
    python -m benchmarks.training_loop --ranks 2

With several ranks, one thread each, it is ZeRO 1 over torch's DistributedDataParallel.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.loader import make_shards
from benchmarks.measurement import Report, arguments, interleaved, parsed, ratios, spread
from benchmarks.shapes import config_of
from benchmarks.training_loop_sides import PlainTraining, ProjectTraining, rows_in_memory
from pipeline.console import console
from pipeline.recipe import Recipe
from pipeline.recipe_reader import read_recipe
from pipeline.run_folder import RunFolder
from pipeline.training.checks import check_training
from pipeline.training.rank import init_distributed
from pipeline.training.stopping import StopSignals

FOLDER_VARIABLE = "TRAINING_LOOP_FOLDER"
"""Where the ranks find the shards and leave what a training writes."""
BOUND, BOUND_RANKS, DATA_WAIT_BOUND = 1.03, 1.15, 0.01
ROWS_PER_CHUNK, CHUNKS = 64, 8


def main() -> None:
    parser = arguments("Time of a step of this project over that of a plain PyTorch loop.")
    parser.set_defaults(device="cpu")
    parser.add_argument("--ranks", type=int, default=1, help="processes; with several, ZeRO 1 over torch's DDP")
    parser.add_argument("--rows", type=int, default=1, help="rows of a micro-batch")
    parser.add_argument("--tokens", type=int, default=256, help="tokens a row")
    parser.add_argument("--accumulation", type=int, nargs="+", default=[1, 4], help="micro-batches a step and rank")
    parser.add_argument("--steps", type=int, default=1, help="steps of a run")
    parser.add_argument("--log-every-steps", type=int, default=1, help="as in the recipe")
    parser.add_argument("--strategy", default="zero1", help="as in the recipe")
    chosen = parsed(parser)
    if chosen.dtype != "float32" or chosen.device != "cpu":
        parser.error("this benchmark runs in float32 on a CPU: --dtype float32 --device cpu")
    if chosen.steps % chosen.log_every_steps:
        parser.error(f"--steps {chosen.steps}: a multiple of --log-every-steps {chosen.log_every_steps}")
    if "RANK" in os.environ:
        _rank(chosen, Path(os.environ[FOLDER_VARIABLE]))
        return
    with tempfile.TemporaryDirectory(prefix="training-loop-") as name:
        folder = Path(name)
        make_shards(folder / "shards", folder / "flat", CHUNKS, ROWS_PER_CHUNK, chosen.tokens, 1 << 30)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(chosen.ranks)]
        threads = max(1, len(os.sched_getaffinity(0)) // chosen.ranks)
        environment = {
            **os.environ,
            FOLDER_VARIABLE: name,
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(threads),
            "DS_ACCELERATOR": "cpu",
            "CUDA_VISIBLE_DEVICES": "",
        }
        done = subprocess.run(
            [*command, "--module", "benchmarks.training_loop", *sys.argv[1:]], env=environment, check=False
        )
    raise SystemExit(done.returncode)


def _rank(chosen: argparse.Namespace, folder: Path) -> None:
    """One rank's part of the benchmark; rank 0 reports."""
    logging.disable(logging.WARNING)
    console.stderr = True
    signals = StopSignals()
    init_distributed(_recipe(chosen, folder, chosen.accumulation[0]))
    sizes = {name: getattr(chosen, name) for name in ("rows", "tokens", "ranks", "steps", "log_every_steps")}
    report = Report("training_loop", chosen, sizes) if dist.get_rank() == 0 else None
    for accumulation in chosen.accumulation:
        _measure(report, chosen, folder, accumulation, signals)
    if report is not None:
        report.close()
    dist.barrier()
    dist.destroy_process_group()


def _measure(report: Report | None, chosen: Any, folder: Path, accumulation: int, signals: StopSignals) -> None:
    """A line for each of the two sides; collective."""
    recipe = _recipe(chosen, folder, accumulation)
    run = RunFolder(folder / "runs", recipe)
    plan = check_training(recipe, run, chosen.ranks, "never")
    ours, plain = chosen.strategy, "plain loop" if chosen.ranks == 1 else "DistributedDataParallel"
    plain_training = PlainTraining(
        recipe, plan, rows_in_memory(recipe, run, plan, chosen.steps * (chosen.rounds + 1) + 1)
    )
    waited: list[float] = []
    with ProjectTraining(recipe, run, plan, signals) as training:

        def take() -> None:
            before = training.batches.waited_seconds
            training.take(chosen.steps)
            waited.append(training.batches.waited_seconds - before)

        seconds = interleaved(
            {ours: _together(take), plain: _together(lambda: plain_training.take(chosen.steps))},
            chosen.rounds,
            chosen.device,
        )
        sent = {ours: _sent(lambda: training.take(1)), plain: _sent(lambda: plain_training.take(1))}
        difference = max(abs(a - b) for a, b in zip(training.losses, plain_training.losses, strict=True))
    if report is None:
        return
    where = f"{chosen.ranks} {'ranks' if chosen.ranks > 1 else 'rank'}, accumulation {accumulation}"
    ratio, bound = ("plain_loop", BOUND) if chosen.ranks == 1 else ("distributed_data_parallel", BOUND_RANKS)
    for name, times in seconds.items():
        figures: dict[str, Any] = {"seconds_a_step": spread([one / chosen.steps for one in times])}
        if name == ours:
            figures |= {
                f"time_over_{ratio}": spread(ratios(times, seconds[plain])),
                "bound": bound,
                "data_wait_share": spread(ratios(waited[1:], times)),
                "data_wait_bound": DATA_WAIT_BOUND,
                "largest_loss_difference": difference,
            }
        report.line(f"{name}, {where}", **figures, handed_to_collectives_in_a_step=sent[name])


def _together(run: Callable[[], None]) -> Callable[[], None]:
    """`run`, over when it is over on every rank."""

    def together() -> None:
        run()
        dist.barrier()

    return together


def _sent(step: Callable[[], None]) -> dict[str, dict[str, int]]:
    """What a step hands to gloo on this rank: calls and values by operation."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        step()
    found: dict[str, dict[str, int]] = {}
    for event in profile.events() or []:
        if event.name.startswith("gloo:"):
            counted = found.setdefault(event.name.removeprefix("gloo:"), {"calls": 0, "values": 0})
            counted["calls"] += 1
            counted["values"] += sum(math.prod(shape) for shape in event.input_shapes)
    return found


def _recipe(chosen: Any, folder: Path, accumulation: int) -> Recipe:
    """The shipped recipe at the chosen shape and sizes, in fp32."""
    config = config_of(chosen.shape)
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    backbone = ", ".join(f"{name}: {getattr(config, name)}" for name in names)
    return read_recipe(
        "pythia-70m-scratch",
        [
            f"name=accumulation-{accumulation}",
            f"seed={chosen.seed}",
            f"model.backbone={{{backbone}}}",
            f"tokenize.seq_len={chosen.tokens}",
            f"data.shards={folder / 'shards'}",
            f"train.strategy={chosen.strategy}",
            "train.precision=fp32",
            f"train.micro_batch={chosen.rows}",
            f"train.global_batch={chosen.rows * accumulation * chosen.ranks}",
            f"train.log_every_steps={chosen.log_every_steps}",
            "train.checkpoint_every_steps=1000000",
            "train.vocabulary_chunk_tokens=256",
        ],
    )


if __name__ == "__main__":
    main()
