"""What a release is compared with: the recipe's baselines, by what their evaluations found."""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape

from pipeline.console import console
from pipeline.evaluation.validation import VALIDATION
from pipeline.recipe import Recipe
from pipeline.release.provenance import BaselineResult
from pipeline.reporting.judged import judged_baseline
from pipeline.run_folder import RunFolder


def baseline_results(recipe: Recipe, folder: RunFolder) -> list[BaselineResult]:
    """Of every baseline that was evaluated on validation sets, in the recipe's order; others are told and left out.

    Raises `UserError` for one without any evaluation.
    """
    found = []
    for section in recipe.evaluate.baselines:
        judged = judged_baseline(section, folder.root)
        named = judged.named.get(VALIDATION)
        if named is None:
            console.print(
                f"[yellow]release: the card leaves out the baseline {escape(section.name)}: its checkpoint has no "
                f"evaluation {VALIDATION}[/yellow]"
            )
            continue
        found.append(
            BaselineResult(
                name=section.name,
                run=Path(section.run).name or section.run,
                step=judged.step,
                recipe_hash=judged.recipe_hash,
                manifest_hash=judged.manifest_hash,
                settings=dict(judged.settings[VALIDATION]),
                metrics_sha256=judged.hashes[VALIDATION],
                tokens=int(named["tokens"]),
                loss=named["loss"],
                perplexity=named["perplexity"],
                bits_per_byte=named["bits_per_byte"],
                mean_depth=named["mean_depth"],
            )
        )
    return found
