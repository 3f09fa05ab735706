"""The stage `release`: made beside, verified, then put in place; a release that differs is refused and changes nothing.

release.partial is the new one while it is made, release.old the one before while the two change places; a kill
between the two renames is repaired at the next start. Revisions of intermediate steps lie below the release and move
with it. A refused release stays in release.partial, to be looked at.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import torch

from pipeline.checkpoint import POINTER, Checkpoint, find_checkpoint, load_model, require_same_manifest
from pipeline.console import console
from pipeline.data.manifest import Manifest, manifest_hash, read_manifest
from pipeline.data.rows import RowReader
from pipeline.data.shard_source import ShardSource
from pipeline.durable import PARTIAL_SUFFIX, fsync_file, repair_folder, sha256_file, write_text
from pipeline.errors import WorldError
from pipeline.evaluation.metrics import Metrics
from pipeline.evaluation.standing import read_found
from pipeline.evaluation.validation import VALIDATION
from pipeline.model import AdaPonderForCausalLM
from pipeline.recipe import Recipe
from pipeline.recipe_reader import parse_recipe
from pipeline.release.export import export, model_files
from pipeline.release.hub import HubRepository
from pipeline.release.mirror import Mirror
from pipeline.release.model_card import Subject, model_card
from pipeline.release.provenance import (
    Provenance,
    ReleaseIdentity,
    command_without_folders,
    file_hashes,
    read_provenance,
    without_folders,
    write_provenance,
)
from pipeline.release.revision import MAIN, checkpoint_of, folder_of, put_in_place, repair
from pipeline.release.standing import wrong_files
from pipeline.release.verification import logits_of, verify
from pipeline.run_folder import RunFolder
from pipeline.versions import installed_versions

CARD_NAME = "README.md"
FIGURE_NAME = "depth.png"
"""Of the evaluation; the card shows it."""
VERIFIED_ROWS, VERIFIED_TOKENS = 4, 256
"""Validation rows on which a release is compared, one a source, and how many tokens of each."""


def release(
    recipe: Recipe,
    folder: RunFolder,
    checkpoint_name: str = POINTER,
    *,
    command: str,
    revision: str = MAIN,
    url: str | None = None,
    repo: str | None = None,
) -> Path:
    """Release a checkpoint of the run as a Hugging Face folder; returns its path.

    `command` is the command line, for the provenance. A release of the same checkpoint that is whole is left as it is.
    revision: see `pipeline.release.revision`. Then it is published where `url` (fsspec) and `repo` (hub) say.
    Raises `UserError` for a checkpoint or shards that do not fit or a place that nothing can be published to,
    `WorldError` when the released files do not load or do not compute what the weights compute that they were made
    from, a file cannot be read or written, or a place does not take what is published; the release that stood before a
    refused one is untouched.
    """
    # Tracking is imported here, not above: `adaponder --help` and the other stages need not load it.
    from pipeline.tracking import log_release, register_release

    checkpoint_name = checkpoint_of(revision, checkpoint_name)
    # What is wrong with a place is told before anything is made.
    target = Mirror(url, revision) if url is not None else None
    hub = HubRepository(repo, revision) if repo is not None else None
    place = folder_of(folder.release, revision)
    try:
        checkpoint = find_checkpoint(folder.checkpoints, checkpoint_name)
        folder.open_shards()
        manifest = read_manifest(folder.shards)
        require_same_manifest(checkpoint, manifest_hash(manifest), folder.shards)
        repair(folder.release)
        if revision != MAIN:
            repair(place)
        metrics = _evaluation_of(checkpoint, folder)
        identity = ReleaseIdentity(
            step=checkpoint.step,
            save_id=checkpoint.state.save_id,
            recipe_hash=checkpoint.state.recipe_hash,
            manifest_hash=checkpoint.state.manifest_hash,
            dtype=recipe.release.dtype,
            license=recipe.release.license,
            max_shard_bytes=recipe.release.max_shard_bytes,
        )
        if _stands(place, identity, metrics):
            console.print(f"release: {checkpoint.name} is released already, nothing to do ({place})")
        else:
            partial = place.with_name(place.name + PARTIAL_SUFFIX)
            if partial.exists():
                shutil.rmtree(partial)
            partial.mkdir(parents=True)
            _make(partial, folder, checkpoint, manifest, identity, metrics, command)
            put_in_place(partial, place)
            console.print(f"release: {place}")
        log_release(folder, place, revision)
        if recipe.release.register_model and revision == MAIN:
            register_release(folder, place)
        for target_of_files in (target, hub):
            if target_of_files is not None:
                target_of_files.publish(place)
    except OSError as error:
        raise WorldError(f"release: {error.filename or folder.path}: {error.strerror or error}") from error
    return place


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
        inputs = _verification_inputs(folder.open_shards(), manifest, model)
        trained_logits = logits_of(model, inputs)
        assert identity.max_shard_bytes is not None
        export(model, identity.dtype, folder.shards, manifest.tokenizer, partial, identity.max_shard_bytes)
        status.update("release: loading it in a fresh process")
        verification = verify(model, partial, inputs, trained_logits, folder.logs / "release-verification.log")
    console.print(
        f"release: on {verification.tokens:,} tokens, rounding to {identity.dtype} moves logits by at most "
        f"{verification.rounding_difference:.2g}, loading in a fresh process by {verification.load_difference:.2g}, "
        f"decoding from the cache there by {verification.decoding_difference:.2g}, and with every token at one depth "
        f"by {verification.depth_difference:.2g}"
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
    if metrics is not None and (drawn := folder.evaluation(checkpoint.name, VALIDATION) / FIGURE_NAME).is_file():
        shutil.copyfile(drawn, partial / FIGURE_NAME)
        fsync_file(partial / FIGURE_NAME)
        subject = dataclasses.replace(subject, figure=FIGURE_NAME)
    write_text(partial / CARD_NAME, model_card(subject))
    provenance = Provenance(
        name=folder.recipe.name,
        identity=identity,
        recipe=without_folders(state.recipe),
        rows=state.rows,
        tokens=state.tokens,
        phase=state.phase,
        parameters=parameters,
        metrics=metrics,
        mlflow_run_id=state.mlflow_run_id or _tracked_run(folder),
        trained_with=state.versions,
        released_with=versions,
        command=command_without_folders(command),
        load_difference=verification.load_difference,
        decoding_difference=verification.decoding_difference,
        rounding_difference=verification.rounding_difference,
        depth_difference=verification.depth_difference,
        files=file_hashes(partial),
    )
    # What is published is what was loaded, and the card.
    for name, sha256 in verification.hashes.items():
        if provenance.files.get(name) != sha256:
            raise WorldError(f"release refused: {partial / name} changed after it was verified")
    write_provenance(partial, provenance)


def _verification_inputs(shards: Path | ShardSource, manifest: Manifest, model: AdaPonderForCausalLM) -> torch.Tensor:
    """Token ids int64 [B, n]: the first validation row of up to four sources, or of the training set without any."""
    keys = [key for key, split in manifest.splits.items() if split.split == "validation" and split.rows] or ["train"]
    rows = []
    for key in keys[:VERIFIED_ROWS]:
        with RowReader(shards, manifest, key) as reader:
            rows.append(reader.batch([0])[0][0, : min(VERIFIED_TOKENS, model.config.max_tokens)])
    return torch.stack(rows)


def _evaluation_of(checkpoint: Checkpoint, folder: RunFolder) -> Metrics | None:
    """The finished evaluation of this very checkpoint; None where there is none."""
    evaluation = folder.evaluation(checkpoint.name, VALIDATION)
    repair_folder(evaluation)
    metrics: Metrics | None = read_found(evaluation, Metrics)
    return metrics if metrics is not None and metrics.identity.save_id == checkpoint.state.save_id else None


def _tracked_run(folder: RunFolder) -> str | None:
    """The training's MLflow run, for a checkpoint that was saved before the server had answered."""
    from pipeline.tracking.identity import read_identity

    noted = read_identity(folder)
    return noted.run_id if noted is not None else None


def _stands(release_folder: Path, identity: ReleaseIdentity, metrics: Metrics | None) -> bool:
    """Whether `release_folder` is the release asked for, of today's code, with every file as it was verified."""
    provenance = read_provenance(release_folder)
    if provenance is None or provenance.identity != identity or provenance.metrics != metrics:
        return False
    if wrong_files(release_folder):
        return False
    code = {path.name: sha256_file(path) for path in model_files()}
    return code.items() <= provenance.files.items()
