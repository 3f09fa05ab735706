"""The stage on real checkpoints: what the pages tell is what the evaluations found, and the same is not made twice."""

from __future__ import annotations

import dataclasses
import json
import re
import resource
import shutil

import pytest
import yaml
from mlflow.tracking import MlflowClient
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.errors import UserError, WorldError
from pipeline.evaluation.metrics import Metrics
from pipeline.evaluation.stage import evaluate_suites
from pipeline.recipe_reader import parse_recipe
from pipeline.reporting.stage import report
from pipeline.tracking import tracking_uri
from tests.reporting.conftest import HOSTILE
from tests.reporting.test_pages import read

NEWEST = "step-00000020"


def with_recipe(run, **evaluation):
    content = run.recipe.resolved()
    content["evaluate"].update(evaluation)
    return dataclasses.replace(run, recipe=parse_recipe(content, "changed"))


def found(run, checkpoint) -> Metrics:
    return Metrics.model_validate_json((run.evaluation(checkpoint, "validation") / "metrics.json").read_bytes())


@pytest.fixture
def copied(reported, tmp_path):
    """The run in a place of its own, to be changed."""
    shutil.copytree(reported.path, tmp_path / "runs" / reported.path.name)
    return dataclasses.replace(reported, root=tmp_path / "runs")


def test_a_checkpoints_page_tells_what_was_found(reported):
    page = (reported.evaluated / NEWEST / "report.html").read_text()
    elements = read(page)
    text = " ".join(elements.texts)
    overall = found(reported, NEWEST).overall
    for told in (
        *(f"{overall.loss:.4f}", f"{overall.mean_depth:.3f}", f"{overall.bits_per_byte:.4f}"),
        *(NEWEST, reported.recipe.hash(), "eval/validation/loss", "eval/depth/mean_depth"),
        "deepspeed",
    ):
        assert told in text, told
    assert HOSTILE in text, "the source's name is told as it is"
    figures = [
        path.name for suite in ("validation", "depth") for path in reported.evaluation(NEWEST, suite).glob("*.png")
    ]
    images = [attributes for tag, attributes in elements.found if tag == "img"]
    assert len(images) == len(figures) >= 8
    assert all("as the suite" not in str(image["alt"]) for image in images), "each figure has a sentence of its own"
    assert {"script", "iframe", "object"}.isdisjoint(tag for tag, _ in elements.found)


def test_the_markdown_twin_has_its_figures_beside_it(reported):
    for folder in (reported.evaluated / NEWEST, reported.evaluated):
        text = (folder / "report.md").read_text()
        places = re.findall(r"\]\(([^)]+)\)", text)
        assert len(places) >= 4
        assert all((folder / place).is_file() for place in places)
        assert "<script" not in re.sub(r"^(`{3,})text\n.*?\n\1$", "", text, flags=re.DOTALL | re.MULTILINE)


def test_a_runs_page_compares_its_checkpoints_and_marks_the_best(reported):
    page = (reported.evaluated / "report.html").read_text()
    losses = {name: found(reported, name).overall.loss for name in ("step-00000010", NEWEST)}
    best = min(losses, key=lambda name: losses[name])
    for loss in losses.values():
        assert f"{loss:.4f}" in page
    (marked,) = re.findall(r'<tr class="marked"><td>(step-\d+)</td>', page)
    assert marked == best
    names = {path.name for path in (reported.evaluated / "report-figures").iterdir()}
    assert names == {"loss.png", "mean_depth.png", "loss_by_source.png", "loss_by_depth.png", "suite_depth.png"}
    assert page.count('<img src="data:image/png;base64,iVBOR') == len(names)


def test_the_same_is_not_made_again_and_a_new_result_is(copied, capsys):
    pages = [copied.evaluated / NEWEST / "report.html", copied.evaluated / "report.html"]
    for _ in range(2):  # the copy has an MLflow store of its own: the second report names the new run there
        report(copied.recipe, copied)
    written = [page.stat().st_mtime_ns for page in pages]
    capsys.readouterr()
    report(copied.recipe, copied)
    assert capsys.readouterr().out.count("nothing to do") == 2
    assert [page.stat().st_mtime_ns for page in pages] == written
    fewer = with_recipe(copied, rows_per_source=2)
    evaluate_suites(fewer.recipe, fewer, NEWEST, ["validation"])
    assert f"{found(copied, NEWEST).overall.loss:.4f}" in pages[0].read_text()
    assert pages[0].stat().st_mtime_ns != written[0], "the evaluation itself renews its checkpoint's report"
    report(fewer.recipe, fewer)
    assert pages[1].stat().st_mtime_ns != written[1]
    assert "another number of validation rows" in pages[1].read_text()
    pages[1].with_name("report.md").unlink()
    report(fewer.recipe, fewer)
    assert pages[1].with_name("report.md").is_file()


def test_a_suite_that_nobody_knows_is_told_all_the_same(copied):
    folder = copied.evaluation(NEWEST, "warp_drive")
    shutil.copytree(copied.evaluation(NEWEST, "validation"), folder)
    content = json.loads((folder / "metrics.json").read_text())
    kept = {"identity": content["identity"], "factor": 9.75, "by": {"ship": [1, 2.5]}}
    (folder / "metrics.json").write_text(json.dumps(kept))
    report(copied.recipe, copied)
    text = " ".join(read((copied.evaluated / NEWEST / "report.html").read_text()).texts)
    for told in ("Warp drive", "eval/warp_drive/factor", "9.75", "eval/warp_drive/by/ship/1"):
        assert told in text


def test_what_is_damaged_is_left_out_and_named(copied, capsys):
    (copied.evaluation(NEWEST, "depth") / "metrics.json").write_text("{")
    report(copied.recipe, copied)
    assert re.search("left out: .*depth/metrics.json is damaged", capsys.readouterr().out)
    page = (copied.evaluated / NEWEST / "report.html").read_text()
    assert "What could not be read" in page
    assert "eval/validation/loss" in page


def test_evaluations_of_weights_that_gave_way_are_not_told(copied):
    path = copied.evaluation(NEWEST, "depth") / "metrics.json"
    content = json.loads(path.read_text())
    content["identity"]["save_id"] = "of weights before"
    path.write_text(json.dumps(content))
    report(copied.recipe, copied)
    assert "eval/depth/" not in (copied.evaluated / NEWEST / "report.html").read_text()
    page = (copied.evaluated / "report.html").read_text()
    # Of the older and the newer checkpoint, the one has the number and the other none.
    assert re.search(r'<td>eval/depth/mean_depth</td><td class="n">[\d.]+</td><td class="n"></td>', page)


def test_evaluations_outlive_their_checkpoint(copied):
    shutil.rmtree(copied.checkpoints / "step-00000010")
    report(copied.recipe, copied)
    page = (copied.evaluated / "report.html").read_text()
    assert ">step-00000010</td>" in page
    assert f"{found(copied, 'step-00000010').overall.loss:.4f}" in page


def test_baselines_stand_beside_the_run(copied, reported):
    ours = with_recipe(
        copied,
        baselines=[
            {"name": "the first <step>", "run": "tiny", "checkpoint": "step-00000010"},
            {"name": "elsewhere", "run": str(reported.path), "checkpoint": "best"},
        ],
    )
    report(ours.recipe, ours)
    page = (copied.evaluated / "report.html").read_text()
    assert "the first &lt;step&gt;" in page
    best = min((found(reported, name).overall.loss, name) for name in ("step-00000010", NEWEST))
    row = next(line for line in page.splitlines() if line.startswith("<tr><td>elsewhere</td>"))
    assert f"{best[0]:.4f}" in row


@pytest.mark.parametrize(
    ("baseline", "told"),
    [
        ({"run": "nobody"}, "nobody is neither a run in .* nor a run's folder"),
        (
            {"run": "tiny", "checkpoint": "step-00000099"},
            "has no evaluation of step-00000099: run `adaponder evaluate`",
        ),
    ],
)
def test_a_baseline_without_evaluation_is_refused_before_anything_is_made(copied, baseline, told):
    ours = with_recipe(copied, baselines=[{"name": "other", **baseline}])
    before = (copied.evaluated / "report.html").read_bytes()
    with pytest.raises(UserError, match=f"evaluate.baselines: 'other': .*{told}"):
        report(ours.recipe, ours)
    assert (copied.evaluated / "report.html").read_bytes() == before


def test_what_was_not_evaluated_is_the_users_mistake(copied):
    with pytest.raises(UserError, match="step-00000099 of .* has no evaluation to report: step-00000010, step-0"):
        report(copied.recipe, copied, "step-00000099")
    shutil.rmtree(copied.evaluated)
    with pytest.raises(UserError, match="has no evaluation to report: run `adaponder evaluate` first"):
        report(copied.recipe, copied)


def test_a_disk_that_refuses_leaves_the_standing_report(copied):
    (copied.evaluation(NEWEST, "depth") / "metrics.json").unlink()  # there is something new to tell
    before = {path: path.read_bytes() for path in copied.evaluated.rglob("report.*")}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # bytes a file, less than any page
    try:
        with pytest.raises(WorldError, match="report: .*: File too large"):
            report(copied.recipe, copied)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path: path.read_bytes() for path in copied.evaluated.rglob("report.*")} == before
    report(copied.recipe, copied)
    assert "eval/depth/" not in (copied.evaluated / NEWEST / "report.html").read_text()


def test_mlflow_has_the_reports_at_the_training_run(reported):
    client = MlflowClient(tracking_uri(reported.root))
    (experiment,) = [each for each in client.search_experiments() if each.name == "adaponder"]
    (parent,) = [
        each for each in client.search_runs([experiment.experiment_id]) if "mlflow.parentRunId" not in each.data.tags
    ]
    logged = {item.path for item in client.list_artifacts(parent.info.run_id, f"reports/{NEWEST}")}
    assert {f"reports/{NEWEST}/report.html", f"reports/{NEWEST}/report.md", f"reports/{NEWEST}/validation"} <= logged
    of_run = {item.path for item in client.list_artifacts(parent.info.run_id, "reports/run")}
    assert of_run == {"reports/run/report.html", "reports/run/report.md", "reports/run/report-figures"}
    here = reported.evaluated / NEWEST / "report.html"
    assert f"adaponder.report_sha256.{NEWEST}" in parent.data.tags
    assert parent.data.tags[f"adaponder.report_sha256.{NEWEST}"] in here.read_text()
    assert parent.info.run_id in here.read_text()


def test_the_command_makes_both_and_tells_a_mistake_in_a_line(copied, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(copied.recipe.resolved()))
    for page in copied.evaluated.rglob("report.*"):
        page.unlink()
    where = ["report", str(recipe), "--runs", str(copied.root)]
    done = CliRunner().invoke(app, [*where, "--checkpoint", "step-00000010"])
    assert done.exit_code == 0
    made = {str(path.relative_to(copied.evaluated)) for path in copied.evaluated.rglob("report.*")}
    assert made == {"report.html", "report.md", "step-00000010/report.html", "step-00000010/report.md"}
    refused = CliRunner().invoke(app, [*where, "--set", "evaluate.baselines=[{name: a, run: x}, {name: a, run: y}]"])
    assert refused.exit_code == 2
