"""Everything that can be known to be wrong before the first rank starts.

The command runs these checks once for a quick, single line; each rank runs them again, since a cluster may start ranks
without the command.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal

import torch

from pipeline.checkpoint import Checkpoint, find_checkpoint, has_checkpoint, newest_whole, require_same_manifest
from pipeline.data.manifest import Manifest, manifest_hash, read_manifest
from pipeline.data.order import accumulation_steps
from pipeline.data.vocabulary import check_vocabulary
from pipeline.errors import UserError
from pipeline.model import AdaPonderConfig
from pipeline.recipe import DataSection, ModelSection, Recipe
from pipeline.run_folder import RunFolder
from pipeline.trained_parameters import check_trained
from pipeline.training.computation import check_computation
from pipeline.training.elastic import Loading, choose_loading
from pipeline.training.guards import check_guards
from pipeline.training.model_start import model_config
from pipeline.training.strategy import check_strategy

CPU_RANKS = 2
"""Ranks for `train.ranks: auto` on a machine without a GPU: enough to be a distributed run."""


@dataclass(frozen=True)
class TrainingPlan:
    """A training that may start: what the checks found out on their way."""

    world_size: int
    zero_stage: int
    manifest: Manifest
    manifest_hash: str
    config: AdaPonderConfig
    resume_from: Checkpoint | None
    loading: Loading

    @property
    def first_step(self) -> int:
        return self.resume_from.step if self.resume_from else 0


def choose_ranks(recipe: Recipe) -> tuple[int, str]:
    """Ranks on this machine, and why; `UserError` when there are fewer GPUs than the recipe asks for."""
    gpus = torch.cuda.device_count()
    wanted = recipe.train.ranks
    if wanted == "auto":
        if gpus:
            return gpus, f"one for each of {gpus} GPUs"
        return CPU_RANKS, "no GPU here, two on the CPU"
    if gpus and wanted > gpus:
        raise UserError(f"train.ranks {wanted}: this machine has {gpus} GPUs; NCCL needs one for each rank")
    return wanted, "train.ranks"


def check_recipe(
    recipe: Recipe, world_size: int, elsewhere: Literal["gpu", "cpu"] | None = None
) -> tuple[int, AdaPonderConfig]:
    """What can be checked before there are shards: returns the ZeRO stage and the network's configuration.

    elsewhere: the training will run on other machines than this one, on GPUs or CPUs; what they lack is not known here.

    Raises `UserError` with the first contradiction.
    """
    train = recipe.train
    accumulation_steps(train.micro_batch, train.global_batch, world_size)
    stage = check_strategy(recipe, here=elsewhere is None)
    check_guards(recipe, stage)
    if elsewhere is None:
        check_computation(recipe)
    else:
        check_computation(recipe, on_gpu=elsewhere == "gpu", has_flash_attn=True)
    config = model_config(recipe)
    if problem := recipe.position_problem(config.max_position_embeddings):
        raise UserError(f"{problem}, or take another backbone")
    check_trained(train.phases, config)
    return stage, config


def check_training(
    recipe: Recipe, folder: RunFolder, world_size: int, resume: str, checkpoint: str | None = None
) -> TrainingPlan:
    """Check recipe, shards and checkpoints against each other for `world_size` ranks.

    `resume` is "auto" (continue from a checkpoint), "weights" (the same with a fresh optimizer) or "never" (refuse if
    there is one). `checkpoint` is the name of the
    one that the ranks settled on; without it the newest counts that can be read and has the right sizes. Raises
    `UserError` with the first contradiction, `WorldError` when there are checkpoints and none of them is whole.
    """
    stage, config = check_recipe(recipe, world_size)
    folder.open_shards()
    manifest = read_manifest(folder.shards)
    if manifest.seq_len != recipe.tokenize.seq_len:
        raise UserError(
            f"{folder.shards} holds rows of {manifest.seq_len} tokens, tokenize.seq_len says "
            f"{recipe.tokenize.seq_len}: tokenize anew under another run name, or set it to {manifest.seq_len}"
        )
    check_vocabulary(manifest, config.vocab_size)
    digest = manifest_hash(manifest)
    resume_from = _resume_from(recipe, folder, digest, resume, checkpoint)
    loading = Loading.AS_SAVED
    if resume_from is not None:
        loading = choose_loading(resume_from, recipe, world_size, stage, resume)
    return TrainingPlan(world_size, stage, manifest, digest, config, resume_from, loading)


def _resume_from(recipe: Recipe, folder: RunFolder, digest: str, resume: str, name: str | None) -> Checkpoint | None:
    if not has_checkpoint(folder.checkpoints):
        return None
    newest = find_checkpoint(folder.checkpoints, name) if name else newest_whole(folder.checkpoints)
    if resume == "never":
        raise UserError(
            f"{folder.checkpoints} already holds {newest.name}: leave --resume at auto to continue it, or take another "
            "run name"
        )
    require_same_manifest(newest, digest, folder.shards)
    differing = _differing(newest.state.recipe, recipe.resolved())
    if differing:
        raise UserError(
            f"{newest.path} was trained with other settings: {'; '.join(differing)}: set them back, or take another "
            "run name"
        )
    if newest.step > recipe.train.steps:
        raise UserError(
            f"{newest.path} is past the recipe's {recipe.train.steps} steps: lengthen train.phases, or take another "
            "run name"
        )
    return newest


def _differing(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What may not change in mid-run: the network, and which rows a step sees."""
    # A field that the run's recipe does not know yet was at its default.
    defaults = {name: field.default for name, field in ModelSection.model_fields.items()}
    fixed = {
        "seed": lambda recipe: recipe["seed"],
        "data.shuffle": lambda recipe: recipe["data"].get("shuffle", DataSection().shuffle),
        "model": lambda recipe: {**defaults, **recipe["model"]},
        "train.global_batch": lambda recipe: recipe["train"]["global_batch"],
    }
    found = []
    for name, read in fixed.items():
        old, new = read(before), read(now)
        if isinstance(old, dict):
            found += [f"{name}.{key} {old.get(key)!r} -> {new.get(key)!r}" for key in new if old.get(key) != new[key]]
        elif old != new:
            found.append(f"{name} {old!r} -> {new!r}")
    return found


def world_size_from_environment() -> int:
    """Ranks of the job that started this process (torchrun's WORLD_SIZE)."""
    return int(os.environ["WORLD_SIZE"])
