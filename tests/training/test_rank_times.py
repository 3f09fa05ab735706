"""A rank that sleeps is told from one that waits for it, with and without ZeRO."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from pipeline.training.rank_times import LOOKS
from tests.training.slow_ranks import SLEEP_SECONDS, SLEEPS, STAGES, STEPS

ASLEEP = 3 * SLEEP_SECONDS
pytestmark = [pytest.mark.slow, pytest.mark.alone]


@pytest.fixture(scope="module")
def found(runs, tmp_path_factory) -> dict[str, Any]:
    """What rank 0 found, all stages in one child process a rank: a hang becomes a failure."""
    out = tmp_path_factory.mktemp("slow") / "found.json"
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("--module", "tests.training.slow_ranks", str(out)),
    ]
    done = subprocess.run(command, env=runs.environment(), capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return json.loads(out.read_text())


@pytest.mark.parametrize("stage", STAGES)
def test_the_rank_that_sleeps_works_and_the_other_waits(found, stage):
    for step in SLEEPS:
        look = found[stage]["looks"][step - 1]
        assert look["ranks/slowest"] == 1
        assert look["ranks/step_seconds_max"] >= ASLEEP
        assert look["ranks/step_seconds_min"] == look["ranks/step_seconds_median"]
        assert look["ranks/step_seconds_min"] < ASLEEP
        ratio = look["ranks/step_seconds_max"] / look["ranks/step_seconds_median"]
        assert look["ranks/slowest_over_median"] == pytest.approx(ratio)
        # Rank 0's own step is as long as the other's: its length alone would not show who was slow.
        assert found[stage]["lengths"][step - 1] >= ASLEEP


@pytest.mark.parametrize("stage", STAGES)
def test_it_is_named_once_and_told_when_it_is_over(found, stage):
    (kind, message, fields), (kind_after, message_after, fields_after) = found[stage]["told"]
    assert (kind, fields["rank"]) == ("slow_rank", 1)
    assert SLEEPS[0] + LOOKS - 1 <= fields["step"] <= SLEEPS[-1]
    assert fields["seconds"] >= ASLEEP > fields["median"]
    assert message.startswith(f"rank 1 on {fields['rank_host']} is slow: it works ")
    assert f" s on step {fields['step']}, the median of 2 ranks is " in message
    assert (kind_after, fields_after["rank"]) == ("slow_rank_recovered", 1)
    assert SLEEPS[-1] + LOOKS <= fields_after["step"] <= STEPS
    assert message_after.startswith(f"rank 1 on {fields['rank_host']} works as fast as the others again")


@pytest.mark.parametrize("stage", STAGES)
def test_waiting_at_once_changes_nothing_and_the_norm_is_known_without_zero(found, stage):
    assert found[stage]["norms"] == pytest.approx(found["zero1"]["norms"], rel=1e-5)
    assert all(0.01 < norm < 100 for norm in found["zero0"]["norms"])
