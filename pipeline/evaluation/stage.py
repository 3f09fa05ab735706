"""The stage `evaluate`: one checkpoint against one suite; metrics.json last, so that a folder with it is whole."""

from __future__ import annotations

import shutil
import time

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from pipeline.checkpoint import Checkpoint, find_checkpoint, load_model, require_same_manifest
from pipeline.console import console
from pipeline.data.manifest import Manifest, manifest_hash, read_manifest
from pipeline.data.rows import RowReader
from pipeline.durable import PARTIAL_SUFFIX, repair_folder, replace_folder
from pipeline.errors import UserError, WorldError
from pipeline.evaluation.depth import DepthSums
from pipeline.evaluation.measure import measure
from pipeline.evaluation.metrics import Identity, Measured, Metrics, bytes_of, measured, read_metrics, write_metrics
from pipeline.evaluation.plots import write_plots
from pipeline.model import AdaPonderForCausalLM
from pipeline.recipe import EvaluateSection, Recipe
from pipeline.run_folder import RunFolder
from pipeline.training.stopping import ends_on_signals

VALIDATION = "validation"


@ends_on_signals("evaluate")
def evaluate(recipe: Recipe, folder: RunFolder, checkpoint_name: str = "latest", suite: str = VALIDATION) -> Metrics:
    """Evaluate a checkpoint of the run; metrics.json and figures go to evaluation/CHECKPOINT/SUITE/ and to MLflow.

    In fp32 with the training's master weights, whatever the training's precision, on a GPU where there is one. What
    was evaluated before is not done again; an evaluation that stands gives way to a whole one only. Raises `UserError`
    for a checkpoint, suite or shards that do not fit, `WorldError` naming the file that cannot be read or written.
    """
    # Tracking is imported here, not above: `adaponder --help` and the other stages need not load it.
    from pipeline.tracking import log_evaluation

    if suite != VALIDATION:
        raise UserError(f"there is no evaluation suite {suite!r}: take {VALIDATION!r}")
    try:
        checkpoint = find_checkpoint(folder.checkpoints, checkpoint_name)
        folder.open_shards()
        manifest = read_manifest(folder.shards)
        require_same_manifest(checkpoint, manifest_hash(manifest), folder.shards)
        output = folder.evaluation(checkpoint.name, suite)
        repair_folder(output)
        identity = identify(checkpoint, recipe.evaluate, suite)
        metrics = read_metrics(output)
        if metrics is not None and metrics.identity == identity:
            console.print(f"evaluate: {checkpoint.name} is evaluated already, nothing to do ({output})")
        else:
            metrics = evaluate_model(load_model(checkpoint), folder, manifest, recipe.evaluate, identity)
            partial = output.with_name(output.name + PARTIAL_SUFFIX)
            if partial.exists():  # one that was cut short
                shutil.rmtree(partial)
            partial.mkdir(parents=True)
            write_plots(partial, metrics)
            write_metrics(partial, metrics)
            replace_folder(partial, output)
            console.print(_table(metrics))
            console.print(f"evaluate: {output}")
        log_evaluation(folder, checkpoint, suite, metrics.flat(_metric_keys(manifest)), output)
    except OSError as error:
        raise WorldError(f"evaluate: {error.filename or folder.path}: {error.strerror or error}") from error
    return metrics


def identify(checkpoint: Checkpoint, section: EvaluateSection, suite: str) -> Identity:
    """What an evaluation of this checkpoint is an evaluation of."""
    return Identity(
        suite=suite,
        checkpoint=checkpoint.name,
        step=checkpoint.step,
        save_id=checkpoint.state.save_id,
        recipe_hash=checkpoint.state.recipe_hash,
        manifest_hash=checkpoint.state.manifest_hash,
        rows_per_source=section.rows_per_source,
    )


def evaluate_model(
    model: AdaPonderForCausalLM, folder: RunFolder, manifest: Manifest, section: EvaluateSection, identity: Identity
) -> Metrics:
    """Measure a network on the first rows of every validation set of the run's shards.

    Raises `UserError` when the shards hold no validation text, `WorldError` when they cannot be read or the loss is
    not a number.
    """
    began = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.nn.Module.to(model, device)  # in place; transformers' own wrapper of it has no usable type
    model.eval()
    limit = section.rows_per_source
    rows = {
        key: split.rows if limit == "all" else min(limit, split.rows)
        for key, split in manifest.splits.items()
        if split.split == "validation"
    }
    if not sum(rows.values()):
        raise UserError(
            f"{folder.shards} holds no validation rows: set tokenize's validation files or validation_share"
        )
    sums: dict[str, DepthSums] = {}
    source = folder.open_shards()
    with _progress() as progress:
        task = progress.add_task("evaluate", total=sum(rows.values()))
        for key, count in rows.items():
            with RowReader(source, manifest, key) as reader:
                sums[key] = measure(model, reader, count, section.batch_rows, lambda n: progress.advance(task, n))
    sources: dict[str, Measured] = {}
    total, text_bytes = DepthSums(model.config.max_passes), 0.0
    for key, found in sums.items():
        split = manifest.splits[key]
        if not found.total_tokens:  # a set of a single token, or none, predicts nothing
            continue
        if not torch.isfinite(found.nll).all():
            raise WorldError(f"the loss of {identity.checkpoint} on {key} is not a number: the checkpoint is of no use")
        source = str(split.source)
        of_source = bytes_of(found.total_tokens, split.sources[source])
        sources[source] = measured(found, rows[key], of_source)
        total, text_bytes = total + found, text_bytes + of_source
    if not sources:
        raise UserError(f"{folder.shards} holds no validation text to predict: raise tokenize's validation_share")
    return Metrics(
        identity=identity,
        max_passes=model.config.max_passes,
        halting=model.config.halting,
        overall=measured(total, sum(rows.values()), text_bytes),
        sources=sources,
        seconds=round(time.monotonic() - began, 3),
        device=torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
    )


def _metric_keys(manifest: Manifest) -> dict[str, str]:
    """What each source is called in the names of metrics: the safe and distinct form that names its shards."""
    sets = manifest.splits.items()
    return {split.source: key.removeprefix("validation-") for key, split in sets if split.source is not None}


def _progress() -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("rows")
    return Progress(*columns, TimeRemainingColumn(), console=console, transient=True)


def _table(metrics: Metrics) -> Table:
    identity = metrics.identity
    table = Table(title=f"{identity.suite}, {identity.checkpoint}", title_justify="left")
    table.add_column("source")
    for name in ("tokens", "loss (nats)", "perplexity", "bits a byte", "mean depth"):
        table.add_column(name, justify="right")
    for number, (name, found) in enumerate([*sorted(metrics.sources.items()), ("all", metrics.overall)]):
        if number == len(metrics.sources):
            table.add_section()
        numbers = (
            f"{found.loss:.4f}",
            f"{found.perplexity:,.2f}",
            f"{found.bits_per_byte:.4f}",
            f"{found.mean_depth:.3f}",
        )
        table.add_row(name, f"{found.tokens:,}", *numbers)
    return table
