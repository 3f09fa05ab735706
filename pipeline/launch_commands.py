"""`adaponder launch`: show what a cluster would be asked to start, or start it."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.command_line import RecipeArgument, RunsOption, SetOption, reported
from pipeline.console import console
from pipeline.heavy_imports import heavy_imports
from pipeline.preflight_command import check_here
from pipeline.recipe import Recipe
from pipeline.recipe_reader import read_recipe
from pipeline.run_folder import RunFolder, runs_root

if TYPE_CHECKING:
    from launch.targets.launching import Launch

app = typer.Typer()


class Target(str, Enum):
    local = "local"
    hosts = "hosts"
    slurm = "slurm"
    kubernetes = "kubernetes"


class Stage(str, Enum):
    tokenize = "tokenize"
    train = "train"
    evaluate = "evaluate"
    release = "release"
    all = "all"


@app.command()
@reported
def launch(
    target: Annotated[Target, typer.Argument(help="On what the stages run.")],
    recipe: RecipeArgument,
    stage: Annotated[Stage, typer.Option("--stage", help="Which stage, or all in their order.")] = Stage.all,
    nodes: Annotated[int | None, typer.Option("--nodes", min=1, help="Instead of cluster.nodes.")] = None,
    gpus_per_node: Annotated[
        int | None, typer.Option("--gpus-per-node", min=0, help="Instead of cluster.gpus_per_node.")
    ] = None,
    submit: Annotated[bool, typer.Option("--submit", help="Start or submit it, too.")] = False,
    check_first: Annotated[
        bool,
        typer.Option(
            "--preflight/--no-preflight", help="Check this machine before submitting, and the nodes before training."
        ),
    ] = True,
    overrides: SetOption = None,
    runs: RunsOption = None,
) -> None:
    """Write what starts the stages on a cluster, print it, and with --submit start it.

    Files go to runs/NAME/launch/TARGET, which can be used by itself: recipe,
    scripts or manifests, versions, source revision and difference. What cannot
    work is refused before anything is written (exit code 2).
    """
    chosen = list(overrides or [])
    chosen += [] if nodes is None else [f"cluster.nodes={nodes}"]
    chosen += [] if gpus_per_node is None else [f"cluster.gpus_per_node={gpus_per_node}"]
    chosen += [] if check_first else ["cluster.preflight.before_training=false"]
    if target is Target.local and gpus_per_node:
        chosen.append(f"train.ranks={gpus_per_node}")
    read = read_recipe(recipe, chosen)
    code = _launch(target.value, read, runs_root(runs), stage.value, submit, nodes, gpus_per_node)
    if code:
        sys.exit(code)


def _launch(
    target: str, recipe: Recipe, root: Path, stage: str, submit: bool, nodes: int | None, gpus_per_node: int | None
) -> int:
    """Check, write, print, start; the exit code of what was started."""
    from launch.launch_folder import write_launch
    from launch.submit import shown
    from launch.submit import submit as start
    from launch.targets import hosts, kubernetes, local, slurm
    from launch.targets.launching import START, Launch

    given = Launch(target, recipe, RunFolder(root, recipe), stage)
    if target == "local":
        local.check(given, submit)
        _check_training(given, None)
        files = local.files(given)
    elif target == "hosts":
        slots = hosts.chosen(given, nodes, gpus_per_node or None)
        hosts.check(given, submit)
        _check_training(given, sum(len(taken) for taken in slots.values()))
        files = hosts.files(given, slots)
    else:
        module = slurm if target == "slurm" else kubernetes
        module.check(given, submit)
        _check_training(given, recipe.cluster.nodes * recipe.cluster.ranks)
        files = module.files(given)
    if submit and target != "kubernetes" and recipe.cluster.preflight.before_training:
        check_here(recipe, given.folder)
    written = write_launch(given, files)
    for path in written:
        if path.name in files and (stage == "all" or path.name == START or path.name.startswith(stage)):
            console.rule(path.name, align="left")
            console.out(files[path.name], end="", highlight=False)
    console.rule(align="left")
    console.print(f"launch: {len(written)} files in {given.path}", markup=False)
    console.print(f"{'starting' if submit else 'start it by'}: {shown(given)}", markup=False)
    return start(given) if submit else 0


def _check_training(given: Launch, ranks: int | None) -> None:
    """What trainer and evaluation would refuse on the nodes; `ranks`: of the whole training, None for this machine."""
    from pipeline.evaluation.check import check_evaluation

    if given.stage in ("train", "evaluate", "all"):
        check_evaluation(given.recipe, given.folder)
    if given.stage not in ("train", "all"):
        return
    with heavy_imports():
        from pipeline.training.checks import check_recipe, choose_ranks
    if ranks is None:
        check_recipe(given.recipe, choose_ranks(given.recipe)[0])
    else:
        check_recipe(given.recipe, ranks, elsewhere="gpu" if given.cluster.gpus_per_node else "cpu")
