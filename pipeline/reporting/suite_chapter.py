"""The chapter of one suite: its tables, its figures, all its numbers."""

from __future__ import annotations

import math

from pipeline.evaluation.suite import METRICS_NAME
from pipeline.reporting.captions import FILES, TOLD, chapter_title, figure_told
from pipeline.reporting.content import Chapter, Fact, Figure, Table
from pipeline.reporting.standing import IMAGES, Standing

_MOST_FILES = 40


def suite_chapter(standing: Standing) -> Chapter:
    """All that the suite's folder holds."""
    suite, files = standing.suite, standing.files()
    figures = [Figure(path, *figure_told(suite, path.name)) for path in standing.images()]
    # metrics.json is named last: the others are for reading.
    others = sorted((path for path in files if path.suffix not in IMAGES), key=lambda path: path.name == METRICS_NAME)
    numbers = [(f"eval/{suite}/{name}", number(value)) for name, value in standing.named.items()]
    told = [TOLD[suite]] if suite in TOLD else []
    return Chapter(
        title=chapter_title(suite),
        told=told,
        facts=[Fact("Evaluated", _how(standing)), Fact("Settings", _settings(standing))],
        tables=standing.tables,
        folded=[Table(f"All {len(numbers)} numbers, named as in MLflow", ("number", "value"), numbers, frozenset({1}))],
        figures=figures,
        files=[(path, FILES.get(path.name, f"of the suite {suite}")) for path in others[:_MOST_FILES]],
    )


def number(value: float) -> str:
    """Six digits, integers whole."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if value == int(value) and abs(value) < 1e15 else f"{value:,.6g}"


def _how(standing: Standing) -> str:
    where = f" on {standing.device}" if standing.device else ""
    took = f" in {standing.seconds:,.1f} s" if standing.seconds is not None else ""
    return f"step {standing.identity.step:,}{where}{took}"


def _settings(standing: Standing) -> str:
    pairs = (f"{name} {value}" for name, value in standing.identity.settings.items())
    return ", ".join(pairs) or "none"
