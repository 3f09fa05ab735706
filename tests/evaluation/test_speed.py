from __future__ import annotations

import statistics

import pytest

from pipeline.data.manifest import read_manifest
from pipeline.errors import UserError
from pipeline.evaluation.identity import identify
from pipeline.evaluation.speed import DECODING, FULL_DEPTH, HALTING, PREFILL, SpeedSuite, measure_speed
from pipeline.evaluation.stage import evaluate_suites
from pipeline.evaluation.subject import Subject
from tests.evaluation.test_stage import with_recipe

SETTINGS = {"rows": 2, "prompt_tokens": 24, "new_tokens": 4, "rounds": 3}


@pytest.fixture(scope="module")
def speed(run, checkpoint):
    changed = with_recipe(run, speed=SETTINGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        return evaluate_suites(changed.recipe, changed, checkpoint.name, ["speed"])["speed"]


def test_both_ways_are_measured_in_turn(speed, run, checkpoint):
    assert [(each.what, each.how) for each in speed.measured] == [
        (PREFILL, HALTING),
        (PREFILL, FULL_DEPTH),
        (DECODING, HALTING),
        (DECODING, FULL_DEPTH),
    ]
    assert all(len(each.seconds) == 3 and min(each.seconds) > 0 for each in speed.measured)
    assert [each.tokens for each in speed.measured] == [48, 48, 8, 8]
    named = SpeedSuite().named(speed, Subject(run.recipe, run, checkpoint, read_manifest(run.shards)))
    assert named["prefill/time_over_full_depth"] == statistics.median(speed.ratios(PREFILL))
    assert (run.evaluation(checkpoint.name, "speed") / "speed.png").read_bytes().startswith(b"\x89PNG")


def test_what_halting_saves_is_the_caches_and_the_depths(speed):
    for what in (PREFILL, DECODING):
        halting, full = speed.of(what, HALTING), speed.of(what, FULL_DEPTH)
        assert 1 <= halting.mean_depth < 3
        assert full.mean_depth == 3
    full_bytes = speed.of(DECODING, FULL_DEPTH).cache_bytes
    # Two of keys and values, layers, rows, tokens, heads x size, bytes, for each of three passes.
    assert full_bytes == 3 * 2 * 2 * 2 * 28 * 32 * 4
    assert speed.of(PREFILL, HALTING).cache_bytes < 3 * 2 * 2 * 2 * 24 * 32 * 4 * 1.3


@pytest.mark.parametrize(
    ("changed", "told"), [({"rows": 500}, "500: validation-.* has .* whole rows"), ({"new_tokens": 60}, "beyond the")]
)
def test_what_cannot_be_read_or_written_is_the_users_mistake(run, checkpoint, model, changed, told):
    recipe = with_recipe(run, speed={**SETTINGS, **changed}).recipe
    subject = Subject(recipe, run, checkpoint, read_manifest(run.shards), model)
    with pytest.raises(UserError, match=told):
        measure_speed(subject, identify(checkpoint, "speed", {}))
