"""ZeRO 1 on one rank, without DeepSpeed's copies: the losses of the stages that keep them, saved, resumed, skipped."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(runs, tmp_path_factory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("one-rank") / "found.json"
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"),
        *("--module", "tests.training.one_rank", str(out)),
    ]
    done = subprocess.run(command, env=runs.environment(), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return json.loads(out.read_text())


@pytest.mark.parametrize("strategy", ["zero1", "zero2"])
def test_losses_and_norms_are_zero_3s(found, strategy):
    assert found[strategy]["losses"] == pytest.approx(found["zero3"]["losses"], abs=3e-6)
    assert found[strategy]["norms"] == pytest.approx(found["zero3"]["norms"], rel=1e-5)
    assert found[strategy]["losses"][-1] < found[strategy]["losses"][0]


@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
def test_resumed_it_goes_on_exactly(found, strategy):
    assert found[strategy]["again"] == found[strategy]["losses"][4:]


def test_a_checkpoint_holds_each_state_once(found):
    run = found["zero1"]
    assert run["saved"] == pytest.approx(3 * 4 * run["weights"], rel=0.2)  # masters and two moments


@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
def test_a_gradient_that_is_no_number_skips_the_step(found, strategy):
    assert (found[strategy]["skipped"], found[strategy]["moved"]) == (1, 0.0)


def test_the_norm_is_that_of_fp64(found):
    norm = found["norm"]
    assert norm["ours"] == pytest.approx(norm["exact"], rel=1e-6)
    assert norm["not_finite"] == -1.0
