"""The suite on a real checkpoint: equal compute, the shares that were asked for, the largest gates, one seed."""

from __future__ import annotations

import json

import pytest
import torch

from pipeline.data.manifest import read_manifest
from pipeline.data.rows import RowReader
from pipeline.errors import UserError
from pipeline.evaluation.halting import run_as
from pipeline.evaluation.identity import identify
from pipeline.evaluation.policies.imposed import LargestGoOn
from pipeline.evaluation.policies.suite import PolicySuite, compare_policies
from pipeline.evaluation.stage import evaluate_suites
from pipeline.evaluation.subject import Subject
from tests.evaluation.test_stage import with_recipe

SETTINGS = {"rows_per_source": 8, "draws": 100, "thresholds": [0.5, 0.99], "mean_depths": [1.5, 2.5]}


@pytest.fixture(scope="module")
def compared(run, checkpoint):
    changed = with_recipe(run, policies=SETTINGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        return evaluate_suites(changed.recipe, changed, checkpoint.name, ["policies"])["policies"]


def test_all_policies_spend_what_the_learned_one_spends(compared):
    equal = [point for point in compared.points if point.at_equal_compute]
    assert [point.policy for point in equal] == [
        *("learned", "uniform", "constant ratio", "geometric 0.1", "geometric 0.3", "geometric 0.5"),
        *("geometric 0.7", "geometric 0.9"),
    ]
    spent = equal[0].mean_depth
    assert 1.2 < spent < 2.9, "the test's gates halt some tokens and not all"
    for point in equal:
        assert point.mean_depth == pytest.approx(spent, rel=0.005)
        assert point.active_shares[0] == 1
        assert sum(point.active_shares) == pytest.approx(point.mean_depth)
        assert point.interval[0] <= point.loss <= point.interval[1]
    assert equal[0].over_learned is None
    assert all(point.over_learned == pytest.approx(point.loss - equal[0].loss) for point in equal[1:])
    uniform = equal[1]
    assert uniform.active_shares[1] == pytest.approx(uniform.active_shares[2], abs=0.01)


def test_the_learned_curve_and_truncated_networks_are_there(compared, run, checkpoint, model):
    by_threshold = {point.threshold: point.mean_depth for point in compared.points if point.policy == "learned"}
    assert set(by_threshold) == {0.5, 0.99, compared.halt_threshold}
    assert by_threshold[0.5] > by_threshold[0.99], "a higher tau halts earlier"
    truncated = [point for point in compared.points if point.policy.startswith("truncated at ")]
    assert [point.mean_depth for point in truncated] == [1, 2, 3]
    work = [point.multiply_accumulates for point in truncated]
    assert work == sorted(work)


def test_figure_and_tables_are_written(compared, run, checkpoint):
    output = run.evaluation(checkpoint.name, "policies")
    assert (output / "policies.png").read_bytes().startswith(b"\x89PNG")
    lines = (output / "policies.csv").read_text().splitlines()
    assert len(lines) == 1 + len(compared.points)
    assert json.loads((output / "metrics.json").read_text())["identity"]["settings"]["draws"] == 100
    table = PolicySuite().tables(compared)[0]
    assert table.row_count == 8


def test_the_same_seed_gives_the_same_whatever_the_size_of_a_batch(compared, run, checkpoint, model):
    recipe = with_recipe(run, policies={**SETTINGS, "batch_rows": 3}).recipe
    subject = Subject(recipe, run, checkpoint, read_manifest(run.shards), model)
    again = compare_policies(subject, identify(checkpoint, "policies", PolicySuite().settings(recipe)))
    assert again.identity == compared.identity
    for point, other in zip(compared.points, again.points, strict=True):
        assert point.policy == other.policy
        assert point.active_shares == other.active_shares
        assert point.loss == pytest.approx(other.loss, abs=1e-6)
        assert point.interval == pytest.approx(other.interval, abs=1e-6)


def test_the_tokens_with_the_largest_gates_go_on(run, checkpoint, model):
    with RowReader(run.shards, read_manifest(run.shards), "validation-words") as reader:
        inputs, _ = reader.batch([0, 1])
    counted = torch.ones_like(inputs, dtype=torch.bool)
    with run_as(model, "skip"), torch.inference_mode():
        depths = model(inputs, decide=LargestGoOn(counted, [[20, 5], [7, 7]])).depths
        first = model(inputs, imposed_depths=torch.ones_like(inputs)).gate_logits[..., 0]
        second = model(inputs, imposed_depths=depths.clamp(max=2)).gate_logits[..., 1]
    assert [(depths[row] >= depth).sum().item() for row in (0, 1) for depth in (2, 3)] == [20, 5, 7, 7]
    for row in (0, 1):
        went = depths[row] >= 2
        assert first[row][went].min() >= first[row][~went].max()
        further = depths[row] >= 3
        if (went & ~further).any():
            assert second[row][further].min() >= second[row][went & ~further].max()


def test_a_network_that_cannot_halt_is_the_users_mistake(run, checkpoint, model):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.config, "gating", "open")
        subject = Subject(run.recipe, run, checkpoint, read_manifest(run.shards), model)
        with pytest.raises(UserError, match="cannot halt"):
            compare_policies(subject, identify(checkpoint, "policies", {}))
