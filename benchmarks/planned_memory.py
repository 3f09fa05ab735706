"""What `adaponder plan` says of a rank's memory beside what real trainings take, on the CPU.

    python -m benchmarks.planned_memory [--ranks 1 2] [--only quickstart] [--strategies zero1] [--output FILE]

Each line of JSON is a network under a strategy. The trainings run under torchrun in processes of their own
(`benchmarks.measured_memory`), on random tokens, two steps each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from launch.plan.layouts import Planner
from launch.plan.network import planned_config
from pipeline.recipe import Recipe
from pipeline.recipe_reader import read_recipe
from pipeline.strategy_file import read_strategy

STRATEGIES = ("zero0", "zero1", "zero2", "zero3")
NETWORKS = {
    "quickstart": ["train.global_batch=8"],
    "70m": [
        *("model.backbone.vocab_size=50304", "model.backbone.hidden_size=512", "model.backbone.num_attention_heads=8"),
        *("model.backbone.intermediate_size=2048", "model.backbone.num_hidden_layers=6"),
        *("tokenize.seq_len=64", "train.micro_batch=1", "train.global_batch=2"),
    ],
}
"""What is set in the quickstart's recipe: its own network, and Pythia-70M's shape with short rows."""
_SMALL = ["model.backbone.hidden_size=32", "model.backbone.intermediate_size=64", "train.global_batch=8"]
_SECONDS = 280


def recipes_of(network: str, strategies: Sequence[str] = STRATEGIES) -> dict[str, Recipe]:
    """A recipe for each strategy."""
    return {
        strategy: read_recipe("quickstart", [*NETWORKS[network], f"train.strategy={strategy}"])
        for strategy in strategies
    }


def predicted(recipe: Recipe, ranks: int) -> tuple[int, dict[str, int]]:
    """The plan's peak of a rank and the high points of a step, bytes."""
    planner = Planner(recipe, planned_config(recipe)[0], on_gpu=False, memory_bytes=None)
    train = recipe.train
    memory = planner.memory(read_strategy(train.strategy), train.activation_checkpointing, ranks, train.micro_batch)
    return memory.peak, memory.moments


def compared(network: str, ranks: int, strategies: Sequence[str] = STRATEGIES) -> Iterator[dict[str, Any]]:
    """Prediction and measurement for each strategy."""
    recipes = recipes_of(network, strategies)
    found = measure(recipes, ranks)
    for strategy, recipe in recipes.items():
        peak, moments = predicted(recipe, ranks)
        # The rank that took most; ZeRO's parts are of one size.
        taken = max(found[strategy], key=lambda one: max(one.values()))
        yield {
            "network": network,
            "strategy": strategy,
            "ranks": ranks,
            "predicted_megabytes": round(peak / 1e6, 1),
            "measured_megabytes": round(max(taken.values()) / 1e6, 1),
            "predicted_over_measured": round(peak / max(taken.values()), 3),
            "predicted": {moment: round(size / 1e6, 1) for moment, size in moments.items()},
            "measured": {moment: round(size / 1e6, 1) for moment, size in taken.items()},
        }


def measure(recipes: dict[str, Recipe], ranks: int) -> dict[str, list[dict[str, int]]]:
    """Peaks of each rank by recipe and part, bytes; small networks run before, so that all code is loaded."""
    warm = {f"warm {name}": read_recipe("quickstart", [*_SMALL, f"train.strategy={name}"]) for name in recipes}
    with tempfile.TemporaryDirectory() as folder:
        listed, out = Path(folder) / "recipes.json", Path(folder) / "found.json"
        listed.write_text(json.dumps({name: recipe.resolved() for name, recipe in (warm | recipes).items()}))
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)),
            *("--module", "benchmarks.measured_memory", str(out), str(listed)),
        ]
        hidden = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
        done = subprocess.run(
            command,
            env={**hidden, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"the trainings failed:\n{done.stdout[-2000:]}{done.stderr[-6000:]}")
        return json.loads(out.read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description="Predicted and measured memory of trainings on the CPU.")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", choices=NETWORKS)
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=STRATEGIES)
    parser.add_argument("--output", type=Path, help="file that the lines go to as well")
    chosen = parser.parse_args()
    lines = []
    for network in [chosen.only] if chosen.only else NETWORKS:
        for ranks in chosen.ranks:
            for line in compared(network, ranks, chosen.strategies):
                lines.append(json.dumps(line))
                print(lines[-1], flush=True)
    if chosen.output:
        chosen.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
