"""Whether the recipe's evaluations can be made at all: asked where a training starts, not hours later."""

from __future__ import annotations

from pipeline.data.manifest import MANIFEST_NAME, read_manifest
from pipeline.errors import UserError
from pipeline.evaluation.suites import suite_named
from pipeline.recipe import Recipe
from pipeline.run_folder import RunFolder


def check_evaluation(recipe: Recipe, folder: RunFolder) -> None:
    """`UserError` for the first thing that the recipe's evaluate section asks for and that cannot be.

    Of no use here is what depends on the machine that judges, which may be another one.
    """
    for name in recipe.evaluate.all_suites:
        try:
            suite_named(name).settings(recipe)
        except UserError as error:
            raise UserError(f"evaluate: the suite {name} cannot judge by this recipe: {error}") from error
    if recipe.evaluate.jobs.where == "kubernetes":
        from launch.targets import kubernetes
        from launch.targets.launching import Launch

        kubernetes.check(Launch("kubernetes", recipe, folder, "evaluate"), submit=False)


def check_validation_rows(folder: RunFolder) -> None:
    """`UserError` where there are shards already and none of them is for validation; nothing is fetched."""
    if not (folder.shards / MANIFEST_NAME).is_file():
        return
    if not any(split.split == "validation" and split.rows for split in read_manifest(folder.shards).splits.values()):
        raise UserError(
            f"{folder.shards} holds no validation rows: set tokenize's validation files or validation_share"
        )
