"""What cannot be judged is found where a training starts."""

from pathlib import Path

import pytest

from pipeline.data.manifest import read_manifest, write_manifest
from pipeline.errors import UserError
from pipeline.evaluation import suites
from pipeline.evaluation.check import check_evaluation, check_validation_rows
from pipeline.evaluation.validation import Validation
from pipeline.recipe_reader import parse_recipe
from pipeline.run_folder import RunFolder
from pipeline.training.stage import train
from tests.conftest import tiny_recipe


@pytest.fixture
def without_text(monkeypatch):
    """A suite that finds something wrong with every recipe, in the place of `depth`."""

    class Refusing(Validation):
        def settings(self, recipe):
            raise UserError("there is no text for it")

    monkeypatch.setitem(suites.SUITES, "depth", Refusing)


def folder_of(root: Path, **evaluation) -> RunFolder:
    content = tiny_recipe("tiny", root)
    content["evaluate"] |= evaluation
    return RunFolder(root, parse_recipe(content, "test"))


def test_suites_of_the_schedule_are_asked_and_others_are_not(tmp_path, without_text):
    fine = folder_of(tmp_path)
    check_evaluation(fine.recipe, fine)
    for where in ("suites", "full_suites"):
        broken = folder_of(tmp_path, **{where: ["validation", "depth"]})
        with pytest.raises(UserError, match="the suite depth cannot judge by this recipe: there is no text for it"):
            check_evaluation(broken.recipe, broken)


def test_a_training_does_not_start_with_it(tmp_path, without_text):
    broken = folder_of(tmp_path, full_suites=["depth"])
    with pytest.raises(UserError, match="the suite depth"):
        train(broken.recipe, broken)
    assert list(tmp_path.iterdir()) == []


def test_jobs_in_kubernetes_need_an_image(tmp_path):
    broken = folder_of(tmp_path, jobs={"where": "kubernetes"})
    with pytest.raises(UserError, match="cluster.kubernetes.image is empty"):
        check_evaluation(broken.recipe, broken)


def test_shards_without_validation_rows(run, tmp_path):
    check_validation_rows(folder_of(tmp_path))  # there are no shards yet
    check_validation_rows(run)
    bare = folder_of(tmp_path)
    manifest = read_manifest(run.shards)
    bare.shards.mkdir(parents=True)
    write_manifest(bare.shards, manifest.model_copy(update={"splits": {"train": manifest.train}}))
    with pytest.raises(UserError, match="holds no validation rows"):
        check_validation_rows(bare)
