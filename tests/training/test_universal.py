"""What two ranks saved goes on elsewhere: the same states, the same losses, every group's own settings."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Runs, tiny_recipe
from tests.training.elastic_runs import ELSEWHERE, SAVED, STEPS, goes_on

pytestmark = pytest.mark.slow
WORLDS = (2, 1, 3, 4)


@pytest.fixture(scope="module")
def found(runs: Runs, tmp_path_factory) -> dict[int, dict[str, Any]]:
    """By number of ranks; all settings of a world in one child process a rank: a hang becomes a failure."""
    folder = tmp_path_factory.mktemp("elastic")
    told = {}
    for world in WORLDS:
        out = folder / f"{world}.json"
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)),
            *("--module", "tests.training.elastic_runs", str(out), str(folder)),
        ]
        done = subprocess.run(command, env=runs.environment(), capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
        told[world] = json.loads(out.read_text())
    return told


@pytest.mark.parametrize("setting", [" ".join(setting) for setting in SAVED])
def test_on_the_same_ranks_the_losses_are_those_of_a_regular_load_to_the_last_digit(found, setting):
    regular = found[2][setting]
    assert regular["again"] == regular["losses"]
    strategy = setting.split()[0]
    if strategy != "zero2":  # which is loaded under ZeRO 1 here, where the gradient's norm is added up in another order
        assert found[2][f"{setting} -> {strategy}"]["losses"] == regular["losses"]
    assert not [name for name in regular["left"] if "universal" in name], "the converted checkpoint is removed"


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("setting", [" ".join(setting) for setting in SAVED])
def test_everywhere_the_states_are_equal_and_the_losses_go_on(found, world, setting):
    strategy, precision, trained = setting.split()
    for other in ELSEWHERE[strategy]:
        if not goes_on(world, precision, other):
            continue
        run = found[world][f"{setting} -> {other}"]
        assert run["equal"], "fp32 weights and moments, bit for bit"
        exact = 1e-5 if precision == "fp32" else 2e-2
        assert run["losses"] == pytest.approx(found[2][setting]["losses"], abs=exact)
        assert run["taken"] == [2.0 * STEPS], "every group has counted each step once"
        groups = ("gates",) if trained == "gates" else ("backbone", "gates")
        assert run["decays"] == {
            f"{group}_{kind}": decay for group in groups for kind, decay in (("decay", 0.1), ("no_decay", 0.0))
        }


def elastic_recipe(recipe: dict, steps: int = 12) -> dict:
    """Constant LR, so that a training that ends early is the beginning of a longer one."""
    recipe["train"] |= {"global_batch": 12, "checkpoint_every_steps": 4, "micro_batch": 1}
    recipe["train"]["optimizer"]["schedule"] = {"kind": "constant"}
    recipe["train"]["phases"] = [{"name": "pondering", "steps": steps, "halting": False}]
    return recipe


@pytest.fixture(scope="module")
def four_steps(runs: Runs, text_folder, shards) -> Path:
    """The folder of a run of four steps on two ranks under ZeRO 1, to be copied and gone on with."""
    recipe = {**tiny_recipe("elastic-four-steps", text_folder), "data": {"shards": str(shards)}}
    runs.train(elastic_recipe(recipe, 4))
    return runs.root / recipe["name"]


def test_the_same_command_goes_on_with_other_ranks_another_stage_and_another_micro_batch(runs, recipe, four_steps):
    unbroken = runs.train(elastic_recipe({**recipe, "name": "elastic-unbroken"}))
    shutil.copytree(four_steps, runs.root / recipe["name"])
    parts = [
        (8, {"ranks": 3, "strategy": "zero2"}),
        (12, {"ranks": 1, "strategy": "zero1", "micro_batch": 4}),
    ]
    for steps, changed in parts:
        recipe = elastic_recipe(recipe, steps)
        recipe["train"] |= changed
        lines = runs.train(recipe)
    assert [line["step"] for line in lines] == list(range(1, 13))
    for line, expected in zip(lines, unbroken, strict=True):
        # The data's last row is padded: what it weighs depends on the micro batch that it is in.
        same_micro_batch = line["step"] <= 8
        assert line["train/loss"] == pytest.approx(expected["train/loss"], abs=1e-5 if same_micro_batch else 5e-3)
        assert line["train/tokens"] == expected["train/tokens"]
    folder = runs.root / recipe["name"]
    told = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    changes = [event["message"] for event in told if event["kind"] == "continued_elsewhere"]
    assert [message.partition(" goes on with ")[2] for message in changes] == [
        "2 -> 3 ranks; ZeRO 1 -> 2; loaded through DeepSpeed's universal checkpoint",
        "3 -> 1 ranks; ZeRO 2 -> 1; micro batch 1 -> 4; loaded through DeepSpeed's universal checkpoint",
    ]
    assert not list((folder / "checkpoints").glob("*universal*"))
    # Where DeepSpeed carries no states, nothing starts, and the weights go on if they are asked for.
    recipe = elastic_recipe(recipe, 13)
    recipe["train"]["strategy"] = "zero3"
    done = runs.adaponder("train", recipe)
    assert done.returncode == 2
    assert "its optimizer states cannot go on under ZeRO 3; take a train.strategy of ZeRO 1 or 2" in done.stderr
    done = runs.adaponder("train", recipe, "--resume", "weights")
    assert done.returncode == 0, done.stdout + done.stderr
    last = runs.metrics(recipe["name"])[-1]
    assert last["step"] == 13 and abs(last["train/loss"] - unbroken[-1]["train/loss"]) < 0.5


def test_a_stop_and_a_kill_while_converting_leave_nothing_behind(runs, recipe, four_steps):
    shutil.copytree(four_steps, runs.root / recipe["name"])
    recipe = elastic_recipe(recipe, 6)
    recipe["train"] |= {"ranks": 1}
    checkpoints = runs.checkpoints(recipe["name"])
    code, errors = ended_while_converting(runs, recipe, signal.SIGTERM)
    assert code == 75, errors
    assert "stopped at step 4 because of SIGTERM" in errors
    assert not list(checkpoints.glob("*universal*"))
    code, errors = ended_while_converting(runs, recipe, signal.SIGKILL)
    assert code == -signal.SIGKILL, errors
    assert [line["step"] for line in runs.train(recipe)] == list(range(1, 7))
    assert not list(checkpoints.glob("*universal*"))


def ended_while_converting(runs: Runs, recipe: dict, how: signal.Signals) -> tuple[int, str]:
    """Start the training and end it as soon as it converts; its exit code and what it said."""
    process = subprocess.Popen(
        runs.command("train", recipe), env=runs.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    checkpoints = runs.checkpoints(recipe["name"])
    deadline = time.monotonic() + 100
    while not converters(checkpoints):
        assert time.monotonic() < deadline and process.poll() is None, "no conversion was seen"
        time.sleep(0.01)
    process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    deadline = time.monotonic() + 20
    while converters(checkpoints):
        assert time.monotonic() < deadline, "the conversion goes on without its training"
        time.sleep(0.05)
    return process.returncode, errors


def converters(checkpoints: Path) -> list[int]:
    """Processes that convert a checkpoint of that folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_text()
            if (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z":
                continue
        except OSError:
            continue
        if "universal_conversion" in line and str(checkpoints) in line and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found
