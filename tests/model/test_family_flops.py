"""What pauses and loops cost: by torch's own counter, and by hand."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.model.flops import MultiplyAccumulates, inference_work, mean_keys, single_pass_work, training_work
from tests.model.test_flops import AGREES, TOKENS, config_of, counted
from tests.model.tiny_adaponder import tiny_config


@pytest.mark.parametrize("pauses", [1, 3])
@pytest.mark.parametrize("part", ["none", "mlp", "layer", "pass"])
def test_pauses_agree_with_torch_s(pauses: int, part: Any) -> None:
    config = config_of(64, 3, 700, max_passes=1, pause_tokens=pauses, max_position_embeddings=256)
    # Every position meets the whole square here, which is what this mean of a causal row comes to.
    work = training_work(config, keys=TOKENS + pauses / 2 / (1 + pauses), checkpointing=part)
    found = counted(config, lambda model: model.set_activation_checkpointing(part))
    assert found == pytest.approx((work.forward.total, (work.backward + work.recomputed).total), rel=AGREES)


def test_what_pauses_and_loops_cost() -> None:
    sizes = {"hidden_size": 4, "intermediate_size": 10, "num_hidden_layers": 3, "vocab_size": 7}
    core, head = 3 * (4 * 16 + 2 * 4 * 10), 7 * 4
    # Two tokens with two pauses each: 6 positions, which attend to 1, 2, ..., 6 keys; the head reads two of them.
    paused = inference_work(tiny_config(**sizes, max_passes=1, pause_tokens=2), mean_keys(2), [2])
    assert 2 * paused == MultiplyAccumulates(6 * core, 3 * 2 * 21 * 4, 2 * head, 0, 0)
    # The third token alone, from a cache of two: its 3 positions attend to 7, 8 and 9 keys.
    decoded = inference_work(tiny_config(**sizes, max_passes=1, pause_tokens=2), mean_keys(1, context=2), [1])
    assert decoded == MultiplyAccumulates(3 * core, 3 * 2 * 24 * 4, head, 0, 0)
    looped = inference_work(tiny_config(**sizes, feedback="hidden_state", gating="open"), 5, [0, 0, 0, 9])
    assert looped == MultiplyAccumulates(4 * core, 4 * 3 * 2 * 5 * 4, head, 0, 0)
    shared = tiny_config(**sizes, shared_gate=True)
    assert inference_work(shared, 5, [1, 1, 1, 1]) == inference_work(tiny_config(**sizes), 5, [1, 1, 1, 1])
    assert single_pass_work(tiny_config(**sizes, max_passes=1, pause_tokens=2), 5) == single_pass_work(shared, 5)
