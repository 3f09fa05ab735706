"""`adaponder plan`: what a training would take, before anything is started."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.command_line import RecipeArgument, SetOption, reported
from pipeline.heavy_imports import heavy_imports


@reported
def plan(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    nodes: Annotated[
        str, typer.Option("--nodes", metavar="N[,N...]", help="Machines; several numbers are compared.")
    ] = "1",
    gpus_per_node: Annotated[int, typer.Option("--gpus-per-node", help="Ranks on each machine.")] = 8,
    gpu: Annotated[
        str, typer.Option("--gpu", help="Its name (H100, A100, MI300X, ...), or cpu for ranks without one.")
    ] = "H100",
    gpu_memory_gib: Annotated[
        float | None,
        typer.Option("--gpu-memory-gib", help="Memory of a GPU, where it is not the usual size or not known by name."),
    ] = None,
    mfu: Annotated[
        float, typer.Option("--mfu", help="Share of the GPUs' bf16 peak that training reaches (model FLOPs).")
    ] = 0.4,
    mean_depth: Annotated[
        float | None,
        typer.Option(
            "--mean-depth", help="Passes a token in the mean, for train.skip_halted; all of them if not given."
        ),
    ] = None,
    price: Annotated[
        float | None, typer.Option("--price", help="Of a GPU hour, in any currency, for the cost of the run.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Parameters, memory, time, disk and cost, and which strategy fits.

    No GPU is needed and no weight is made. Every strategy of ds_configs is
    compared under every kind of activation checkpointing.
    """
    with heavy_imports():
        from launch.plan.stage import Options, plan_and_tell

    plan_and_tell(
        Options(
            recipe=recipe,
            overrides=tuple(overrides or ()),
            nodes=nodes,
            gpus_per_node=gpus_per_node,
            gpu=gpu,
            gpu_memory_gib=gpu_memory_gib,
            mfu=mfu,
            mean_depth=mean_depth,
            price=price,
        ),
        as_json,
    )
