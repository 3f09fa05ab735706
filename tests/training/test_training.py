"""Training as the operator starts it: real ranks, real DeepSpeed, in child processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch

from pipeline.checkpoint import complete_checkpoints, load_model
from pipeline.errors import UserError
from pipeline.recipe_reader import parse_recipe
from pipeline.training.attempt import hold_run
from pipeline.training.model_start import start_model
from tests.conftest import Runs, tiny_recipe

pytestmark = pytest.mark.slow

KEYS = ("train/loss", "train/ce_loss", "train/ponder_loss", "depth/mean")


@pytest.fixture(scope="module")
def unbroken(runs: Runs, text_folder, shards) -> list[dict]:
    """The tiny recipe, under ZeRO 1 on two ranks."""
    return runs.train({**tiny_recipe("zero1", text_folder), "data": {"shards": str(shards)}})


def largest_difference(one: list[dict], other: list[dict], keys=KEYS) -> float:
    assert [line["step"] for line in one] == [line["step"] for line in other]
    return max(abs(a[key] - b[key]) for a, b in zip(one, other, strict=True) for key in keys)


def test_training_learns_and_halts(unbroken):
    lines = unbroken
    assert [line["step"] for line in lines] == list(range(1, 21))
    assert lines[-1]["train/ce_loss"] < lines[0]["train/ce_loss"] - 1.0
    assert all(line["depth/mean"] == 3 for line in lines[:10])
    assert all(line["train/ponder_fraction"] == 0 for line in lines[:11])
    assert lines[-1]["train/ponder_fraction"] == 0.3
    assert lines[-1]["train/ponder_loss"] > 0
    assert lines[-1]["depth/mean"] < 2.9
    assert all(line["train/grad_norm"] > 0 for line in lines)


def test_one_rank_and_two_see_the_same_global_batches(unbroken, runs, recipe):
    recipe["train"]["ranks"] = 1
    done = runs.adaponder("train", recipe)
    assert done.returncode == 0, done.stdout + done.stderr
    # One rank runs the same micro-batches, four after each other instead of two, so every number is the same mean.
    assert largest_difference(unbroken, runs.metrics(recipe["name"])) < 1e-4
    assert f"1 ranks (train.ranks), {os.environ['OMP_NUM_THREADS']} CPU threads each" in done.stdout


def test_a_half_written_checkpoint_is_not_one(runs, recipe, unbroken):
    copied = runs.root / recipe["name"]
    shutil.copytree(runs.root / "zero1", copied)
    newest = runs.checkpoints(recipe["name"]) / "step-00000020"
    (newest / "COMPLETE").unlink()
    (runs.checkpoints(recipe["name"]) / "step-00000025.partial").mkdir()
    assert largest_difference(unbroken, runs.train(recipe)) < 1e-6
    assert not list(runs.checkpoints(recipe["name"]).glob("*.partial"))
    assert (runs.checkpoints(recipe["name"]) / "latest").read_text() == "step-00000020\n"


def test_saving_memory_and_skipping_change_nothing_and_are_told(unbroken, runs, recipe):
    recipe["train"] |= {"activation_checkpointing": "layer", "vocabulary_chunk_tokens": 9, "skip_halted": True}
    done = runs.adaponder("train", recipe)
    assert done.returncode == 0, done.stdout + done.stderr
    assert largest_difference(unbroken, runs.metrics(recipe["name"])) < 1e-4
    folder = runs.root / recipe["name"]
    assert "activation checkpointing: layer; cross entropy: chunks of 9 tokens" in done.stdout
    started = json.loads((folder / "events.jsonl").read_text().splitlines()[0])
    assert started["computation"]["halted tokens"] == "skipped, with sdpa"
    config = json.loads((folder / "checkpoints/step-00000020/config.json").read_text())
    assert (config["halting"], config["vocabulary_chunk_tokens"]) == ("masked", 9)


@pytest.mark.parametrize("strategy", ["zero1", "zero3"])
def test_gates_alone_and_then_everything_in_bf16(runs, recipe, strategy):
    recipe["train"] |= {"strategy": strategy, "precision": "bf16"}
    recipe["train"]["phases"] = [
        {"name": "gates", "steps": 4, "train": "gates", "halting": False},
        {"name": "all", "steps": 8, "halting": False},
    ]
    lines = runs.train(recipe)
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert lines[-1]["train/ce_loss"] < lines[0]["train/ce_loss"] - 0.5
    by_step = {found.step: found for found in complete_checkpoints(runs.checkpoints(recipe["name"]))}
    start, gated, end = (load_model(by_step[step]).state_dict() for step in (0, 4, 12))
    built = start_model(parse_recipe(recipe, "test")).state_dict()
    for name, weight in start.items():
        # Exactly: neither the start nor what is frozen is rounded, and the masters are what is saved.
        assert torch.equal(weight, built[name]), name
        assert torch.equal(gated[name], weight) != name.startswith("gates."), name
        assert not torch.equal(end[name], gated[name]), name
    assert [by_step[step].state.trained for step in (0, 4, 12)] == ["gates", "gates", "all"]
    assert by_step[0].path.joinpath("config.json").read_text().count('"halting": "none"') == 1


def test_a_rank_killed_alone_is_named_and_nothing_hangs(runs, recipe):
    recipe["train"]["phases"][0]["steps"] = 2000
    process = started(runs, recipe)
    rank_1 = [found for found in ranks_of(runs, recipe) if found.environ().get("RANK") == "1"]
    rank_1[0].kill()
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 1, output + errors
    assert "rank 1 ended with exit code -9 and no message" in errors
    assert errors.count("\n") == 1
    assert not ranks_of(runs, recipe)
    assert '"status": "RUNNING"' not in (runs.root / recipe["name"] / "mlflow.json").read_text()


def test_ctrl_c_ends_all_ranks_and_the_command_says_so(runs, recipe):
    recipe["train"]["phases"][0]["steps"] = 2000
    process = started(runs, recipe)
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=90)
    assert process.returncode == 130, output + errors
    assert errors == "adaponder: interrupted; the same command continues\n"
    assert not ranks_of(runs, recipe)


def test_ranks_started_by_torchrun_alone(runs, recipe):
    recipe["train"]["phases"] = [{"name": "short", "steps": 2, "halting": False}]
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("--module", "pipeline.training.worker", str(runs.write(recipe)), "--runs", str(runs.root)),
    ]
    done = subprocess.run(command, env=runs.environment(), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = runs.root / recipe["name"]
    assert {path.name for path in (folder / "logs").iterdir()} == {
        "attempt-001-rank-0000.log",
        "attempt-001-rank-0001.log",
        "system-node-0000.jsonl",
    }
    assert (folder / "recipe.yaml").is_file()
    assert len(runs.metrics(recipe["name"])) == 2


def _heed_ctrl_c() -> None:
    """A shell starts what it runs in the background, this test perhaps, with Ctrl-C ignored; children inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def started(runs: Runs, recipe: dict) -> subprocess.Popen:
    """A training in a process group of its own that has taken a few steps."""
    process = subprocess.Popen(
        runs.command("train", recipe),
        env=runs.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=_heed_ctrl_c,
    )
    file = runs.root / recipe["name"] / "metrics.jsonl"
    wait_for(lambda: file.is_file() and '{"step": 3,' in file.read_text(), process)
    return process


def test_what_stands_in_a_run_folder(unbroken, runs):
    folder = runs.root / "zero1"
    state = json.loads((folder / "checkpoints/step-00000020/trainer_state.json").read_text())
    assert (state["step"], state["rows"], state["tokens"], state["phase"]) == (20, 160, 5120, "halting")
    assert json.loads((folder / "mlflow.json").read_text())["runs"][-1]["run_id"]
    assert (folder / "recipe.yaml").read_text().startswith(f"# Resolved recipe, sha256 {state['recipe_hash']}")
    assert {path.name for path in (folder / "logs").iterdir()} == {
        "attempt-001-recipe.yaml",
        "attempt-001-launcher.log",
        "attempt-001-rank-0000.log",
        "attempt-001-rank-0001.log",
        "system-node-0000.jsonl",
    }
    kinds = [json.loads(line)["kind"] for line in (folder / "events.jsonl").read_text().splitlines()]
    assert kinds[0] == "training_started"
    assert kinds[-1] == "training_finished"


def test_two_trainings_of_one_run_do_not_mix(runs, recipe):
    folder = runs.root / recipe["name"]
    folder.mkdir()
    with hold_run(folder), pytest.raises(UserError, match=rf"is being trained by process {os.getpid()} on "):
        hold_run(folder, wait_seconds=0.3)
    hold_run(folder, wait_seconds=0.3).close()


def wait_for(happened, process: subprocess.Popen | None = None, seconds: float = 100.0) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        assert process is None or process.poll() is None, "the process ended before"
        time.sleep(0.01)


def ranks_of(runs: Runs, recipe: dict) -> list[psutil.Process]:
    mark = str(runs.root / recipe["name"] / "logs")
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = process.info["cmdline"] or []
        if any(part.startswith(mark) for part in line) and "torch.distributed.run" not in line:
            found.append(process)
    return [process for process in found if process.info["status"] != psutil.STATUS_ZOMBIE]
