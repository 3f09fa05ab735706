"""Baselines in a release's card: every number from an evaluation's file, beside the release's own."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from pipeline.durable import sha256_file
from pipeline.errors import UserError
from pipeline.evaluation.stage import evaluate, evaluate_suites
from pipeline.release.baselines import baseline_results
from pipeline.release.card_results import results
from pipeline.release.provenance import read_provenance
from pipeline.release.stage import release
from tests.evaluation.test_stage import with_recipe
from tests.evaluation.tiny_run import make_model, make_run, write_checkpoint

COMMAND = "adaponder release tiny.yaml"
OURS, EARLIER = "step-00000020", "step-00000010"
NASTY = "a|b <i>*c*</i>"


@pytest.fixture(scope="module")
def own_run(tmp_path_factory):
    """A run of two evaluated checkpoints."""
    torch.set_num_threads(1)
    run = make_run(tmp_path_factory.mktemp("compared"))
    for step in (10, 20):
        torch.manual_seed(step)
        write_checkpoint(run, make_model(run), step)
        evaluate(run.recipe, run, f"step-{step:08d}")
    return run


@pytest.fixture(scope="module")
def elsewhere(own_run, tmp_path_factory):
    """A copy of the run in another folder, whose earlier checkpoint was judged on fewer rows."""
    path = tmp_path_factory.mktemp("elsewhere") / "other-run"
    shutil.copytree(own_run.path, path)
    few = with_recipe(own_run, rows_per_source=2)
    copied = type(own_run)(path.parent, few.recipe.model_copy(update={"name": path.name}))
    evaluate(copied.recipe, copied, EARLIER)
    return path


def with_baselines(run, *baselines):
    return with_recipe(
        run, baselines=[{"name": name, "run": str(of), "checkpoint": step} for name, of, step in baselines]
    )


def numbers(folder, checkpoint):
    """The row of a card, as metrics.json has it."""
    found = json.loads((folder / "evaluation" / checkpoint / "validation" / "metrics.json").read_text())["overall"]
    loss = f"{found['loss']:.4f} | {found['perplexity']:,.2f} | {found['bits_per_byte']:.4f}"
    return f"| {found['tokens']:,} | {loss} | {found['mean_depth']:.3f} |"


def test_a_card_sets_baselines_beside_the_release_and_says_what_does_not_compare(own_run, elsewhere):
    ours = with_baselines(own_run, ("the start", "tiny", EARLIER), (NASTY, elsewhere, EARLIER))
    metrics = evaluate(own_run.recipe, own_run, OURS)
    found = baseline_results(ours.recipe, ours)
    assert [each.run for each in found] == ["tiny", "other-run"], "no folder of the machine"
    text = results(metrics, found, "float32", None)
    rows = [line for line in text.splitlines() if line.startswith("| all")]
    assert rows == [
        f"| all {numbers(own_run.path, OURS)}",
        f"| all, by the start {numbers(own_run.path, EARLIER)}",
        f"| all, by a\\|b \\<i\\>\\*c\\*\\</i\\> {numbers(elsewhere, EARLIER)}",
    ]
    assert "the start is tiny, step 10, on the same rows." in text
    assert "other-run, step 10, evaluated on another number of rows." in text
    other = found[0].model_copy(update={"manifest_hash": "0" * 64})
    assert "evaluated on other shards: its numbers are of other text" in results(metrics, [other], "float32", None)


def test_nothing_is_said_where_nothing_was_evaluated(own_run, tmp_path, capsys):
    metrics = evaluate(own_run.recipe, own_run, OURS)
    assert baseline_results(own_run.recipe, own_run) == []
    alone = results(metrics, [], "float32", None)
    assert [line for line in alone.splitlines() if line.startswith("| all")] == [f"| all {numbers(own_run.path, OURS)}"]
    found = baseline_results(with_baselines(own_run, ("x", "tiny", EARLIER)).recipe, own_run)
    assert results(None, found, "float32", None) == "This checkpoint was not evaluated."
    # Judged by another suite only.
    shutil.copytree(own_run.path, tmp_path / "third")
    third = type(own_run)(tmp_path, own_run.recipe.model_copy(update={"name": "third"}))
    evaluate_suites(third.recipe, third, EARLIER, ["windows"])
    shutil.rmtree(third.evaluation(EARLIER, "validation"))
    assert baseline_results(with_baselines(own_run, ("[b]y", third.path, EARLIER)).recipe, own_run) == []
    assert "leaves out the baseline [b]y: its checkpoint has no evaluation validation" in capsys.readouterr().out


@pytest.mark.slow
def test_a_release_is_made_anew_when_its_baselines_change_and_refused_without_their_evaluation(own_run, capsys):
    plain = release(own_run.recipe, own_run, command=COMMAND)
    assert "all, by" not in (plain / "README.md").read_text()
    unknown = with_baselines(own_run, ("x", "tiny", "step-00000099"))
    before = (plain / "provenance.json").read_bytes()
    with pytest.raises(UserError, match="evaluate.baselines: 'x': .*no evaluation of step-00000099"):
        release(unknown.recipe, unknown, command=COMMAND)
    assert (plain / "provenance.json").read_bytes() == before
    ours = with_baselines(own_run, ("the start", "tiny", EARLIER))
    for said in ("loading", "nothing to do"):
        made = release(ours.recipe, ours, command=COMMAND)
        assert said in capsys.readouterr().out
    assert f"| all, by the start {numbers(own_run.path, EARLIER)}" in (made / "README.md").read_text()
    provenance = read_provenance(made)
    assert provenance is not None
    (baseline,) = provenance.baselines
    assert baseline.metrics_sha256 == sha256_file(own_run.evaluation(EARLIER, "validation") / "metrics.json")
