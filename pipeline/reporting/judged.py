"""Checkpoints as a run's report compares them: the numbers that each one's evaluations found."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.checkpoint import STATE_FILE, TrainerState
from pipeline.durable import sha256_file
from pipeline.errors import UserError
from pipeline.evaluation.suite import METRICS_NAME
from pipeline.recipe_evaluate import BaselineSection
from pipeline.reporting.standing import standing_in
from pipeline.run_folder import RunFolder

_NAME = re.compile(r"step-\d{8}")


@dataclass(frozen=True)
class Judged:
    """A checkpoint with at least one evaluation."""

    name: str
    """What the report calls it."""
    step: int
    tokens: int | None
    """Trained on; None where the checkpoint is gone and nobody knows."""
    named: Mapping[str, Mapping[str, float]]
    """Numbers by suite and name."""
    settings: Mapping[str, Any]
    """By suite: numbers of other settings are of other text."""
    recipe_hash: str
    """Of the recipe that trained it; like the next, "" where no evaluation can be read."""
    manifest_hash: str
    hashes: Mapping[str, str]
    """SHA-256 of each suite's metrics.json."""
    wrong: tuple[str, ...] = ()
    """Evaluations that cannot be read."""

    def number(self, suite: str, name: str) -> float | None:
        return self.named.get(suite, {}).get(name)

    @property
    def loss(self) -> float | None:
        return self.number("validation", "loss")


def judged_checkpoints(folder: RunFolder) -> list[Judged]:
    """Those of a run, oldest first; evaluations of weights that gave way to others of their step are left out."""
    found = []
    for path in _evaluated(folder.evaluated):
        checkpoint = folder.checkpoints / path.name
        judged = _judged(path, path.name, checkpoint, folder.recipe.tokens_per_step)
        if judged is not None:
            found.append(judged)
    return found


def judged_baseline(section: BaselineSection, root: Path) -> Judged:
    """The checkpoint that a baseline names; `UserError` in one line where it has no evaluation."""
    told = f"evaluate.baselines: {section.name!r}"
    places = (root / section.run, Path(section.run).expanduser().absolute())
    run = next((place for place in places if place.is_dir()), None)
    if run is None:
        raise UserError(f"{told}: {section.run} is neither a run in {root} nor a run's folder")
    evaluated = _evaluated(run / "evaluation")
    if section.checkpoint.startswith("step-"):
        evaluated = [path for path in evaluated if path.name == section.checkpoint]
    found = [
        judged
        for path in evaluated
        if (judged := _judged(path, section.name, run / "checkpoints" / path.name, None)) is not None
    ]
    if section.checkpoint == "best":
        best = best_of(found)
        found = [best] if best is not None else []
    if not found:
        which = "" if section.checkpoint == "latest" else f" of {section.checkpoint}"
        raise UserError(f"{told}: {run} has no evaluation{which}: run `adaponder evaluate` there first")
    return found[-1]


def best_of(checkpoints: list[Judged]) -> Judged | None:
    """The one of the lowest validation loss, the earliest of equals; None where no loss was measured."""
    measured = [each for each in checkpoints if each.loss is not None]
    return min(measured, key=lambda each: each.loss or 0.0, default=None)


def _evaluated(evaluations: Path) -> list[Path]:
    if not evaluations.is_dir():
        return []
    return sorted(path for path in evaluations.iterdir() if _NAME.fullmatch(path.name) and path.is_dir())


def _judged(path: Path, name: str, checkpoint: Path, tokens_per_step: int | None) -> Judged | None:
    standings, wrong = standing_in(path)
    state = _state(checkpoint)
    if state is not None:
        standings = [each for each in standings if each.identity.save_id == state.save_id]
    elif standings:
        # The checkpoint is gone, its evaluations stand; they must be of one and the same.
        standings = [each for each in standings if each.identity.save_id == standings[-1].identity.save_id]
    if not standings and not wrong:
        return None
    step = int(path.name.removeprefix("step-"))
    tokens = state.tokens if state else step * tokens_per_step if tokens_per_step else None
    return Judged(
        name=name,
        step=step,
        tokens=tokens,
        named={each.suite: each.named for each in standings},
        settings={each.suite: each.identity.settings for each in standings},
        recipe_hash=standings[-1].identity.recipe_hash if standings else "",
        manifest_hash=standings[-1].identity.manifest_hash if standings else "",
        hashes={each.suite: sha256_file(each.folder / METRICS_NAME) for each in standings},
        wrong=tuple(wrong),
    )


def _state(checkpoint: Path) -> TrainerState | None:
    """None where the checkpoint is gone, or too damaged to say whose evaluation this is."""
    try:
        return TrainerState.model_validate_json((checkpoint / STATE_FILE).read_bytes())
    except (OSError, ValidationError):
        return None
