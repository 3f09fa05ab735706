"""The report of one checkpoint, from what stands in evaluation/CHECKPOINT."""

from __future__ import annotations

from typing import Any

from pipeline.durable import sha256_json
from pipeline.evaluation.subject import Subject
from pipeline.reporting.captions import HEADLINES
from pipeline.reporting.code import code_sha256
from pipeline.reporting.content import Chapter, Fact, Report
from pipeline.reporting.origin import origin_chapter
from pipeline.reporting.sample_text import SampleText, sample_chapter, sample_identity
from pipeline.reporting.standing import Standing
from pipeline.reporting.suite_chapter import suite_chapter


def content_of_checkpoint(subject: Subject, standings: list[Standing], wrong: list[str], mlflow_run: str | None) -> str:
    """SHA-256 of all that the report is made from."""
    content: dict[str, Any] = {
        "code": code_sha256(),
        "sample": sample_identity(subject).model_dump(),
        "recipe": subject.checkpoint.state.recipe_hash,
        "manifest": subject.checkpoint.state.manifest_hash,
        "mlflow_run": mlflow_run,
        "suites": {standing.suite: standing.hashes() for standing in standings},
        "wrong": wrong,
    }
    return sha256_json(content)


def checkpoint_report(
    subject: Subject,
    standings: list[Standing],
    wrong: list[str],
    sample: SampleText,
    mlflow_run: str | None,
    content_sha256: str,
) -> Report:
    """The report; `wrong` are evaluations that cannot be read."""
    state = subject.checkpoint.state
    chapters: list[Chapter] = []
    if wrong:
        chapters.append(Chapter("What could not be read", wrong))
    if not standings:
        chapters.append(Chapter("Evaluations", ["This checkpoint has not been evaluated yet."]))
    chapters += [suite_chapter(standing) for standing in standings]
    chapters += [sample_chapter(sample), origin_chapter(subject, mlflow_run)]
    name = subject.folder.recipe.name
    return Report(
        title=f"{name}, step {state.step:,}",
        told=f"What checkpoint {subject.checkpoint.name} of the run {name} can do, after {state.tokens:,} tokens of "
        f"training in phase {state.phase}.",
        content_sha256=content_sha256,
        facts=headlines(standings, sample.max_passes),
        chapters=chapters,
    )


def headlines(standings: list[Standing], max_passes: int) -> list[Fact]:
    """The few numbers told first, of the suites that are there."""
    named = {standing.suite: standing.named for standing in standings}
    facts = []
    for suite, name, label, unit, form in HEADLINES:
        value = named.get(suite, {}).get(name)
        if value is not None:
            told = f"of {max_passes} passes a token" if name == "mean_depth" else unit
            facts.append(Fact(label, format(value, form), told))
    return facts
