"""This machine: each stage a script that does what the stage's own command does, from the launch's recipe."""

from __future__ import annotations

from launch.targets.launching import STAGES, START, Launch, check_stage
from launch.targets.shell_script import script, setup, stages_in_turn, words
from pipeline.errors import UserError


def check(launch: Launch, submit: bool) -> None:
    """`UserError` for what one machine cannot do."""
    check_stage(launch)
    if launch.cluster.nodes != 1:
        raise UserError(f"launch local: this machine is one node, not {launch.cluster.nodes}; take hosts or slurm")
    if launch.cluster.container.kind != "none":
        raise UserError(
            f"launch local: cluster.container {launch.cluster.container.kind} is for slurm; set "
            "cluster.container.kind=none and cluster.container.image="
        )


def files(launch: Launch) -> dict[str, str]:
    """A script for each stage, and start.sh."""
    written = {START: stages_in_turn(launch)}
    for stage in STAGES:
        lines = [*setup(launch), f"exec {words(launch.arguments(stage))}"]
        written[f"{stage}.sh"] = script(launch, f"Stage {stage} on this machine.", lines)
    return written
