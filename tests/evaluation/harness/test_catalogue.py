"""What is wrong with a task is told before anything is computed, in one line that names it."""

import pytest

from pipeline.errors import UserError, WorldError
from pipeline.evaluation.harness.catalogue import Catalogue, included_content
from tests.evaluation.harness.local_tasks import CHOICES, LAMBADA, ROLLING, make_tasks

pytest.importorskip("lm_eval")


def change(tasks, name, *replacements):
    path = tasks / f"{name}.yaml"
    content = path.read_text()
    for old, new in replacements:
        assert old in content
        content = content.replace(old, new)
    path.write_text(content)


@pytest.fixture
def own(tmp_path):
    return make_tasks(tmp_path / "own")


def test_data_that_are_not_there(own):
    (own / f"{LAMBADA}.jsonl").unlink()
    with pytest.raises(WorldError, match=f"the data of task {LAMBADA} cannot be had .*include_path"):
        Catalogue([LAMBADA], str(own)).load([LAMBADA], 0)


def test_a_broken_template(own):
    change(own, CHOICES, ("{{question}}", "{{question.nothing()}}"))
    with pytest.raises(UserError, match=f"task {CHOICES} is broken"):
        Catalogue([CHOICES], str(own)).load([CHOICES], 0)


def test_more_examples_than_there_are(own):
    catalogue = Catalogue([CHOICES], str(own))
    with pytest.raises(UserError, match=f"task {CHOICES} makes no request with 50 examples before it: ValueError"):
        catalogue.load([CHOICES], 50)


def test_a_task_that_fixes_its_examples_at_none_is_left_out_of_more(own):
    catalogue = Catalogue([LAMBADA, ROLLING], str(own))
    assert [task.task_name for task in catalogue.load([LAMBADA, ROLLING], 5)] == [LAMBADA]
    assert [task.task_name for task in catalogue.load([LAMBADA, ROLLING], 0)] == [LAMBADA, ROLLING]


def test_the_hash_of_the_folder_follows_its_content(own):
    before = included_content(str(own))
    assert included_content(str(own)) == before
    (own / f"{LAMBADA}.jsonl").write_text('{"text": "gate token"}\n')
    assert included_content(str(own)) != before
    assert included_content(None) is None
    with pytest.raises(UserError, match="there is no folder"):
        included_content(str(own / "other"))


@pytest.mark.slow
def test_a_name_that_is_no_task_and_a_file_that_cannot_be_read(own):
    with pytest.raises(UserError, match="there is no task lambada_klingon: `lm_eval ls tasks`"):
        Catalogue(["lambada_klingon"], str(own))
    (own / "klingon.yaml").write_text("task: [lambada_klingon\n")
    with pytest.raises(UserError, match=r"no task lambada_klingon; .*klingon.yaml cannot be read"):
        Catalogue(["lambada_klingon"], str(own))
