"""Pieces of the shell scripts that targets write: quoting, what precedes a stage, one script that starts stages."""

from __future__ import annotations

import re
from collections.abc import Sequence

from launch.targets.launching import STAGES, Launch

_PLAIN = re.compile(r"[A-Za-z0-9_@%+=:,./-]+")


def words(arguments: Sequence[str]) -> str:
    """The arguments as words of a shell, whatever they hold.

    In double quotes with what means something there escaped; shellcheck takes a $ in single quotes for a mistake.
    """
    return " ".join(word if _PLAIN.fullmatch(word) else f'"{_escaped(word)}"' for word in arguments)


def _escaped(word: str) -> str:
    return re.sub(r'([$`"\\])', r"\\\1", word)


def script(
    launch: Launch, purpose: str, lines: Sequence[str], directives: Sequence[str] = (), written_by: str = ""
) -> str:
    """A bash script: comment, the scheduler's directives, then `lines`; written_by: the command, if not the launch's.

    Modules are shell functions that a login shell defines.
    """
    login = " -l" if launch.cluster.modules else ""
    return "\n".join(
        [
            f"#!/bin/bash{login}",
            *directives,
            f"# {purpose} Run {launch.recipe.name}; written by `{written_by or f'adaponder launch {launch.target}'}`.",
            "set -eo pipefail",
            *lines,
            "",
        ]
    )


def setup(launch: Launch) -> list[str]:
    """What the recipe wants before each stage; then an unset variable is a mistake."""
    cluster = launch.cluster
    lines = [f"module load {words([module])}" for module in cluster.modules]
    lines += list(cluster.commands_before)
    return [*lines, "set -u"]


def rank_environment(launch: Launch) -> list[str]:
    """Exports of variables that the recipe decides."""
    cluster = launch.cluster
    lines = []
    if cluster.network_interface:
        name = words([cluster.network_interface])
        lines.append(f"export GLOO_SOCKET_IFNAME={name} NCCL_SOCKET_IFNAME={name}")
    if not cluster.gpus_per_node:
        lines.append("export CUDA_VISIBLE_DEVICES='' DS_ACCELERATOR=cpu")
    return lines


def stage_choice() -> list[str]:
    """The stage that `start.sh` is asked for, in $stage."""
    known = "|".join((*STAGES, "all"))
    return [
        'stage="${1:-all}"',
        'case "$stage" in',
        f"    {known}) ;;",
        f"""    *) echo "start.sh [{known}]: $stage is none of them" >&2; exit 2 ;;""",
        "esac",
        'wanted() { [[ "$stage" == all || "$stage" == "$1" ]]; }',
    ]


def stages_in_turn(launch: Launch) -> str:
    """A start.sh that runs the scripts of the stages on this machine, one after the other."""
    lines = ["set -u", *stage_choice()]
    for stage in STAGES:
        lines.append(f"if wanted {stage}; then bash {words([str(launch.path / f'{stage}.sh')])}; fi")
    return script(launch, "Runs one stage, or all of them in turn: start.sh [STAGE].", lines)
