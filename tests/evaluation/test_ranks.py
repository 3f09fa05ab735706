"""Every suite on several ranks finds what it finds on one, and a rank that fails ends all of them."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from pipeline.evaluation.stage import evaluate_suites
from pipeline.recipe_reader import parse_recipe
from tests.conftest import Runs
from tests.evaluation.several_ranks import rank_command, ranks
from tests.evaluation.tiny_run import make_model, make_run, write_checkpoint

SUITES = ("validation", "windows", "depth", "policies", "speed")


@pytest.fixture(scope="module")
def own_run(tmp_path_factory):
    """A run whose checkpoint no other test touches."""
    torch.set_num_threads(1)
    run = make_run(tmp_path_factory.mktemp("shared_out"))
    write_checkpoint(run, make_model(run))
    return run


def with_rows(run, rows, batch_rows):
    """Every suite on so many rows of each source."""
    content = run.recipe.resolved()
    few = {"rows_per_source": rows, "batch_rows": batch_rows}
    content["evaluate"] |= few
    content["evaluate"] |= {
        "windows": few,
        "depth": few,
        "policies": {**few, "draws": 50, "thresholds": [0.5], "mean_depths": [1.5]},
        "speed": {"rows": 1, "prompt_tokens": 8, "new_tokens": 2, "rounds": 3},
    }
    return dataclasses.replace(run, recipe=parse_recipe(content, "changed"))


def judged_by(run, judge) -> dict[str, dict[str, bytes]]:
    """All files that `judge` makes, by suite and name."""
    below = run.path / "evaluation" / "step-00000020"
    shutil.rmtree(below, ignore_errors=True)
    judge()
    return {suite: {path.name: path.read_bytes() for path in (below / suite).iterdir()} for suite in SUITES}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "batch_rows", "count"),
    [
        ("all", 3, 2),  # batches of several sizes, the last rows partly padding, and a last round that is not full
        (2, 2, 3),  # one batch a source: the third rank has nothing to do
    ],
)
def test_several_ranks_find_what_one_finds(own_run, rows, batch_rows, count):
    run = with_rows(own_run, rows, batch_rows)
    arguments = [word for suite in SUITES for word in ("--suite", suite)]

    def judge() -> None:
        done = ranks(run, *arguments, count=count)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("measured on rank 0 alone") == 1

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        alone = judged_by(run, lambda: evaluate_suites(run.recipe, run, "latest", list(SUITES)))
    together = judged_by(run, judge)
    for suite in SUITES:
        assert set(together[suite]) == set(alone[suite])
        if suite == "speed":
            continue
        found, expected = (json.loads(files[suite].pop("metrics.json")) for files in (together, alone))
        assert found.pop("seconds") > 0 and expected.pop("seconds") > 0
        assert found == expected, suite
        assert together[suite] == alone[suite], "figures and pages too"


@pytest.mark.slow
def test_a_rank_that_fails_is_named_and_lets_all_end(own_run):
    done = ranks(own_run, count=3, module="tests.evaluation.failing_job")
    assert done.returncode == 0, done.stdout + done.stderr
    (told,) = re.findall(r"ranks \[(.*)\]; rank 1 failed in the evaluation: ValueError: (\d+) is too much", done.stdout)
    assert told[0].split(", ") == [str(number % 3) for number in range(12)], "whole rounds that went before"
    assert f"rank 1 ends: {told[1]} is too much" in done.stdout


def rank_process(launcher: int, rank: int) -> int | None:
    """The process of a rank that torchrun has started."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == launcher and f"RANK={rank}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                return int(entry.name)
        except OSError:
            pass
    return None


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_rank_ends_the_others_and_the_same_command_judges(own_run, killed):
    run = with_rows(own_run, "all", 1)
    below = run.path / "evaluation" / "step-00000020"
    shutil.rmtree(below, ignore_errors=True)
    process = subprocess.Popen(
        rank_command(run, "--suite", "policies"),
        env=Runs(run.root).environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not (below / "policies.partial").is_dir():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        time.sleep(1.0)  # somewhere in the midst of the rows
        victim = rank_process(process.pid, killed)
        assert victim is not None
        os.kill(victim, signal.SIGKILL)
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode != 0
    assert not (below / "policies").exists(), said
    assert "Traceback" not in "".join(line for line in said.splitlines() if "adaponder:" in line)
    again = ranks(run, "--suite", "policies")
    assert again.returncode == 0, again.stdout + again.stderr
    assert (below / "policies" / "metrics.json").is_file() and not (below / "policies.partial").exists()
