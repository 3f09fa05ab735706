"""Strategies in bf16 on two ranks: sums of gradients, what is saved and read back, memory, parameters by pattern."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from launch.plan.state_memory import state_memory
from tests.training.strategy_runs import PATTERN, STRATEGIES, SUMS

pytestmark = pytest.mark.slow
each_strategy = pytest.mark.parametrize("strategy", STRATEGIES)
each_sum = pytest.mark.parametrize("sums", SUMS)


@pytest.fixture(scope="module")
def found(runs, tmp_path_factory) -> dict[str, Any]:
    """What rank 0 found, all strategies in one child process a rank: a hang becomes a failure."""
    out = tmp_path_factory.mktemp("strategies") / "found.json"
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("--module", "tests.training.strategy_runs", str(out)),
    ]
    done = subprocess.run(command, env=runs.environment(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return json.loads(out.read_text())


@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3", "zero2-offload"])
def test_sums_in_fp32_lose_nothing_and_sums_in_bf16_do(found, strategy):
    """Of a micro-batch and its repetitions the mean is the gradient of one of them, but for what adding up rounds."""
    assert found["gradient_error"][f"{strategy} fp32"] < 1e-6
    assert found["gradient_error"][f"{strategy} bf16"] > 1e-3


@each_strategy
def test_what_is_saved_with_sums_in_fp32_is_read_back_exactly_and_resumed(found, strategy):
    run = found["resumed"][f"{strategy} fp32"]
    assert run["read_back"]
    assert run["again"] == run["losses"][-1]
    assert run["losses"] == pytest.approx(found["resumed"]["zero1 bf16"]["losses"], abs=2e-2)


@each_strategy
@each_sum
def test_states_take_the_memory_that_the_readme_says(found, strategy, sums):
    states = found["states"][f"{strategy} {sums}"]
    offload = strategy.endswith("-offload")
    told = state_memory(states["parameters"], int(strategy[4]), 2, sums, offload=offload)
    # On a CPU both kinds of memory are one. Stage 2 keeps two buffers of the largest parameter where it offloads.
    buffers = 2 * 2 * states["largest"] if strategy == "zero2-offload" else 0
    assert states["bytes"] == pytest.approx(told.gpu + told.host + buffers, rel=0.02)


@pytest.mark.parametrize("run", ["zero0 fp32", "zero1 fp32", "zero3 fp32", "zero1 bf16", "zero3 bf16"])
def test_a_pattern_trains_what_it_names_and_nothing_else(found, run):
    trained = found["pattern"][run]
    assert list(trained["moved"]) == PATTERN
    # Adam's first steps are as long as the LR wherever there is a gradient.
    assert 3e-3 < trained["moved"][PATTERN[0]] < 4 * 3.1e-3
    exact = 1e-6 if run.endswith("fp32") else 2e-2
    assert trained["losses"] == pytest.approx(found["pattern"]["zero0 fp32"]["losses"], abs=exact)
