"""The stage `evaluate`: one checkpoint against one suite; metrics.json last, so that a folder with it is whole."""

from __future__ import annotations

import shutil
from typing import Any

from pipeline.checkpoint import find_checkpoint, require_same_manifest
from pipeline.console import console
from pipeline.data.manifest import manifest_hash, read_manifest
from pipeline.durable import PARTIAL_SUFFIX, repair_folder, replace_folder, write_text
from pipeline.errors import WorldError
from pipeline.evaluation.identity import identify
from pipeline.evaluation.judging_lock import only_judge
from pipeline.evaluation.metrics import Metrics
from pipeline.evaluation.standing import note_told, read_found
from pipeline.evaluation.subject import Subject
from pipeline.evaluation.suite import METRICS_NAME, Suite
from pipeline.evaluation.suites import suite_named
from pipeline.evaluation.validation import VALIDATION
from pipeline.recipe import Recipe
from pipeline.reporting.stage import report_checkpoint
from pipeline.run_folder import RunFolder
from pipeline.training.stopping import ends_on_signals


def evaluate(recipe: Recipe, folder: RunFolder, checkpoint_name: str = "latest") -> Metrics:
    """`evaluate_suite` on the validation sets, which every run has."""
    return evaluate_suites(recipe, folder, checkpoint_name, [VALIDATION])[VALIDATION]


@ends_on_signals("evaluate")
def evaluate_suites(recipe: Recipe, folder: RunFolder, checkpoint_name: str, names: list[str]) -> dict[str, Any]:
    """Evaluate a checkpoint of the run by these suites; what each found, by its name.

    metrics.json and figures go to evaluation/CHECKPOINT/SUITE/ and to MLflow, a report of all that stands there to
    evaluation/CHECKPOINT/report.html. In fp32 with the training's master
    weights, whatever the training's precision, on a GPU where there is one. What was evaluated before is not done
    again; an evaluation that stands gives way to a whole one only. Raises `UserError` for a checkpoint, suite or
    shards that do not fit, `WorldError` naming the file that cannot be read or written.
    """
    suites = [suite_named(name) for name in names]
    settings = [suite.settings(recipe) for suite in suites]  # what is wrong with any is told before the first is run
    try:
        checkpoint = find_checkpoint(folder.checkpoints, checkpoint_name)
        folder.open_shards()
        manifest = read_manifest(folder.shards)
        require_same_manifest(checkpoint, manifest_hash(manifest), folder.shards)
        subject = Subject(recipe, folder, checkpoint, manifest)
        with only_judge(folder.evaluations(checkpoint.name)):
            pairs = zip(suites, settings, strict=True)
            found = {suite.name: _evaluate(subject, suite, chosen) for suite, chosen in pairs}
            report_checkpoint(subject)
        return found
    except OSError as error:
        raise WorldError(f"evaluate: {error.filename or folder.path}: {error.strerror or error}") from error


def _evaluate(subject: Subject, suite: Suite, settings: dict[str, Any]) -> Any:
    # Tracking is imported here, not above: `adaponder --help` and the other stages need not load it.
    from pipeline.tracking import log_evaluation

    folder, checkpoint = subject.folder, subject.checkpoint
    output = folder.evaluation(checkpoint.name, suite.name)
    repair_folder(output)
    identity = identify(checkpoint, suite.name, settings)
    found = read_found(output, suite.found)
    if found is not None and found.identity == identity:
        console.print(f"evaluate: {suite.name} of {checkpoint.name} stands already, nothing to do ({output})")
    else:
        partial = output.with_name(output.name + PARTIAL_SUFFIX)
        if partial.exists():  # one that was cut short
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
        found = suite.judge(subject, identity, partial)
        write_text(partial / METRICS_NAME, found.model_dump_json(indent=2) + "\n")
        replace_folder(partial, output)
        for table in suite.tables(found):
            console.print(table)
        console.print(f"evaluate: {output}")
    if log_evaluation(folder, checkpoint, suite.name, suite.named(found, subject), output, suite.reads(found, subject)):
        note_told(output, identity)
    return found
