"""The stage `release`: made beside, verified, then put in place; a release that differs is refused and changes nothing.

release.partial is the new one while it is made, release.old the one before while the two change places; a kill
between the two renames is repaired at the next start. A refused release stays in release.partial, to be looked at.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

from pipeline.checkpoint import Checkpoint, find_checkpoint, load_model, require_same_manifest
from pipeline.console import console
from pipeline.data.manifest import Manifest, manifest_hash, read_manifest
from pipeline.data.rows import RowReader
from pipeline.durable import PARTIAL_SUFFIX, fsync_folder, sha256_file, write_text
from pipeline.evaluation.metrics import Metrics, read_metrics
from pipeline.evaluation.stage import VALIDATION
from pipeline.model import AdaPonderForCausalLM
from pipeline.recipe import Recipe
from pipeline.recipe_reader import parse_recipe
from pipeline.release.export import export, model_files
from pipeline.release.model_card import Subject, model_card
from pipeline.release.provenance import (
    Provenance,
    ReleaseIdentity,
    file_hashes,
    read_provenance,
    write_provenance,
)
from pipeline.release.verification import verify
from pipeline.run_folder import RunFolder
from pipeline.versions import installed_versions

CARD_NAME = "README.md"
VERIFIED_ROWS, VERIFIED_TOKENS = 4, 256
"""Validation rows on which a release is compared, one a source, and how many tokens of each."""


def release(recipe: Recipe, folder: RunFolder, checkpoint_name: str = "latest", *, command: str) -> Path:
    """Release a checkpoint of the run as a Hugging Face folder; returns its path.

    `command` is the command line, for the provenance. A release of the same checkpoint that is whole is left as it is.
    Raises `UserError` for a checkpoint or shards that do not fit, `WorldError` when the released files do not load or
    do not compute what the training's weights compute; the release that stood before is then untouched.
    """
    # Tracking is imported here, not above: `adaponder --help` and the other stages need not load it.
    from pipeline.tracking import log_release

    checkpoint = find_checkpoint(folder.checkpoints, checkpoint_name)
    manifest = read_manifest(folder.shards)
    require_same_manifest(checkpoint, manifest_hash(folder.shards), folder.shards)
    _repair(folder.release)
    metrics = _evaluation_of(checkpoint, folder)
    identity = ReleaseIdentity(
        step=checkpoint.step,
        recipe_hash=checkpoint.state.recipe_hash,
        manifest_hash=checkpoint.state.manifest_hash,
        dtype=recipe.release.dtype,
        license=recipe.release.license,
    )
    if _stands(folder.release, identity, metrics):
        console.print(f"release: {checkpoint.name} is released already, nothing to do ({folder.release})")
    else:
        partial = folder.release.with_name(folder.release.name + PARTIAL_SUFFIX)
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
        _make(partial, folder, checkpoint, manifest, identity, metrics, command)
        _put_in_place(partial, folder.release)
        console.print(f"release: {folder.release}")
    log_release(folder, folder.release)
    return folder.release


def _make(
    partial: Path,
    folder: RunFolder,
    checkpoint: Checkpoint,
    manifest: Manifest,
    identity: ReleaseIdentity,
    metrics: Metrics | None,
    command: str,
) -> None:
    """Fill `partial` with a verified release; provenance.json comes last."""
    model = load_model(checkpoint)
    state = checkpoint.state
    parameters = sum(parameter.numel() for parameter in model.parameters())
    versions = installed_versions()
    with console.status(f"release: {checkpoint.name}, {parameters:,} parameters, {identity.dtype}") as status:
        export(model, identity.dtype, folder.shards / "tokenizer", partial)
        status.update("release: loading it in a fresh process")
        inputs = _verification_inputs(folder.shards, manifest, model)
        verification = verify(model, partial, inputs, folder.logs / "release-verification.log")
    console.print(
        f"release: loaded in a fresh process, {verification.tokens:,} tokens, "
        f"logits differ by at most {verification.largest_difference:.2g}"
    )
    subject = Subject(
        recipe=parse_recipe(state.recipe, f"of {checkpoint.path}"),
        checkpoint=checkpoint,
        config=model.config,
        parameters=parameters,
        manifest=manifest,
        metrics=metrics,
        license=identity.license,
        dtype=identity.dtype,
        transformers=versions["transformers"],
    )
    write_text(partial / CARD_NAME, model_card(subject))
    provenance = Provenance(
        name=folder.recipe.name,
        identity=identity,
        recipe=state.recipe,
        rows=state.rows,
        tokens=state.tokens,
        phase=state.phase,
        parameters=parameters,
        metrics=metrics,
        mlflow_run_id=state.mlflow_run_id,
        trained_with=state.versions,
        released_with=versions,
        command=command,
        logits_differ_by=verification.largest_difference,
        files=file_hashes(partial),
    )
    write_provenance(partial, provenance)


def _verification_inputs(shards: Path, manifest: Manifest, model: AdaPonderForCausalLM) -> torch.Tensor:
    """Token ids int64 [B, n]: the first validation row of up to four sources, or of the training set without any."""
    keys = [key for key, split in manifest.splits.items() if split.split == "validation" and split.rows] or ["train"]
    rows = []
    for key in keys[:VERIFIED_ROWS]:
        with RowReader(shards, manifest, key) as reader:
            rows.append(reader.batch([0])[0][0, : min(VERIFIED_TOKENS, model.config.max_position_embeddings)])
    return torch.stack(rows)


def _evaluation_of(checkpoint: Checkpoint, folder: RunFolder) -> Metrics | None:
    """The finished evaluation of this very checkpoint; None where there is none."""
    metrics = read_metrics(folder.evaluation(checkpoint.name, VALIDATION))
    if metrics is None:
        return None
    found = metrics.identity
    same = (found.step, found.recipe_hash, found.manifest_hash) == (
        checkpoint.step,
        checkpoint.state.recipe_hash,
        checkpoint.state.manifest_hash,
    )
    return metrics if same else None


def _stands(release_folder: Path, identity: ReleaseIdentity, metrics: Metrics | None) -> bool:
    """Whether `release_folder` is the release asked for, of today's code, with every file as it was verified."""
    provenance = read_provenance(release_folder)
    if provenance is None or provenance.identity != identity or provenance.metrics != metrics:
        return False
    code = {path.name: sha256_file(path) for path in model_files()}
    return code.items() <= provenance.files.items() and file_hashes(release_folder) == provenance.files


def _put_in_place(partial: Path, release_folder: Path) -> None:
    old = _old(release_folder)
    if release_folder.exists():
        os.replace(release_folder, old)
    os.replace(partial, release_folder)
    fsync_folder(release_folder.parent)
    if old.exists():
        shutil.rmtree(old)


def _repair(release_folder: Path) -> None:
    """Undo or finish an exchange that a kill cut in two."""
    old = _old(release_folder)
    if old.exists():
        if release_folder.exists():
            shutil.rmtree(old)
        else:
            os.replace(old, release_folder)


def _old(release_folder: Path) -> Path:
    return release_folder.with_name(release_folder.name + ".old")
