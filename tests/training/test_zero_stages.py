"""Saving memory and skipping halted tokens under every ZeRO stage, on two ranks: the plain training's losses."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.training.zero_losses import DEPTHS, PLAIN, settings

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(runs, tmp_path_factory) -> list[dict]:
    """Every setting, trained in one child process a rank: a hang becomes a failure."""
    out = tmp_path_factory.mktemp("losses") / "losses.json"
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("--module", "tests.training.zero_losses", str(out)),
    ]
    done = subprocess.run(command, env=runs.environment(), capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    found = json.loads(out.read_text())
    assert len(found) == len(list(settings()))
    return found


@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("depths", DEPTHS)
def test_losses_are_those_of_the_plain_training(trained, stage, depths):
    (plain,) = [run for run in trained if run["fields"] == PLAIN and run["depths"] == depths]
    assert plain["losses"][-1] < plain["losses"][0]
    if depths == "learned":
        assert all(1.1 < mean < 2.9 for mean in plain["mean_depths"]), "some tokens were meant to halt"
    else:
        assert plain["mean_depths"][1] == 1
    compared = [run for run in trained if run["stage"] == stage and run["depths"] == depths and run is not plain]
    assert any(run["fields"]["skip_halted"] for run in compared)
    for run in compared:
        assert run["mean_depths"] == plain["mean_depths"], run["fields"]
        assert run["losses"] == pytest.approx(plain["losses"], rel=0, abs=3e-6), run["fields"]
