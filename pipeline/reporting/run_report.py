"""The report of a run: its checkpoints beside each other, and beside named baselines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.durable import sha256_json
from pipeline.reporting.captions import HEADLINES, chapter_title
from pipeline.reporting.code import code_sha256
from pipeline.reporting.content import Chapter, Fact, Figure, Report, Table
from pipeline.reporting.curves import Course, Curve
from pipeline.reporting.judged import Judged, best_of
from pipeline.reporting.suite_chapter import number

BEST = "★\N{NO-BREAK SPACE}best"


def content_of_run(course: Course, mlflow_run: str | None) -> str:
    """SHA-256 of all that the report is made from."""
    content: dict[str, Any] = {
        "code": code_sha256(),
        "mlflow_run": mlflow_run,
        "checkpoints": [[each.name, each.tokens, each.hashes, each.wrong] for each in course.checkpoints],
        "baselines": [[each.name, each.step, each.hashes, each.wrong] for each in course.baselines],
        "trained": list(course.trained),
    }
    return sha256_json(content)


def run_report(
    course: Course,
    drawn: Sequence[tuple[Curve, Path]],
    mlflow_run: str | None,
    content_sha256: str,
) -> Report:
    """The report; `drawn` are its figures, where they lie."""
    best = best_of(list(course.checkpoints))
    chapters = []
    wrong = [line for each in (*course.checkpoints, *course.baselines) for line in each.wrong]
    if wrong:
        chapters.append(Chapter("What could not be read", wrong))
    chapters.append(_checkpoints(course, best))
    if drawn:
        told = "Each mark is an evaluated checkpoint; steps stand below, the tokens trained on above."
        figures = [Figure(path, curve.title, curve.shows, curve.wide) for curve, path in drawn]
        chapters.append(Chapter("Over training", [told], figures=figures))
    chapters += [_side_by_side(course, best), _origin(course, mlflow_run)]
    return Report(
        title=f"{course.run}: {_counted(len(course.checkpoints), 'checkpoint')}",
        told="How the run's checkpoints compare with each other"
        + (f" and with {_counted(len(course.baselines), 'baseline')}." if course.baselines else "."),
        content_sha256=content_sha256,
        facts=_facts(best, course),
        chapters=chapters,
    )


def _counted(count: int, thing: str) -> str:
    return f"1 {thing}" if count == 1 else f"{count} {thing}s"


def _facts(best: Judged | None, course: Course) -> list[Fact]:
    if best is None:
        return []
    told = "" if best.tokens is None else f"after {best.tokens:,} tokens"
    facts = [Fact("Best checkpoint", f"step {best.step:,}", told)]
    for suite, name, label, unit, form in HEADLINES:
        value = best.number(suite, name)
        if value is not None:
            most = f"of {course.max_passes} passes a token" if name == "mean_depth" and course.max_passes else unit
            facts.append(Fact(label, format(value, form), most))
    return facts


def _checkpoints(course: Course, best: Judged | None) -> Chapter:
    """All of them, then the baselines, in the few numbers that every reader asks for."""
    everyone = [*course.checkpoints, *course.baselines]
    shown = [line for line in HEADLINES if any(each.number(line[0], line[1]) is not None for each in everyone)]
    head = ["checkpoint", "step", "tokens", *(f"{label.lower()} ({unit})" for _, _, label, unit, _ in shown), ""]
    rows = []
    for each in everyone:
        values = (each.number(suite, name) for suite, name, *_ in shown)
        texts = ("" if value is None else format(value, line[4]) for value, line in zip(values, shown, strict=True))
        tokens = "" if each.tokens is None else f"{each.tokens:,}"
        rows.append((each.name, f"{each.step:,}", tokens, *texts, BEST if each is best else ""))
    parts = frozenset({len(course.checkpoints) - 1}) if course.baselines else frozenset()
    marked = frozenset(index for index, each in enumerate(everyone) if each is best)
    table = Table("", head, rows, frozenset(range(1, len(head) - 1)), parts, marked)
    told = ["The best has the lowest validation loss." + (" Below the line: baselines." if course.baselines else "")]
    return Chapter("Checkpoints", [*told, *_warnings(course)], tables=[table])


def _warnings(course: Course) -> list[str]:
    """What does not compare, said before it is compared."""
    own = [each for each in course.checkpoints if "validation" in each.named]
    if not own:
        return []
    last = own[-1]
    lines = []
    for each in course.baselines:
        if each.manifest_hash != last.manifest_hash:
            lines.append(f"{each.name} was evaluated on other shards: its losses are of other text.")
        elif each.settings.get("validation") != last.settings["validation"]:
            lines.append(f"{each.name} was evaluated on another number of validation rows.")
    odd = [each.name for each in own if each.settings["validation"] != last.settings["validation"]]
    if odd:
        lines.append(f"Evaluated on another number of validation rows than {last.name}: {', '.join(odd)}.")
    return lines


def _side_by_side(course: Course, best: Judged | None) -> Chapter:
    """Every number of every suite: the first, the best, the newest checkpoint and the baselines."""
    first, last = course.checkpoints[0], course.checkpoints[-1]
    chosen: dict[str, Judged] = {}
    for label, each in (("first", first), ("best", best), ("newest", last)):
        if each is not None and all(each is not other for other in chosen.values()):
            same = [name for name, other in (("first", first), ("best", best), ("newest", last)) if other is each]
            chosen[f"{each.name} ({', '.join(same)})" if label else each.name] = each
    chosen |= {baseline.name: baseline for baseline in course.baselines}
    suites = list(dict.fromkeys(suite for each in chosen.values() for suite in each.named))
    tables = []
    for suite in suites:
        names = list(dict.fromkeys(name for each in chosen.values() for name in each.named.get(suite, {})))
        rows = []
        for name in names:
            values = (each.number(suite, name) for each in chosen.values())
            rows.append((f"eval/{suite}/{name}", *("" if value is None else number(value) for value in values)))
        title = f"{chapter_title(suite)}: {len(names)} numbers"
        tables.append(Table(title, ("number", *chosen), rows, frozenset(range(1, len(chosen) + 1))))
    told = "Every number that was found, named as in MLflow, where all checkpoints stand beside each other."
    return Chapter("Side by side", [told], folded=tables)


def _origin(course: Course, mlflow_run: str | None) -> Chapter:
    newest = course.checkpoints[-1]
    return Chapter(
        "Where it comes from",
        facts=[
            Fact("Run", course.run),
            Fact("Recipe", f"sha256 {newest.recipe_hash}" if newest.recipe_hash else "unknown"),
            Fact("Data (manifest)", f"sha256 {newest.manifest_hash}" if newest.manifest_hash else "unknown"),
            Fact("MLflow run", mlflow_run or "none yet"),
            Fact("Tokens a step", f"{course.tokens_per_step:,}"),
        ],
    )
