"""The paper's comparisons in small: members, their recipes, what is claimed of them, and a whole small study."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.paper.claims import _beyond_spread
from benchmarks.paper.members import PAPER, STABILITY
from benchmarks.paper.results import spread
from benchmarks.paper.study import Study, Training
from pipeline.checkpoint import find_checkpoint, load_model
from pipeline.checkpoint_marker import wrong_files
from pipeline.errors import UserError
from pipeline.model.flops import mean_keys, training_work
from pipeline.network_config import model_config
from pipeline.recipe_reader import read_recipe
from pipeline.training.checks import check_recipe
from pipeline.training.model_start import start_model
from tests.conftest import Runs, tiny_recipe

PROJECT = Path(__file__).parents[2]
RECIPE = PROJECT / "benchmarks" / "paper_small.yaml"
RECIPES = [RECIPE, PROJECT / "benchmarks" / "paper_70m.yaml"]
FEW = ("vanilla", "ponder", "adaponder", "logit-loss", "from-vanilla")


@pytest.fixture(params=RECIPES, ids=lambda path: path.stem)
def study(request: pytest.FixtureRequest, tmp_path: Path) -> Study:
    return Study(str(request.param), tmp_path, PAPER, (1, 2))


def test_every_member_has_a_name_and_a_title_of_its_own(study):
    assert len({member.name for member in PAPER}) == len({member.title for member in PAPER}) == len(PAPER)
    assert len({training.name for training in study.trainings}) == 2 * len(PAPER)


@pytest.mark.parametrize("member", PAPER, ids=lambda member: member.name)
def test_members_share_data_and_steps_and_differ_in_what_they_say(study, member):
    shared = read_recipe(study.recipe)
    recipe = study.recipe_of(Training(member, 2))
    assert recipe.tokenize == shared.tokenize
    assert recipe.data.shards == str(study.root / "data" / "shards")
    assert recipe.seed == (1002 if member.weights_of else 2)
    assert recipe.train.global_batch == shared.train.global_batch
    assert recipe.train.optimizer.peak_lr == member.lr_share * shared.train.optimizer.peak_lr
    model = recipe.model.model_dump()
    assert {name: model[name] for name in member.model} == dict(member.model)
    if member.weights_of:
        assert recipe.model.start == "weights"
        assert recipe.model.backbone == str(study.root / f"{member.weights_of}-seed2" / "weights")
    else:
        check_recipe(recipe, 1, elsewhere="gpu")
        assert recipe.train.steps == shared.train.steps
    if member.branch_of:
        trunk = study.recipe_of(Training(next(each for each in PAPER if each.name == member.branch_of), 2))
        assert recipe.train.phases[0] == trunk.train.phases[0]
        assert (recipe.model, recipe.train.phases[1:]) != (trunk.model, trunk.train.phases[1:])


@pytest.mark.parametrize("member", [each for each in PAPER if each.branch_of], ids=lambda member: member.name)
def test_a_branch_takes_the_steps_of_its_trunk_s_first_phase(tmp_path, member):
    """The same loss and gradients, so that its own first phase would have ended in the same weights."""
    study, training = Study(str(RECIPE), tmp_path, PAPER, (2,)), Training(member, 2)
    losses, gradients = [], []
    for one in (training, study.trunk(training)):
        recipe = study.recipe_of(one)
        model = start_model(recipe)
        model.config.halting = "none"
        assert not recipe.train.phases[0].halting
        tokens = torch.randint(0, 512, (2, 24), generator=torch.Generator().manual_seed(recipe.seed))
        loss = model(tokens[:, :-1], shift_labels=tokens[:, 1:]).loss
        loss.backward()
        losses.append(loss)
        gradients.append(torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None]))
    assert losses[0] == losses[1] and torch.equal(*gradients)


def test_as_much_compute_is_as_many_multiply_accumulates(study):
    own, other = (
        next(member for member in PAPER if member.name == name) for name in ("vanilla-continued-compute", "adaponder")
    )
    vanilla = next(member for member in PAPER if member.name == "vanilla")
    steps = study.recipe_of(Training(own, 1)).train.steps
    one_pass, all_passes = (model_config(study.recipe_of(Training(member, 1))) for member in (vanilla, other))
    shared = read_recipe(study.recipe)
    spent, wanted = (
        count * training_work(config, mean_keys(shared.tokenize.seq_len)).model.total
        for count, config in ((steps, one_pass), (shared.train.phases[-1].steps, all_passes))
    )
    assert spent == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
@pytest.mark.parametrize("member", STABILITY, ids=lambda member: member.name)
def test_the_study_of_stability_changes_one_thing_at_a_time(tmp_path, member, path):
    study = Study(str(path), tmp_path, STABILITY, (1,))
    recipe, shared = study.recipe_of(Training(member, 1)), read_recipe(str(path))
    assert recipe.train.steps == shared.train.steps
    changed = {name for name, value in recipe.model if value != getattr(shared.model, name)}
    if member.name not in ("vanilla", "adaponder"):
        assert len(changed) + (recipe.train.phases != shared.train.phases) == 1


def test_another_text_takes_the_place_of_the_recipe_s(tmp_path):
    (tmp_path / "texts").mkdir()
    study = Study(str(RECIPE), tmp_path, PAPER, (1,), str(tmp_path / "texts"))
    (source,) = study.recipe_of(study.trainings[0]).tokenize.sources
    assert source.kind == "text" and source.path == str(tmp_path / "texts")
    with pytest.raises(UserError, match="neither a folder of text files nor a file"):
        _ = Study(str(RECIPE), tmp_path, PAPER, (1,), str(tmp_path / "none")).data_recipe


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=5))
def test_beyond_the_spread_is_above_zero_for_every_seed(values):
    if _beyond_spread(values):
        assert min(values) > 0
        assert not _beyond_spread([-value for value in values])


def test_a_spread_in_words():
    assert spread([1.0, 2.0, 3.0], 2, "+") == "+2.00 ± 1.00"
    assert spread([0.5]) == "0.5000"


def test_an_unknown_member_is_refused(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.paper_small", "--members", "vanila", "--runs", str(tmp_path)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "there is no vanila; there are vanilla, ponder" in done.stderr
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_a_whole_study_that_is_stopped_once(tmp_path: Path, text_folder: Path, runs: Runs):
    recipe = tiny_recipe("small", text_folder)
    recipe["train"] |= {"ranks": 1, "checkpoint_every_steps": 100}
    for phase in recipe["train"]["phases"]:
        phase["steps"] = 6
    recipe["evaluate"] |= {"policies": {"rows_per_source": 4}, "depth": {"rows_per_source": 4}}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(recipe))
    command = [
        *(sys.executable, "-m", "benchmarks.paper_small", "--recipe", str(tmp_path / "small.yaml")),
        *("--runs", str(tmp_path / "runs"), "--report", str(tmp_path / "report"), "--seeds", "3", "--members", *FEW),
    ]
    stopped = subprocess.Popen(command, cwd=PROJECT, env=runs.environment())
    deadline = time.monotonic() + 120
    while not (tmp_path / "runs" / "ponder-seed3" / "metrics.jsonl").exists():
        assert time.monotonic() < deadline and stopped.poll() is None
        time.sleep(0.2)
    trainings = psutil.Process(stopped.pid).children(recursive=True)
    stopped.terminate()
    assert stopped.wait(timeout=60) == 128 + signal.SIGTERM
    assert not psutil.wait_procs(trainings, timeout=10)[1]

    done = subprocess.run(command, cwd=PROJECT, env=runs.environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads((tmp_path / "report" / "results.json").read_text())
    assert [each["member"] for each in found] == list(FEW)
    lines = {each["member"]: each for each in found}
    assert lines["vanilla"]["validation"]["mean_depth"] == 1 and lines["ponder"]["validation"]["mean_depth"] == 3
    assert lines["from-vanilla"]["validation_at_start"]["loss"] > 0
    assert {"learned", "uniform", "constant ratio"} <= lines["adaponder"]["equal_compute"].keys()
    # The branch has its first phase from the trunk and took no step of it again.
    steps = [json.loads(line)["step"] for line in (tmp_path / "runs/logit-loss-seed3/metrics.jsonl").open()]
    assert steps == list(range(7, 13))
    taken = find_checkpoint(tmp_path / "runs/logit-loss-seed3/checkpoints", "step-00000006")
    assert not wrong_files(taken.path, taken.marker) and taken.state.recipe["model"]["ponder_loss_on"] == "logit"
    assert load_model(taken).config.ponder_loss_on == "logit"

    report = (tmp_path / "report" / "README.md").read_text()
    for figure in re.findall(r"\]\(([^)]+\.png)\)", report):
        assert (tmp_path / "report" / figure).stat().st_size > 5000
    assert "| vanilla (one pass) |" in report and "AdaPonderLM from vanilla" in report
    assert "within 0.01 nat of fixed-depth PonderLM" in report
    again = subprocess.run(command, cwd=PROJECT, env=runs.environment(), capture_output=True, text=True, timeout=120)
    assert "all 5 trainings stand, nothing to do" in again.stdout
    assert (tmp_path / "report" / "README.md").read_text() == report

    recipe["train"]["phases"][-1]["ponder_weight"] = 0.2
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(recipe))
    other = subprocess.run(command, cwd=PROJECT, env=runs.environment(), capture_output=True, text=True, timeout=120)
    assert other.returncode == 2
    assert "adaponder-seed3 was trained under another recipe: remove it, or take another --runs" in other.stderr
