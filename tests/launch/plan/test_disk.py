from __future__ import annotations

import pytest

from launch.plan.disk import checkpoint_bytes, run_disk, saved_steps, shard_bytes
from pipeline.recipe_reader import read_recipe
from pipeline.strategy_file import read_strategy


def test_steps_that_are_saved_are_those_of_the_training():
    recipe = read_recipe("quickstart", ["train.checkpoint_log_spaced=true"])
    assert saved_steps(recipe) == [0, 1, 2, 4, 8, 16, 32, 64, 100, 120, 128, 200, 240]


@pytest.mark.parametrize(
    ("keep", "kept", "most"),
    # 0, 100, 120, 200, 240: the ends of phases and step 0 stay.
    [("all", 5, 5), ("2", 4, 4)],
)
def test_retention_bounds_what_lies_there(keep, kept, most):
    recipe = read_recipe("quickstart", [f"train.keep_last={keep}"])
    disk = run_disk(recipe, 1000, 4096, {"all": 1000}, read_strategy("zero1"))
    assert (disk.kept, disk.most) == (kept, most)
    assert disk.checkpoint == 16 * 1000
    assert disk.checkpoints_bytes == most * 16 * 1000
    assert disk.written == 5 * 16 * 1000


def test_a_long_run_keeps_few():
    recipe = read_recipe("pythia-70m-scratch", ["train.keep_last=3", "train.keep_every_steps=10000"])
    disk = run_disk(recipe, 1000, 4096, {"all": 1000}, read_strategy("zero1"))
    # 0, 10,000, ..., 50,000, and the last three.
    assert disk.kept == 6 + 2
    assert disk.most == 6 + 2 + 1
    assert disk.written == 51 * 14 * 1000


@pytest.mark.parametrize(
    ("strategy", "precision", "trained", "bytes_"),
    [
        ("zero0", "fp32", 1000, 12_000),
        ("zero1", "fp32", 1000, 16_000),
        ("zero2", "bf16", 1000, 14_000),
        ("zero3", "bf16", 1000, 12_000),
        # The gates alone: weights of all, exact ones of the frozen.
        ("zero1", "bf16", 100, 2_000 + 1_200 + 3_600),
    ],
)
def test_a_checkpoint_s_size(strategy, precision, trained, bytes_):
    recipe = read_recipe("quickstart", [f"train.precision={precision}"])
    assert checkpoint_bytes(recipe, 1000, trained, read_strategy(strategy)) == bytes_


def test_large_vocabularies_take_four_bytes():
    recipe = read_recipe("quickstart")
    assert shard_bytes(recipe, 1000, 70_000) == 2 * shard_bytes(recipe, 1000, 50_304)
