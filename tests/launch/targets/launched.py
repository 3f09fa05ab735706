"""Launches to look at: a small recipe with a cluster section, below any folder, and scripts run without a cluster."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from launch.targets import hosts, kubernetes, local, slurm
from launch.targets.launching import Launch
from pipeline.recipe_reader import parse_recipe
from pipeline.run_folder import RunFolder
from tests.conftest import tiny_recipe

TARGETS = ("local", "hosts", "slurm", "kubernetes")


def launch_of(target: str, root: Path, name: str = "tiny", stage: str = "all", **cluster: Any) -> Launch:
    """A launch of the tiny recipe on two CPU nodes of one rank each, unless `cluster` says otherwise."""
    plain = tiny_recipe(name, Path("/text"))
    del plain["train"]["ranks"]
    plain["cluster"] = {
        "gpus_per_node": 0,
        "ranks_per_node": 1,
        "nodes": 1 if target == "local" else 2,
        "tokenize_jobs": 3,
        "kubernetes": {"image": "registry.example/adaponder:1", "volume_claim": "runs"},
        **cluster,
    }
    recipe = parse_recipe(plain, "test")
    return Launch(target, recipe, RunFolder(root, recipe), stage)


def files_of(launch: Launch) -> dict[str, str]:
    """The files of a launch by name; for hosts, of two hosts with a slot each."""
    if launch.target == "hosts":
        return hosts.files(launch, {"n1": [0], "n2": [0]})
    return {"local": local, "slurm": slurm, "kubernetes": kubernetes}[launch.target].files(launch)


def scripts_of(launch: Launch) -> dict[str, str]:
    return {name: text for name, text in files_of(launch).items() if text.startswith("#!")}


def programs(folder: Path, **texts: str) -> dict[str, str]:
    """An environment in which PATH begins with `folder`, where each of `texts` is a bash program by its name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(folder)}


def bash(
    script: str | Path, *arguments: str, environment: dict[str, str], cwd: Path | None = None, timeout: float = 30
) -> subprocess.CompletedProcess[str]:
    """Run a script (its path, or its text) with bash."""
    command = ["bash", str(script), *arguments] if isinstance(script, Path) else ["bash", "-c", script, "-", *arguments]
    done = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, check=False, timeout=timeout)
    # Not by text=True, which would make a carriage return in a path a line feed.
    return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())
