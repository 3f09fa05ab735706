"""`adaponder launch` through the real command line: what it writes, and what it refuses before it writes anything."""

from __future__ import annotations

import os
import subprocess

import pytest

CPU = ["--gpus-per-node", "0", "--set", "cluster.ranks_per_node=2"]
SECRET = "hf-0123456789-secret"


def launch(runs, recipe, target, *arguments, **environment):
    command = runs.command("launch", recipe, *arguments)
    command.insert(4, target)
    surroundings = {**runs.environment(), "HF_TOKEN": SECRET, "MLFLOW_TRACKING_PASSWORD": SECRET, **environment}
    return subprocess.run(command, env=surroundings, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.slow
def test_slurm_is_written_shown_and_submitted(runs, recipe, tmp_path):
    del recipe["data"]
    (tmp_path / "sbatch").write_text("#!/bin/bash\necho 7\n")
    (tmp_path / "sbatch").chmod(0o755)
    shown = launch(runs, recipe, "slurm", "--nodes", "2", *CPU)
    assert shown.returncode == 0, shown.stderr
    folder = runs.root / recipe["name"] / "launch" / "slurm"
    assert (folder / "train.sbatch").read_text() in shown.stdout
    assert f"start it by: bash {folder}/start.sh all" in shown.stdout.replace("'", "")
    assert all(SECRET not in path.read_text() for path in folder.iterdir()) and SECRET not in shown.stdout
    done = launch(
        runs, recipe, "slurm", "--nodes", "2", *CPU, "--submit", "--stage", "train",
        PATH=f"{tmp_path}:{os.environ['PATH']}",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "train: job 7" in done.stdout


@pytest.mark.slow
def test_this_machine(runs, recipe):
    """The whole way by a script of the launch's folder, from shards made before."""
    done = launch(runs, recipe, "local", "--submit", "--stage", "train")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(runs.metrics(recipe["name"])) == 20


@pytest.mark.parametrize(
    ("target", "arguments", "told"),
    [
        ("slurm", ["--nodes", "3", *CPU], "train.global_batch 8 is not divisible by 6 ranks x train.micro_batch 2"),
        ("slurm", ["--gpus-per-node", "0"], "gpus_per_node 0 needs ranks_per_node"),
        ("slurm", [*CPU, "--submit"], "sbatch is not on PATH"),
        ("slurm", [*CPU, "--stage", "tokenize"], "names shards made before"),
        ("slurm", [*CPU, "--set", "cluster.slurm.options=[--nodes=4]"], "--nodes is decided by other fields"),
        ("slurm", [*CPU, "--set", "cluster.slurm.time_limit=00:04:00"], "is not longer than signal_seconds 300"),
        (
            "slurm",
            [*CPU, "--set", "cluster.modules=[cuda]", "--set", "cluster.container={kind: pyxis, image: a}"],
            "container and modules contradict each other",
        ),
        ("hosts", [*CPU], "cluster.hosts.hostfile names no file"),
        ("hosts", [*CPU, "--set", "cluster.hosts.hostfile=/no/such"], "/no/such: No such file"),
        ("local", ["--nodes", "2"], "this machine is one node, not 2"),
        ("kubernetes", [*CPU], "cluster.kubernetes.image is empty"),
        ("slurm", [*CPU, "--set", "cluster.commands_before=['export HF_TOKEN=x']"], "looks like a secret"),
    ],
)
def test_what_cannot_work_is_one_line_and_nothing_is_written(runs, recipe, tmp_path, target, arguments, told):
    done = launch(runs, recipe, target, *arguments, PATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (runs.root / recipe["name"]).exists()
