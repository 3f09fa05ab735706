"""The stage `report`: pages for people, made anew when what they tell has changed.

evaluation/step-00001000/report.html, report.md   a checkpoint
evaluation/report.html, report.md                 the run; report-figures/ has its curves for report.md
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.markup import escape

from pipeline.checkpoint import complete_folders, find_checkpoint, require_same_manifest
from pipeline.console import console
from pipeline.data.manifest import manifest_hash, read_manifest
from pipeline.durable import PARTIAL_SUFFIX, repair_folder, replace_folder, whole_file
from pipeline.errors import UserError, WorldError
from pipeline.evaluation.figure import DPI
from pipeline.evaluation.subject import Subject
from pipeline.recipe import Recipe
from pipeline.reporting.checkpoint_report import checkpoint_report, content_of_checkpoint
from pipeline.reporting.content import Report
from pipeline.reporting.curves import Course, Curve, curves
from pipeline.reporting.judged import Judged, judged_baseline, judged_checkpoints
from pipeline.reporting.origin import tracked_run
from pipeline.reporting.run_report import content_of_run, run_report
from pipeline.reporting.sample_text import SAMPLE_NAME, sample_text
from pipeline.reporting.standing import standing_in
from pipeline.reporting.training_curve import training_curve
from pipeline.reporting.writing import HTML_NAME, MARKDOWN_NAME, stands, write_report
from pipeline.run_folder import RunFolder

FIGURES_NAME = "report-figures"


def report(recipe: Recipe, folder: RunFolder, checkpoint_name: str | None = None) -> None:
    """Report a checkpoint of the run, the newest evaluated one if none is named, and the run.

    Raises `UserError` where nothing was evaluated, or a baseline was not; `WorldError` naming the file that cannot be
    read or written.
    """
    evaluated_baselines(recipe, folder)  # what is wrong with any is told before anything is made
    names = [each.name for each in _judged(folder)]
    if checkpoint_name in (None, "latest"):
        # Retention may have removed some that were evaluated; their reports stand from before.
        there = {path.name for path in complete_folders(folder.checkpoints)}
        checkpoint_name = next((name for name in reversed(names) if name in there), None)
    elif checkpoint_name not in names:
        raise UserError(f"{checkpoint_name} of {folder.path} has no evaluation to report: {', '.join(names)} have one")
    if checkpoint_name is not None:
        with _files_named(folder):
            checkpoint = find_checkpoint(folder.checkpoints, checkpoint_name)
            folder.open_shards()
            manifest = read_manifest(folder.shards)
            require_same_manifest(checkpoint, manifest_hash(manifest), folder.shards)
            report_checkpoint(Subject(recipe, folder, checkpoint, manifest))
    report_run(recipe, folder)


def report_checkpoint(subject: Subject) -> Path:
    """Write the checkpoint's report, if what it tells has changed, and log it; returns the page's path.

    Raises OSError or `WorldError` naming what cannot be read or written.
    """
    # Tracking is imported here, not above: `adaponder --help` and the other stages need not load it.
    from pipeline.tracking import log_report

    folder, checkpoint = subject.folder, subject.checkpoint
    output = folder.evaluations(checkpoint.name)
    standings, wrong = standing_in(output)
    # Evaluations of other weights that once had this step are none of this checkpoint.
    standings = [each for each in standings if each.identity.save_id == checkpoint.state.save_id]
    mlflow_run = checkpoint.state.mlflow_run_id or tracked_run(folder)
    content = content_of_checkpoint(subject, standings, wrong, mlflow_run)
    for line in wrong:
        console.print(f"[yellow]report: left out: {escape(line)}[/yellow]")
    if stands(output, content) and (output / SAMPLE_NAME).is_file():
        console.print(f"report: that of {checkpoint.name} stands already, nothing to do ({output / HTML_NAME})")
    else:
        sample = sample_text(subject, output)
        write_report(output, checkpoint_report(subject, standings, wrong, sample, mlflow_run, content))
        console.print(f"report: {output / HTML_NAME}")
    files = {output / HTML_NAME: "", output / MARKDOWN_NAME: ""}
    # report.md shows these; the suites' other files are with their own child runs.
    files |= {path: each.suite for each in standings for path in each.images()}
    log_report(folder, checkpoint.name, content, files)
    return output / HTML_NAME


def evaluated_baselines(recipe: Recipe, folder: RunFolder) -> list[Judged]:
    """Those that the recipe names; `UserError` for one without an evaluation."""
    return [judged_baseline(section, folder.root) for section in recipe.evaluate.baselines]


def report_run(recipe: Recipe, folder: RunFolder) -> Path:
    """Write the run's report, if what it tells has changed, and log it; returns the page's path. Raises as `report`."""
    with _files_named(folder):
        return _report_run(recipe, folder, _judged(folder), evaluated_baselines(recipe, folder))


def _judged(folder: RunFolder) -> list[Judged]:
    judged = judged_checkpoints(folder)
    if not judged:
        raise UserError(f"{folder.path} has no evaluation to report: run `adaponder evaluate` first")
    return judged


@contextmanager
def _files_named(folder: RunFolder) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WorldError(f"report: {error.filename or folder.path}: {error.strerror or error}") from error


def _report_run(recipe: Recipe, folder: RunFolder, judged: Sequence[Judged], baselines: Sequence[Judged]) -> Path:
    from pipeline.tracking import log_report

    output, figures = folder.evaluated, folder.evaluated / FIGURES_NAME
    course = Course(
        run=recipe.name,
        checkpoints=judged,
        baselines=baselines,
        tokens_per_step=recipe.tokens_per_step,
        max_passes=recipe.model.max_passes,
        trained=training_curve(folder.metrics_file, judged[-1].step),
    )
    mlflow_run = tracked_run(folder)
    content = content_of_run(course, mlflow_run)
    repair_folder(figures)
    if stands(output, content) and figures.is_dir():
        console.print(f"report: that of the run stands already, nothing to do ({output / HTML_NAME})")
    else:
        chosen = curves(course)
        _draw(chosen, figures)
        drawn = [(curve, figures / curve.file) for curve in chosen]
        made: Report = run_report(course, drawn, mlflow_run, content)
        write_report(output, made)
        console.print(f"report: {output / HTML_NAME}")
    files = {output / HTML_NAME: "", output / MARKDOWN_NAME: ""}
    log_report(folder, "run", content, files | dict.fromkeys(sorted(figures.iterdir()), FIGURES_NAME))
    return output / HTML_NAME


def _draw(chosen: Sequence[Curve], figures: Path) -> None:
    partial = figures.with_name(figures.name + PARTIAL_SUFFIX)
    if partial.exists():  # of one that was cut short
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    for curve in chosen:
        with whole_file(partial / curve.file) as file:
            curve.draw().savefig(file, format="png", dpi=DPI)
    replace_folder(partial, figures)
