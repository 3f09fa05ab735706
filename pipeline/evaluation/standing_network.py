"""A trained network that someone points at: a checkpoint's folder, a run, or a release's folder, wherever it lies."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from pipeline.checkpoint import MARKER, POINTER, Checkpoint, find_checkpoint, load_model, require_same_manifest
from pipeline.data.manifest import manifest_hash, read_manifest
from pipeline.durable import sha256_file
from pipeline.errors import UserError, WorldError
from pipeline.model import AdaPonderConfig, AdaPonderForCausalLM
from pipeline.release.provenance import PROVENANCE_NAME, read_provenance
from pipeline.run_folder import RunFolder
from pipeline.run_status import run_of


@dataclass(frozen=True)
class StandingNetwork:
    """Something that computes, and what it was trained on."""

    name: str
    """For people: RUN/step-00001000, or a release's folder."""
    step: int
    path: Path
    tokenizer_folder: Path
    tokenizer_sha256: str
    manifest_hash: str
    """Of the shards it was trained on."""
    run: RunFolder | None
    """Where its shards are known; None for a release that lies elsewhere than in its run."""
    checkpoint: Checkpoint | None
    """None for a release."""

    @cached_property
    def model(self) -> AdaPonderForCausalLM:
        """In fp32 and evaluation mode, on a GPU where there is one. A release runs on this project's own code."""
        model = load_model(self.checkpoint) if self.checkpoint is not None else _load_release(self.path)
        torch.nn.Module.to(model, "cuda" if torch.cuda.is_available() else "cpu")  # in place
        return model.eval()

    @cached_property
    def tokenizer(self) -> Any:
        """transformers' tokenizer."""
        from transformers import AutoTokenizer

        # A release's configuration names its own code, which is not needed for the tokenizer and asked for otherwise.
        config = AdaPonderConfig.from_pretrained(self.path)
        config.auto_map = None
        return AutoTokenizer.from_pretrained(self.tokenizer_folder, config=config)


def open_network(where: str, runs: Path | None, checkpoint_name: str = POINTER) -> StandingNetwork:
    """What `where` names: a checkpoint's folder, a release's folder, or a run by its folder or name.

    checkpoint_name: which checkpoint of a run. Raises `UserError` for what is none of these, and for a run whose shards
    are others than the checkpoint's.
    """
    path = Path(where).expanduser().absolute()
    if (path / MARKER).is_file():
        return _of_checkpoint(run_of(str(path.parent.parent), runs), path.name)
    if (path / PROVENANCE_NAME).is_file():
        return _of_release(path)
    if path.parent.name == "checkpoints" and path.is_dir():
        raise UserError(f"{path} is no complete checkpoint: `adaponder checkpoint list` shows those that are")
    try:
        folder = run_of(where, runs)
    except UserError as error:
        raise UserError(
            f"{where}: neither a checkpoint's folder (RUN/checkpoints/step-...), nor a release's, nor a run's folder "
            "or name"
        ) from error
    return _of_checkpoint(folder, checkpoint_name)


def _of_checkpoint(folder: RunFolder, name: str) -> StandingNetwork:
    checkpoint = find_checkpoint(folder.checkpoints, name)
    folder.open_shards()
    manifest = read_manifest(folder.shards)
    require_same_manifest(checkpoint, manifest_hash(manifest), folder.shards)
    return StandingNetwork(
        name=f"{folder.recipe.name}/{checkpoint.name}",
        step=checkpoint.step,
        path=checkpoint.path,
        tokenizer_folder=folder.shards / "tokenizer",
        tokenizer_sha256=manifest.tokenizer.sha256,
        manifest_hash=checkpoint.state.manifest_hash,
        run=folder,
        checkpoint=checkpoint,
    )


def _of_release(path: Path) -> StandingNetwork:
    provenance = read_provenance(path)
    if provenance is None:
        raise WorldError(f"{path / PROVENANCE_NAME} is gone")
    run = None
    for parent in path.parents[:3]:  # RUN/release, or RUN/release/revisions/step1000
        if (parent / "recipe.yaml").is_file():
            run = run_of(str(parent), None)
            break
    return StandingNetwork(
        name=str(path),
        step=provenance.identity.step,
        path=path,
        tokenizer_folder=path,
        tokenizer_sha256=sha256_file(path / "tokenizer.json"),
        manifest_hash=provenance.identity.manifest_hash,
        run=run,
        checkpoint=None,
    )


def _load_release(path: Path) -> AdaPonderForCausalLM:
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        loaded: Any = AdaPonderForCausalLM.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError, json.JSONDecodeError) as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise WorldError(f"{path} cannot be loaded: {first}") from error
    model, info = loaded
    if wrong := [f"{kind} {sorted(map(str, keys))[0]}" for kind, keys in info.items() if keys]:
        raise WorldError(f"{path} does not hold the network of its config.json: {'; '.join(wrong)}")
    return model
