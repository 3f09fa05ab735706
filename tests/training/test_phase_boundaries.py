"""Phases with parameters and schedules of their own, as the operator trains them: boundaries, and resuming at one."""

from __future__ import annotations

import shutil

import pytest
import torch

from pipeline.checkpoint import complete_checkpoints, load_model
from pipeline.trained_parameters import is_trained
from tests.conftest import Runs

pytestmark = pytest.mark.slow

KEYS = ("train/loss", "train/ce_loss", "depth/mean", "train/lr")


def test_phases_by_pattern_and_with_own_schedules_resume_at_their_boundary(runs: Runs, recipe):
    # fp32 sums under ZeRO 1: the whole way that checkpoints of that combination go.
    recipe["train"] |= {"precision": "bf16", "grad_accum_dtype": "fp32", "checkpoint_every_steps": 100}
    recipe["train"]["phases"] = [
        # 256 tokens a step: 3 steps.
        {"name": "ends", "tokens": 700, "train": ["lm_head.*", "gpt_neox.embed_in.*"], "halting": False},
        {
            "name": "all",
            "steps": 6,
            "halting": False,
            "peak_lr": 1e-3,
            "gate_lr_factor": 0.5,
            "schedule": {"kind": "wsd", "warmup_steps": 2, "decay_share": 0.5, "floor_share": 0.0},
        },
        {"name": "constant", "steps": 2, "halting": True, "schedule": {"kind": "constant", "warmup_steps": 0}},
    ]
    lines = runs.train(recipe)
    rates = [line["train/lr"] for line in lines]
    # The run's own cosine has no step of warm-up here; the others begin and end in themselves.
    assert rates[0] == 3e-3
    assert rates[3:9] == pytest.approx([0.5e-3, 1e-3, 1e-3, 1e-3, 0.5e-3, 0.0])
    assert rates[9:] == [3e-3, 3e-3]

    saved = {found.step: found for found in complete_checkpoints(runs.checkpoints(recipe["name"]))}
    # Every phase ends in a checkpoint, also where the next one trains the same parameters.
    assert {step: (found.state.phase, found.state.trained) for step, found in saved.items()} == {
        0: ("ends", "gpt_neox.embed_in.* lm_head.*"),
        3: ("ends", "gpt_neox.embed_in.* lm_head.*"),
        9: ("all", "all"),
        11: ("constant", "all"),
    }
    start, boundary, end = (load_model(saved[step]).state_dict() for step in (0, 3, 11))
    for name, weight in start.items():
        assert torch.equal(boundary[name], weight) != is_trained(saved[3].state.trained, name), name
        assert not torch.equal(end[name], boundary[name]), name

    for step in (9, 11):
        shutil.rmtree(saved[step].path)
    done = runs.adaponder("train", recipe)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "continuing from step-00000003" in done.stdout
    assert "ends: 3 steps (768 tokens), train gpt_neox.embed_in.* lm_head.*; all: 6 steps (1,536 tokens)" in done.stdout
    again = runs.metrics(recipe["name"])
    assert [line["step"] for line in again] == list(range(1, 12))
    for one, other in zip(lines, again, strict=True):
        assert [one[key] for key in KEYS] == [other[key] for key in KEYS], one["step"]


def test_a_pattern_that_fits_nothing_starts_nothing(runs: Runs, recipe):
    recipe["train"]["phases"][0]["train"] = ["gpt_neox.layers.2.*"]
    done = runs.adaponder("train", recipe)
    assert done.returncode == 2
    assert "train.phases.0.train: no parameter fits 'gpt_neox.layers.2.*'; near it: gpt_neox.layers." in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (runs.root / recipe["name"] / "logs").exists()
