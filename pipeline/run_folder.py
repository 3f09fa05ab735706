"""Where everything of a run lies: the one place that spells the folder names."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import yaml

from pipeline.data.shard_cache import CachedShards, cache_folder, is_url
from pipeline.data.shard_source import LocalShards, ShardSource
from pipeline.durable import write_text
from pipeline.recipe import Recipe

RUNS_VARIABLE = "ADAPONDER_RUNS"


def runs_root(given: Path | None) -> Path:
    """The folder of all runs: --runs, else ADAPONDER_RUNS, else ./runs; absolute."""
    return Path(given or os.environ.get(RUNS_VARIABLE) or "runs").absolute()


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run."""

    root: Path
    """Folder of all runs; mlflow.db lies here."""
    recipe: Recipe

    @property
    def path(self) -> Path:
        return self.root / self.recipe.name

    @property
    def recipe_file(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def shards(self) -> Path:
        """The run's shards, or those made before that the recipe points at; of a URL its folder in the cache.

        That one has manifest and tokenizer after `open_shards`, and shards for as long as there is room.
        """
        data = self.recipe.data
        return cache_folder(data.shards, data.cache) if is_url(data.shards) else self.path / data.shards

    def open_shards(self) -> ShardSource:
        """What `RowReader` reads from; every stage opens it before it looks into `shards`.

        Of a URL, manifest and tokenizer are fetched here: `UserError` and `WorldError` as `CachedShards` says.
        """
        data = self.recipe.data
        return (
            CachedShards(data.shards, self.shards, data.cache_bytes)
            if is_url(data.shards)
            else LocalShards(self.shards)
        )

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def release(self) -> Path:
        return self.path / "release"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def events_file(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def preflight_file(self) -> Path:
        """What the last preflight found."""
        return self.path / "launch" / "preflight.json"

    def system_file(self, node: int) -> Path:
        """System metrics of a node of the training, over all attempts."""
        return self.logs / f"system-node-{node:04d}.jsonl"

    @property
    def evaluated(self) -> Path:
        """A folder for each checkpoint, and the run's report."""
        return self.path / "evaluation"

    def evaluations(self, checkpoint_name: str) -> Path:
        """A folder for each suite's judgement of a checkpoint, and the checkpoint's report."""
        return self.evaluated / checkpoint_name

    def evaluation(self, checkpoint_name: str, suite: str) -> Path:
        return self.evaluations(checkpoint_name) / suite

    @property
    def evaluation_jobs(self) -> Path:
        """What `adaponder watch` has in hand (`pipeline.watching`)."""
        return self.evaluated / "jobs"

    def write_recipe(self) -> None:
        """Write the resolved recipe; it and the folder reproduce the run."""
        write_resolved_recipe(self.recipe, self.recipe_file)


def write_resolved_recipe(recipe: Recipe, path: Path) -> None:
    """Write `resolved_text`; the file has one writer at a time."""
    write_text(path, resolved_text(recipe))


def resolved_text(recipe: Recipe) -> str:
    """The recipe with every default filled in, as YAML; its hash stands in the first line."""
    text = yaml.safe_dump(recipe.resolved(), sort_keys=False, allow_unicode=True)
    return f"# Resolved recipe, sha256 {recipe.hash()}\n{text}"
