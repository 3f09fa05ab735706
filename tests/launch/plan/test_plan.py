"""`adaponder plan` as a command."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from pipeline.cli import app

SMALL = ["--set", "model.backbone.num_hidden_layers=1", "--set", "tokenize.seq_len=32"]


def plan(*arguments: str):
    return CliRunner().invoke(app, ["plan", *arguments], env={"COLUMNS": "200"})


def test_everything_is_in_the_json():
    done = plan("quickstart", *SMALL, "--gpu", "cpu", "--nodes", "1,4", "--gpus-per-node", "2", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    assert found["training"]["tokens_per_step"] == 16 * 32
    assert found["training"]["steps"] == 240
    assert found["training"]["multiply_accumulates"]["total"] > 0
    assert found["disk"]["checkpoint"] == 16 * found["network"]["parameters"]["total"]
    assert [one["ranks"] for one in found["nodes"]] == [2, 8]
    for one in found["nodes"]:
        assert len(one["layouts"]) == 7 * 5
        assert one["take"]["strategy"] == "zero1"
        assert one["take"]["fits"]
        assert one["why"].startswith("zero1 with activation_checkpointing none holds a micro batch of 2")
        # fp32: no peak is known, so there is no time.
        assert one["days"] == {}
    of_two, of_eight = (one["recipe_layout"]["peak_bytes"] for one in found["nodes"])
    assert of_eight < of_two


@pytest.mark.slow
def test_what_does_not_fit_is_seen_and_another_strategy_taken():
    """Ever less memory asks for ever more splitting, until nothing fits. A network of 0.2 billion parameters."""
    wide = ["--set", "train.precision=bf16", "--set", "model.backbone.hidden_size=4096", *SMALL]
    arguments = ["quickstart", *wide, "--gpu", "H100", "--gpus-per-node", "8", "--price", "2", "--json"]
    done = plan(*arguments)
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)["nodes"][0]
    assert found["take"]["strategy"] == "zero1"
    assert found["take"]["fits"]
    assert found["cost"] == pytest.approx(2 * found["gpu_hours"])
    least = min(one["peak_bytes"] for one in found["layouts"] if one["strategy"] == "zero1")
    for gib, fits in ((0.99 * least / 2**30 / 0.92, True), (0.01, False)):
        done = plan(*arguments, "--gpu-memory-gib", str(gib))
        assert done.exit_code == 0, done.output
        taken = json.loads(done.output)["nodes"][0]["take"]
        assert (taken is not None) == fits
        if taken:
            assert taken["strategy"] != "zero1"
            assert taken["peak_bytes"] <= 0.92 * gib * 2**30


def test_tables_for_people():
    done = plan("quickstart", *SMALL, "--gpu", "cpu", "--gpus-per-node", "2")
    assert done.exit_code == 0, done.output
    for told in ("parameters", "tokens a step", "layouts", "zero3-offload", "memory of a rank"):
        assert told in done.output


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere"], "recipe nowhere"),
        (["quickstart", "--nodes", "0"], "--nodes 0"),
        (["quickstart", "--nodes", "one"], "--nodes one"),
        (["quickstart", "--gpus-per-node", "0"], "--gpus-per-node 0"),
        (["quickstart", "--gpus-per-node", "3"], "train.global_batch 16 is not divisible by 3 ranks"),
        (["quickstart", "--gpu", "H1"], "--gpu H1"),
        (["quickstart", "--gpu-memory-gib", "-1"], "--gpu-memory-gib"),
        (["quickstart", "--mfu", "40"], "--mfu 40"),
        (["quickstart", "--price", "-1"], "--price -1"),
        (["quickstart", "--mean-depth", "5"], "--mean-depth 5"),
        (["quickstart", "--set", "train.strategy=zero9"], "train.strategy zero9"),
        (["quickstart", "--set", "train.strategy=zero0", "--set", "train.precision=bf16"], "zero0"),
        (["quickstart", "--set", "model.backbone=./no-such-folder"], "model.backbone ./no-such-folder"),
    ],
)
def test_mistakes_are_one_line(arguments, told):
    done = plan(*arguments)
    assert done.exit_code == 2
    assert told in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
