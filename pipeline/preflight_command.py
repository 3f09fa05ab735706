"""`adaponder preflight`: is this machine sound for a recipe's training, and what starts it on others?"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.command_line import RecipeArgument, RunsOption, SetOption, reported
from pipeline.console import error_console
from pipeline.errors import UserError, WorldError
from pipeline.recipe import Recipe
from pipeline.recipe_reader import read_recipe
from pipeline.run_folder import RunFolder, runs_root, write_resolved_recipe


@reported
def preflight(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    runs: RunsOption = None,
    gpus_per_node: Annotated[
        int | None, typer.Option("--gpus-per-node", min=0, help="GPUs that there have to be; else one for each rank.")
    ] = None,
    tokenized: Annotated[
        bool, typer.Option("--tokenized", help="The shards have to be there; else they are checked if they are.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Check this machine with the ranks that `adaponder train` starts.

    Versions, GPUs, memory, disk, shared folder, clocks, shards, MLflow,
    network, sums over all ranks, slow ranks, and one step of the training.
    What `adaponder launch` starts on a cluster does the same on its nodes.
    The report is kept in runs/NAME/launch/preflight.json; exit code 1 where
    something is wrong, 2 where only the recipe or a path is.
    """
    read = read_recipe(recipe, overrides or [])
    check_with_ranks(read, RunFolder(runs_root(runs), read), gpus_per_node, tokenized=tokenized, as_json=as_json)


def check_with_ranks(
    recipe: Recipe, folder: RunFolder, gpus: int | None = None, *, tokenized: bool, as_json: bool = False
) -> None:
    """Make every check with the ranks of a training on this machine; `WorldError` with all that is wrong."""
    from launch.local import run_ranks, threads_per_rank
    from launch.preflight.failures import failures_in, is_users
    from pipeline.training.checks import check_recipe, choose_ranks

    ranks, why = choose_ranks(recipe)
    check_recipe(recipe, ranks)
    report, log = folder.preflight_file, folder.logs / "preflight.log"
    report.unlink(missing_ok=True)
    error_console.print(f"preflight: {ranks} ranks ({why}); what libraries say is in {log}", markup=False)
    with tempfile.TemporaryDirectory(prefix="adaponder-preflight-") as scratch:
        resolved = Path(scratch) / "recipe.yaml"
        write_resolved_recipe(recipe, resolved)
        arguments = [str(resolved), "--runs", str(folder.root)]
        arguments += [] if gpus is None else ["--gpus-per-node", str(gpus)]
        arguments += [] if tokenized else ["--not-tokenized"]
        arguments += ["--quiet"] if as_json else []
        code = run_ranks(
            "pipeline.preflight_rank",
            arguments,
            ranks=ranks,
            launcher_log=log,
            environment={"OMP_NUM_THREADS": str(threads_per_rank(ranks))},
        )
    if not report.is_file():
        raise WorldError(f"preflight: the ranks ended with exit code {code} before they could report: see {log}")
    found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    if as_json:
        print(json.dumps(found, indent=2))
    if wrong := failures_in(found):
        raise (UserError if is_users(found) else WorldError)(f"preflight: {'; '.join(wrong)}")
    if code:
        raise WorldError(f"preflight: the ranks ended with exit code {code} after they had reported: see {log}")


def check_here(recipe: Recipe, folder: RunFolder) -> None:
    """What a machine can tell that starts a training and is none of its nodes; `WorldError` with what is wrong."""
    from launch.preflight.check import Context
    from launch.preflight.failures import failures_in
    from launch.preflight.meeting import alone
    from launch.preflight.report import as_json, show, write_report
    from launch.preflight.run_checks import HERE, run_checks

    context = Context(recipe, folder, alone(), None, tokenized=False)
    done = run_checks(context, HERE, lambda name: None, lambda done: show(context, done))
    write_report(context, done)
    if wrong := failures_in(as_json(context, done)):
        raise WorldError(f"preflight: {'; '.join(wrong)} (--no-preflight starts it all the same)")
