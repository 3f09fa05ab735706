"""A tiny recipe on text made here, and runs of the real command line in child processes with a time limit."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

# Before torch is imported, here and in all that is started from here. The networks are so small that more threads wait
# for each other, and while another process has their core they wait by counting.
os.environ.setdefault("COLUMNS", "200")  # tables of this process are not folded, wherever its folders lie
os.environ.setdefault("OMP_NUM_THREADS", "1")

WORDS = (
    "token",
    "passes",
    "gate",
    "halt",
    "depth",
    "layer",
    "think",
    "easy",
    "hard",
    "until",
    "state",
    "keys",
    "values",
)


def make_text_folder(folder: Path, documents: int, seed: int = 0) -> Path:
    """Write `documents` files of seeded words; learnable, since each word mostly follows from the one before."""
    generator = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(documents):
        word = generator.randrange(len(WORDS))
        words = []
        for _ in range(generator.randrange(60, 160)):
            words.append(WORDS[word])
            word = (word * 7 + 3) % len(WORDS) if generator.random() < 0.8 else generator.randrange(len(WORDS))
        (folder / f"{number:04d}.txt").write_text(" ".join(words) + ".\n", encoding="utf-8")
    return folder


def tiny_recipe(name: str, text: Path) -> dict:
    """Two phases of ten steps on two ranks, a network of two layers, in fp32."""
    return {
        "name": name,
        "seed": 7,
        "tokenize": {
            "tokenizer": {"train_vocab_size": 300},
            "seq_len": 32,
            "rows_per_chunk": 16,
            "sources": [{"kind": "text", "name": "words", "path": str(text), "validation_share": 0.1}],
        },
        "model": {
            "start": "scratch",
            "backbone": {
                "vocab_size": 304,
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "max_position_embeddings": 64,
            },
            "max_passes": 3,
            # Gates start at 0.953: near enough for the ponder loss to halt tokens within a few steps.
            "halt_threshold": 0.95,
            "scale_embeds": True,
        },
        "train": {
            "strategy": "zero1",
            "precision": "fp32",
            "ranks": 2,
            "micro_batch": 2,
            "global_batch": 8,
            "checkpoint_every_steps": 5,
            "timeout_seconds": 60,
            "optimizer": {"peak_lr": 3e-3},
            "phases": [
                {"name": "pondering", "steps": 10, "halting": False},
                {
                    "name": "halting",
                    "steps": 10,
                    "halting": True,
                    "ponder_weight": 0.1,
                    "ponder_fraction": 0.3,
                    "ramp_steps": 5,
                },
            ],
        },
        "evaluate": {"rows_per_source": 16, "sample_prompt": "token", "sample_tokens": 8},
        "release": {"dtype": "float32", "register_model": False},
    }


class Runs:
    """A folder of runs; `adaponder` runs the command line on a recipe written there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.recipes = root / "recipes"
        self.recipes.mkdir(parents=True, exist_ok=True)

    def write(self, recipe: dict) -> Path:
        path = self.recipes / f"{recipe['name']}.yaml"
        path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
        return path

    def command(self, stage: str, recipe: dict, *arguments: str) -> list[str]:
        return [
            *(sys.executable, "-c", "from pipeline.cli import main; main()"),
            *(stage, str(self.write(recipe)), "--runs", str(self.root), *arguments),
        ]

    def environment(self) -> dict[str, str]:
        hidden = {"MLFLOW_TRACKING_URI", "ADAPONDER_RUNS", "RANK", "WORLD_SIZE"}
        kept = {name: value for name, value in os.environ.items() if name not in hidden}
        return {**kept, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}

    def adaponder(self, stage: str, recipe: dict, *arguments: str, timeout: float = 150) -> subprocess.CompletedProcess:
        return subprocess.run(
            self.command(stage, recipe, *arguments),
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def train(self, recipe: dict) -> list[dict]:
        """Train; returns the lines of metrics.jsonl."""
        done = self.adaponder("train", recipe)
        assert done.returncode == 0, done.stdout + done.stderr
        return self.metrics(recipe["name"])

    def metrics(self, name: str) -> list[dict]:
        return [json.loads(line) for line in (self.root / name / "metrics.jsonl").read_text().splitlines()]

    def events(self, name: str) -> list[dict]:
        return [json.loads(line) for line in (self.root / name / "events.jsonl").read_text().splitlines()]

    def checkpoints(self, name: str) -> Path:
        return self.root / name / "checkpoints"


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory) -> Path:
    return make_text_folder(tmp_path_factory.mktemp("text") / "words", documents=60)


@pytest.fixture(scope="session")
def shards(runs: Runs, text_folder: Path) -> Path:
    """Shards made once by the real stage, for every recipe that points at them."""
    recipe = tiny_recipe("shards-for-all", text_folder)
    done = runs.adaponder("tokenize", recipe)
    assert done.returncode == 0, done.stdout + done.stderr
    return runs.root / recipe["name"] / "shards"


@pytest.fixture
def recipe(request, text_folder: Path, shards: Path) -> dict:
    """A tiny recipe under the test's own run name, on the shards made once."""
    name = "".join(letter if letter.isalnum() else "-" for letter in request.node.name).strip("-")
    return {**tiny_recipe(name, text_folder), "data": {"shards": str(shards)}}
