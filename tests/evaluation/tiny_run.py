"""A run folder as the stages before leave it: real shards and tokenizer, and a real checkpoint, made in seconds."""

from __future__ import annotations

import math
import shutil
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pipeline.checkpoint import MARKER, STATE_FILE, Checkpoint, TrainerState, checkpoint_name, find_checkpoint
from pipeline.data.manifest import manifest_hash, read_manifest
from pipeline.durable import write_json, write_text
from pipeline.model import AdaPonderForCausalLM
from pipeline.recipe_reader import parse_recipe
from pipeline.run_folder import RunFolder
from pipeline.training.model_start import start_model
from pipeline.versions import installed_versions
from tests.conftest import make_text_folder, tiny_recipe
from tokenization.stage import tokenize


def make_run(root: Path, **sections: dict) -> RunFolder:
    """Two sources' shards under `root`, tokenized by the real stage; `sections` replace keys of its sections."""
    content = tiny_recipe("tiny", make_text_folder(root / "words", 40))
    more = make_text_folder(root / "more", 20, seed=1)
    source = {"kind": "text", "name": "more words", "path": str(more), "validation_share": 0.3}
    content["tokenize"]["sources"].append(source)
    for name, changed in sections.items():
        content[name] = {**content.get(name, {}), **changed}
    folder = RunFolder(root / "runs", parse_recipe(content, "tiny"))
    tokenize(folder.recipe, folder, "adaponder tokenize tiny")
    folder.write_recipe()
    return folder


def copy_run(run: RunFolder, root: Path) -> RunFolder:
    """The run, shards and all, in another folder of runs."""
    folder = replace(run, root=root)
    shutil.copytree(run.path, folder.path)
    folder.write_recipe()
    return folder


def make_model(folder: RunFolder) -> AdaPonderForCausalLM:
    """The recipe's untrained network, with gates that halt some tokens after every pass."""
    model: Any = start_model(folder.recipe).eval()
    threshold = math.log(model.config.halt_threshold / (1 - model.config.halt_threshold))
    with torch.no_grad():
        for gate in model.gates:
            gate.logit.weight.normal_(std=1.5)
            gate.logit.bias.fill_(threshold + 1.0)
    return model


def write_checkpoint(folder: RunFolder, model: AdaPonderForCausalLM, step: int = 20) -> Checkpoint:
    """The network as a complete checkpoint in DeepSpeed's layout without ZeRO."""
    path = folder.checkpoints / checkpoint_name(step)
    path.mkdir(parents=True)
    torch.save({"module": model.state_dict()}, path / "mp_rank_00_model_states.pt")
    model.config.save_pretrained(path)
    state = TrainerState(
        step=step,
        rows=8 * step,
        tokens=8 * 32 * step,
        phase="halting",
        trained="all",
        seed=folder.recipe.seed,
        recipe=folder.recipe.resolved(),
        recipe_hash=folder.recipe.hash(),
        manifest_hash=manifest_hash(read_manifest(folder.shards)),
        mlflow_run_id=None,
        save_id=uuid.uuid4().hex,
        world_size=1,
        zero_stage=0,
        precision="fp32",
        versions=installed_versions(),
    )
    write_text(path / STATE_FILE, state.model_dump_json(indent=2))
    write_json(path / MARKER, {"files": {file.name: file.stat().st_size for file in path.iterdir()}})
    return find_checkpoint(folder.checkpoints, path.name)
