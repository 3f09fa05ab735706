"""A study: a recipe that all members share, members that differ from it in few settings, and seeds."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import UserError
from pipeline.model.flops import mean_keys, training_work
from pipeline.network_config import model_config
from pipeline.recipe import Recipe
from pipeline.recipe_reader import parse_recipe, read_recipe

Phases = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]
"""A member's phases from those of the shared recipe."""
CONTINUED_SEED = 1000
"""Added to the seed of trainings that go on from another's weights, so that they read the rows in another order."""


@dataclass(frozen=True)
class Member:
    """One kind of network or training."""

    name: str
    """In file names."""
    title: str
    """In tables and legends."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the recipe's model section."""
    phases: Phases = lambda shared: shared
    lr_share: float = 1.0
    """Its peak LR over the shared recipe's."""
    schedule: Mapping[str, Any] | None = None
    """Of its LR over all its steps; None: the shared recipe's."""
    branch_of: str | None = None
    """The member whose first phase this one shares: it goes on from that phase's checkpoint, optimizer included. What
    its network differs in does nothing as long as nothing halts."""
    weights_of: str | None = None
    """The member from whose last weights this one starts, with a fresh optimizer."""
    compute_of: Member | None = None
    """The member whose training compute this one spends: so many more steps than its phases say, by what a token costs
    that one and the member that `weights_of` names."""
    suites: Sequence[str] = ("validation",)
    judged_at_start: bool = False
    """Whether its weights before the first step are judged too."""

    @property
    def needs(self) -> list[str]:
        """Names of the members that have to be trained before."""
        return [other for other in (self.branch_of, self.weights_of) if other]


@dataclass(frozen=True)
class Training:
    """A member under one seed: a run of its own."""

    member: Member
    seed: int

    @property
    def name(self) -> str:
        return run_name(self.member.name, self.seed)

    @property
    def needs(self) -> list[str]:
        """Names of the runs that have to be finished before."""
        return [run_name(other, self.seed) for other in self.member.needs]


@dataclass(frozen=True)
class Study:
    """Members and seeds over one recipe, in a folder of runs."""

    recipe: str
    """A file."""
    root: Path
    """Folder of all runs."""
    members: Sequence[Member]
    seeds: Sequence[int]
    data: str | None = None
    """A folder of text files, or a file of JSON lines, in the place of the recipe's own."""

    @property
    def trainings(self) -> list[Training]:
        return [Training(member, seed) for seed in self.seeds for member in self.members]

    @property
    def data_recipe(self) -> Recipe:
        """The run that makes the shards; its seed is the recipe's own, so that all members read the same rows."""
        shared = read_recipe(self.recipe)
        content: dict[str, Any] = {**shared.resolved(), "name": "data"}
        if self.data is not None:
            content["tokenize"]["sources"] = [_source(Path(self.data))]
        return parse_recipe(content, self.recipe)

    def trunk(self, training: Training) -> Training:
        """The training that this one needs first: what it branches from, or whose weights it takes."""
        return next(each for each in self.trainings if each.name == training.needs[0])

    def weights(self, run: str) -> Path:
        """Where a run's last weights lie for others to start from."""
        return self.root / run / "weights"

    def recipe_of(self, training: Training) -> Recipe:
        """The whole recipe of a run. Raises `UserError` where the member's settings contradict the shared ones."""
        member = training.member
        content = copy.deepcopy(self.data_recipe.resolved())
        content["name"] = training.name
        content["seed"] = training.seed + (CONTINUED_SEED if member.weights_of else 0)
        content["data"]["shards"] = str(self.root / "data" / "shards")
        content["model"] |= member.model
        if member.weights_of:
            content["model"] |= {"start": "weights", "backbone": str(self.weights(training.needs[-1]))}
        content["train"]["phases"] = member.phases(content["train"]["phases"])
        if member.compute_of:
            origin = self.trunk(training).member
            times = self._token_work(member.compute_of, training.seed) / self._token_work(origin, training.seed)
            for phase in content["train"]["phases"]:
                phase["steps"] = round(times * phase["steps"])
        content["train"]["optimizer"]["peak_lr"] *= member.lr_share
        if member.schedule:
            content["train"]["optimizer"]["schedule"] = dict(member.schedule)
        return parse_recipe(content, f"{self.recipe}, {member.name}")

    def _token_work(self, member: Member, seed: int) -> float:
        """Multiply-accumulates of a token in training."""
        recipe = self.recipe_of(Training(member, seed))
        return training_work(model_config(recipe), mean_keys(recipe.tokenize.seq_len)).model.total

    def recipe_file(self, training: Training) -> Path:
        return self.root / "recipes" / f"{training.name}.yaml"

    def write_recipe(self, training: Training) -> Path:
        """The run's recipe as a file."""
        path = self.recipe_file(training)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(self.recipe_of(training).resolved(), sort_keys=False), encoding="utf-8")
        return path


def run_name(member: str, seed: int) -> str:
    return f"{member}-seed{seed}"


def _source(path: Path) -> dict[str, Any]:
    if path.is_dir():
        return {"kind": "text", "name": path.name, "path": str(path), "include": ["**/*"], "validation_share": 0.05}
    if path.is_file():
        return {"kind": "jsonl", "name": path.name, "train": [str(path)], "validation_share": 0.05}
    raise UserError(f"--data {path}: neither a folder of text files nor a file of JSON lines")
