"""Which worlds a checkpoint can go on in, and what is told of the change."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.checkpoint import Checkpoint, TrainerState
from pipeline.checkpoint_marker import MarkedFile, Marker
from pipeline.errors import UserError
from pipeline.recipe_reader import parse_recipe
from pipeline.training.elastic import Loading, choose_loading, what_changes
from tests.conftest import tiny_recipe


def recipe_of(**train):
    recipe = tiny_recipe("elastic", Path("unused"))
    recipe["train"] |= train
    return parse_recipe(recipe, "test")


def saved(stage: int = 1, world_size: int = 2, trained: str = "all", step: int = 10, files=(), **train) -> Checkpoint:
    recipe = recipe_of(**train)
    state = TrainerState(
        step=step,
        save_id="0",
        rows=step * 8,
        tokens=step * 256,
        phase="pondering",
        trained=trained,
        seed=7,
        recipe=recipe.resolved(),
        recipe_hash=recipe.hash(),
        manifest_hash="0",
        mlflow_run_id=None,
        world_size=world_size,
        zero_stage=stage,
        precision=recipe.train.precision,
        versions={},
    )
    return Checkpoint(Path("step-00000010"), state, Marker(files={name: MarkedFile(size=1) for name in files}))


@given(st.integers(0, 3), st.integers(1, 64), st.integers(0, 3), st.integers(1, 64))
def test_states_go_where_deepspeed_takes_them_and_nowhere_else(stage, world_size, other_stage, other_world_size):
    checkpoint, recipe = saved(stage, world_size), recipe_of()
    carried = {(1, 2), (2, 1)} | {(same, same) for same in range(4)}
    if (stage, other_stage) not in carried:
        with pytest.raises(UserError, match=f"cannot go on under ZeRO {other_stage}; take a train.strategy of ZeRO "):
            choose_loading(checkpoint, recipe, other_world_size, other_stage, "auto")
        return
    as_saved = stage == other_stage and (stage == 0 or world_size == other_world_size)
    expected = Loading.AS_SAVED if as_saved else Loading.UNIVERSAL
    assert choose_loading(checkpoint, recipe, other_world_size, other_stage, "auto") is expected


@given(st.integers(0, 3), st.integers(0, 3), st.sampled_from(["fp32", "bf16"]))
def test_weights_alone_go_anywhere_if_asked_for(stage, other_stage, precision):
    recipe = recipe_of(precision=precision)
    assert choose_loading(saved(stage), recipe, 3, other_stage, "weights") is Loading.WEIGHTS


def test_where_other_parameters_are_trained_the_optimizer_starts_anew_in_any_world():
    assert choose_loading(saved(trained="gates"), recipe_of(precision="bf16"), 7, 3, "auto") is Loading.WEIGHTS


def test_what_cannot_be_done_says_what_can():
    with pytest.raises(UserError) as error:
        choose_loading(saved(3), recipe_of(), 1, 1, "auto")
    assert str(error.value) == (
        "step-00000010 was written by 2 ranks under ZeRO 3 in fp32: its optimizer states cannot go on under ZeRO 1; "
        "take a train.strategy of ZeRO 3, or go on from its weights with a fresh optimizer: --resume weights"
    )
    with pytest.raises(UserError, match=r"cannot go on in bf16; take train.precision fp32, or "):
        choose_loading(saved(), recipe_of(precision="bf16"), 2, 1, "auto")
    on_nvme = saved(3, files=["offloaded_tensors/rank00/0.swp"])
    with pytest.raises(UserError, match=r"cannot go on on 3 ranks with states on NVMe disks; take 2 ranks and the "):
        choose_loading(on_nvme, recipe_of(), 3, 3, "auto")
    with pytest.raises(UserError, match=r"with states on NVMe disks"):
        choose_loading(saved(3), recipe_of(strategy="zero3-nvme"), 3, 3, "auto")
    assert choose_loading(on_nvme, recipe_of(), 2, 3, "auto") is Loading.AS_SAVED


def test_a_finished_training_is_refused_nothing():
    assert choose_loading(saved(step=20), recipe_of(precision="bf16"), 7, 3, "auto") is Loading.AS_SAVED


def test_changes_are_told():
    checkpoint = saved()
    assert what_changes(checkpoint, recipe_of(), 2, 1) == []
    assert what_changes(checkpoint, recipe_of(micro_batch=4), 1, 2) == [
        "2 -> 1 ranks",
        "ZeRO 1 -> 2",
        "micro batch 2 -> 4 (the ponder loss takes its smallest gate values within each micro batch)",
    ]
