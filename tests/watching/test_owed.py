"""What a checkpoint is still owed, from results as they lie on disk and from tries that failed."""

from __future__ import annotations

import json

import pytest

from pipeline.evaluation.identity import identify
from pipeline.evaluation.standing import note_told
from pipeline.evaluation.suites import suite_named
from pipeline.watching.job import State
from pipeline.watching.owed import Ledger, untold, waiting
from tests.evaluation.tiny_run import write_checkpoint


@pytest.fixture
def checkpoint(run, model):
    return write_checkpoint(run, model, 20)


@pytest.fixture
def ledger(run):
    return Ledger(run.recipe, run)


def put_result(run, checkpoint, suite: str, *, told: bool, **changed) -> None:
    """A metrics.json of that identity, as far as it is looked at."""
    identity = identify(checkpoint, suite, suite_named(suite).settings(run.recipe)).model_copy(update=changed)
    output = run.evaluation(checkpoint.name, suite)
    output.mkdir(parents=True, exist_ok=True)
    (output / "metrics.json").write_text(json.dumps({"identity": identity.model_dump(mode="json"), "loss": 1.0}))
    if told:
        note_told(output, identity)


def test_results_decide_and_not_what_was_noted(run, checkpoint, ledger):
    owed = ledger.look(checkpoint.path)
    job = ledger.bring_up_to_date(owed, None)
    assert waiting(job) == ["validation", "depth"] and not owed.settled_in(job)
    put_result(run, checkpoint, "validation", told=False)
    put_result(run, checkpoint, "depth", told=True)
    owed = ledger.look(checkpoint.path)
    job = ledger.bring_up_to_date(owed, job)
    assert (waiting(job), untold(job), job.suites["depth"].state) == ([], ["validation"], State.DONE)
    put_result(run, checkpoint, "validation", told=True)
    owed = ledger.look(checkpoint.path)
    assert not owed.settled_in(job)
    assert owed.settled_in(ledger.bring_up_to_date(owed, job))


@pytest.mark.parametrize("changed", [{"save_id": "another"}, {"settings": {"rows_per_source": 3}}])
def test_a_result_of_another_save_or_other_settings_does_not_count(run, checkpoint, ledger, changed):
    put_result(run, checkpoint, "validation", told=True, **changed)
    put_result(run, checkpoint, "depth", told=True)
    job = ledger.bring_up_to_date(ledger.look(checkpoint.path), None)
    assert waiting(job) == ["validation"]


def test_a_damaged_result_does_not_count(run, checkpoint, ledger):
    put_result(run, checkpoint, "validation", told=True)
    (run.evaluation(checkpoint.name, "validation") / "metrics.json").write_text("{")
    assert "validation" in waiting(ledger.bring_up_to_date(ledger.look(checkpoint.path), None))


def test_a_suite_that_failed_goes_last_and_is_given_up_at_the_limit(checkpoint, ledger):
    owed = ledger.look(checkpoint.path)
    job = ledger.bring_up_to_date(owed, None)
    job.suites["validation"].tries, job.suites["validation"].error = 1, "no text"
    job = ledger.bring_up_to_date(owed, job)
    assert waiting(job) == ["depth", "validation"]
    job.suites["validation"].tries = 3
    job = ledger.bring_up_to_date(owed, job)
    assert waiting(job) == ["depth"] and job.suites["validation"].state is State.FAILED
    assert job.suites["validation"].error == "no text"
    forgiven = ledger.bring_up_to_date(owed, job, forgive=True)
    assert forgiven.suites["validation"].tries == 0 and "validation" in waiting(forgiven)


def test_another_save_of_the_step_begins_anew(run, checkpoint, ledger):
    owed = ledger.look(checkpoint.path)
    job = ledger.bring_up_to_date(owed, None)
    job.suites["validation"].tries = 3
    owed.save_id = "another"
    assert ledger.bring_up_to_date(owed, job).suites["validation"].tries == 0


def test_a_checkpoint_that_cannot_be_read_is_owed_all_so_that_judging_it_tells_why(checkpoint, ledger):
    (checkpoint.path / "config.json").write_text("")
    owed = ledger.look(checkpoint.path)
    assert owed.save_id == "" and waiting(ledger.bring_up_to_date(owed, None)) == ["validation", "depth"]


def test_results_of_a_checkpoint_that_is_no_more_are_known(run, checkpoint, ledger):
    job = ledger.bring_up_to_date(ledger.look(checkpoint.path), None)
    put_result(run, checkpoint, "validation", told=True)
    checkpoint.path.rename(checkpoint.path.with_name("gone"))
    assert waiting(ledger.bring_up_to_date(ledger.recall(job), job)) == ["depth"]
