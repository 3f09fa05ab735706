"""The counts are those of torch's own counter on the network, and what the method says of them holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers.initialization import no_init_weights

from pipeline.model import AdaPonderConfig, AdaPonderForCausalLM
from pipeline.model.flops import (
    MultiplyAccumulates,
    active_shares,
    inference_work,
    masked_inference_work,
    mean_keys,
    passes_factor,
    single_pass_work,
    training_work,
    work_factor,
)
from tests.model.tiny_adaponder import tiny_config

TOKENS = 32
AGREES = 1e-6  # rounding alone: the two count the same products


def config_of(hidden: int, layers: int, vocabulary: int, **fields: Any) -> AdaPonderConfig:
    sizes = {"hidden_size": hidden, "intermediate_size": 4 * hidden, "num_hidden_layers": layers}
    others = {"vocab_size": vocabulary, "num_attention_heads": hidden // 32, "vocabulary_chunk_tokens": 0}
    # The counter knows no attention kernel of the CPU; eager is plain products over the whole square of n keys.
    return tiny_config(**{**sizes, **others, "attn_implementation": "eager", **fields})


PYTHIA_70M = {"hidden": 512, "layers": 6, "vocabulary": 50304}
PYTHIA_410M = {"hidden": 1024, "layers": 24, "vocabulary": 50304}
SMALL = {"hidden": 64, "layers": 3, "vocabulary": 700}
SHAPES = [
    config_of(64, 6, 6288),  # Pythia-70M at an eighth of its width and vocabulary
    config_of(96, 4, 512, max_passes=1),
    config_of(64, 2, 1000, max_passes=2, intermediate_size=200),
    config_of(96, 3, 300, max_passes=3, gate_on_last_pass=True, use_parallel_residual=False),
    config_of(32, 5, 2000, gating="open"),
    config_of(64, 3, 700, halting="none"),
    config_of(64, 3, 700, feedback="hidden_state", gating="open"),
    config_of(64, 2, 500, max_passes=3, shared_gate=True),
    config_of(64, 2, 500, shared_gate=True, gate_on_last_pass=True),
]


def _addmm_in_place(total: Any, left: Any, right: Any, *_: Any, **__: Any) -> int:
    """FLOP of a form of addmm that the counter does not know."""
    return 2 * left[0] * left[1] * right[1]


def _counter() -> FlopCounterMode:
    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: _addmm_in_place})


def counted(config: AdaPonderConfig, prepare: Any = None, **inputs: Any) -> tuple[float, float]:
    """Multiply-accumulates a token of a training forward and of its backward, by torch's counter."""
    model = _model(config).train()
    if prepare is not None:
        prepare(model)
    tokens = torch.zeros(2, TOKENS, dtype=torch.int64)
    with _counter() as counter:
        loss = model(tokens, labels=tokens, ponder_weight=0.1, ponder_fraction=0.5, **inputs).loss
        forward = counter.get_total_flops()
        loss.backward()
    return forward / (2 * tokens.numel()), (counter.get_total_flops() - forward) / (2 * tokens.numel())


def _model(config: AdaPonderConfig) -> AdaPonderForCausalLM:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return AdaPonderForCausalLM(config)


def _freeze_backbone(model: AdaPonderForCausalLM) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith("gates.")


@pytest.mark.parametrize("config", SHAPES)
def test_the_counts_agree_with_torch_s(config: AdaPonderConfig) -> None:
    work = training_work(config, keys=TOKENS)
    assert counted(config) == pytest.approx((work.forward.total, work.backward.total), rel=AGREES)
    assert work.forward == masked_inference_work(config, keys=TOKENS)
    assert work.recomputed.total == 0


@settings(deadline=None, max_examples=8)
@given(
    heads=st.integers(1, 3),
    layers=st.integers(1, 3),
    vocabulary=st.integers(50, 900),
    passes=st.integers(1, 4),
    last=st.booleans(),
    gating=st.sampled_from(["learned", "open"]),
)
def test_the_counts_agree_with_torch_s_for_any_sizes(
    heads: int, layers: int, vocabulary: int, passes: int, last: bool, gating: str
) -> None:
    config = config_of(32 * heads, layers, vocabulary, max_passes=passes, gate_on_last_pass=last, gating=gating)
    work = training_work(config, keys=TOKENS)
    assert counted(config) == pytest.approx((work.forward.total, work.backward.total), rel=AGREES)


@pytest.mark.parametrize("passes", [2, 4])
@pytest.mark.parametrize("last", [False, True])
def test_a_frozen_backbone_agrees_with_torch_s(passes: int, last: bool) -> None:
    config = config_of(**SMALL, max_passes=passes, gate_on_last_pass=last)
    work = training_work(config, keys=TOKENS, frozen_backbone=True)
    found = counted(config, _freeze_backbone)
    assert found == pytest.approx((work.forward.total, work.backward.total), rel=AGREES)


@pytest.mark.parametrize("part", ["activation", "mlp", "layer", "pass"])
@pytest.mark.parametrize("frozen", [False, True])
def test_recomputed_activations_agree_with_torch_s(part: Any, frozen: bool) -> None:
    config = config_of(**SMALL)

    def prepare(model: AdaPonderForCausalLM) -> None:
        model.set_activation_checkpointing(part)
        if frozen:
            _freeze_backbone(model)

    _, backward = counted(config, prepare)
    work = training_work(config, keys=TOKENS, frozen_backbone=frozen, checkpointing=part)
    assert (work.recomputed.core > 0) == (part != "activation")
    assert backward == pytest.approx((work.backward + work.recomputed).total, rel=AGREES)


@pytest.mark.parametrize("frozen", [False, True])
def test_recomputed_logits_agree_with_torch_s(frozen: bool) -> None:
    config = config_of(**SMALL, vocabulary_chunk_tokens=10)
    # The mean cross entropy has its gradients from forward, so the two are taken together.
    found = sum(counted(config, _freeze_backbone if frozen else None))
    work = training_work(config, keys=TOKENS, frozen_backbone=frozen, chunked_mixture=True)
    assert work.recomputed.head > 0
    assert found == pytest.approx(work.total.total, rel=AGREES)


_row = st.lists(st.integers(1, 4), min_size=TOKENS, max_size=TOKENS) | st.integers(1, 4).map(lambda d: [d] * TOKENS)


@settings(deadline=None, max_examples=8)
@given(first=_row, second=_row, last=st.booleans(), logits_to_keep=st.sampled_from([0, 1]))
def test_skipped_tokens_agree_with_torch_s(
    first: list[int], second: list[int], last: bool, logits_to_keep: int
) -> None:
    config = config_of(**SMALL, halting="skip", gate_on_last_pass=last)
    imposed = torch.tensor([first, second])
    # Seven rows are computed as eight (few_rows.py), which is not what the network asks for.
    assume(all((imposed > i).sum() != 7 for i in range(4)))
    with torch.no_grad(), _counter() as counter:
        _model(config).eval()(torch.zeros_like(imposed), imposed_depths=imposed, logits_to_keep=logits_to_keep)
    histogram = torch.bincount(imposed.flatten() - 1, minlength=4).tolist()
    # Attention runs in a kernel of the CPU, which the counter does not know.
    work = inference_work(config, 0, histogram, logits_share=1 / TOKENS if logits_to_keep else 1)
    assert counter.get_total_flops() / 2 / imposed.numel() == pytest.approx(work.total, rel=AGREES)


@pytest.mark.parametrize("part", ["none", "activation", "mlp", "layer", "pass"])
def test_training_that_skips_agrees_with_torch_s(part: Any) -> None:
    config = config_of(**SMALL, halting="skip")
    imposed = torch.tensor([[1, 2, 3, 4, 4, 4, 2, 3] * 4, [4, 1] * 16])
    forward, backward = counted(config, lambda model: model.set_activation_checkpointing(part), imposed_depths=imposed)
    work = training_work(config, 0, torch.bincount(imposed.flatten() - 1).tolist(), checkpointing=part)
    assert forward == pytest.approx(work.forward.total, rel=AGREES)
    assert backward == pytest.approx((work.backward + work.recomputed).total, rel=AGREES)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [PYTHIA_70M, PYTHIA_410M])
def test_the_counts_of_published_shapes_agree_with_torch_s(shape: dict[str, int]) -> None:
    with FakeTensorMode(), no_init_weights():
        found = counted(config_of(**shape))
    work = training_work(config_of(**shape), keys=TOKENS)
    assert found == pytest.approx((work.forward.total, work.backward.total), rel=AGREES)


def test_a_sum_by_hand() -> None:
    config = tiny_config(hidden_size=4, intermediate_size=10, num_hidden_layers=3, vocab_size=7, max_passes=3)
    # Depths 1, 1, 2, 3: 7 passes, 3 mixtures, and 6 gates, since none follows the last pass.
    work = inference_work(config, keys=5, depth_histogram=[2, 1, 1], logits_share=0.5)
    core = 3 * (4 * 16 + 2 * 4 * 10)
    assert 4 * work == MultiplyAccumulates(
        core=7 * core, attention=7 * 3 * 2 * 5 * 4, head=(3 + 2) * 28, mixture=3 * 28, gates=6 * (4 * 16 + 4 * 4)
    )
    assert (
        work.as_dict()["total"] == work.total == sum(value for name, value in work.as_dict().items() if name != "total")
    )
    assert single_pass_work(config, keys=5).total == core + 3 * 2 * 5 * 4 + 28


def test_the_vocabulary_part_is_as_heavy_as_the_method_says() -> None:
    def vocabulary_over_core(hidden: int, layers: int) -> float:
        work = masked_inference_work(config_of(hidden, layers, 50304), keys=1)
        return (work.head / 4 + work.mixture / 3) / (work.core / 4)

    assert vocabulary_over_core(512, 6) == pytest.approx(2.7, abs=0.05)
    assert vocabulary_over_core(2560, 32) == pytest.approx(0.1, abs=0.01)


def test_keys_of_a_causal_row() -> None:
    assert mean_keys(5) == (1 + 2 + 3 + 4 + 5) / 5
    assert mean_keys(3, context=10) == (11 + 12 + 13) / 3
    assert mean_keys(1, context=512) == 513


def test_the_paper_s_factor_and_the_honest_one() -> None:
    config = config_of(**PYTHIA_70M)
    keys, histogram = mean_keys(2048), [0, 3, 14, 83]
    assert passes_factor(histogram) == pytest.approx(3.8)
    # At 70M most of a later pass is vocabulary work, of which a single pass does half: the honest factor is higher.
    transformer, table, gate = 6 * (12 * 512**2 + 2049 * 512), 50304 * 512, 4 * 512**2 + 4 * 512
    by_hand = (3.8 * transformer + (2.8 * 2 + 1) * table + 2.97 * gate) / (transformer + table)
    assert work_factor(config, keys, histogram) == pytest.approx(by_hand)
    assert by_hand == pytest.approx(5.28, abs=0.01)
    # What is left once the vocabulary is small is passes and gates.
    without = config_of(512, 6, 2)
    gates = inference_work(without, keys, histogram).gates / single_pass_work(without, keys).total
    assert work_factor(without, keys, histogram) == pytest.approx(3.8 + gates, rel=1e-3)


def test_a_mixture_of_few_rows() -> None:
    whole, few = config_of(**SMALL), config_of(**SMALL, mixture_top_k=10)
    work, less = (training_work(config, 16, chunked_mixture=True) for config in (whole, few))
    assert less.forward.mixture == work.forward.mixture * 10 / 700
    assert less.forward.head == work.forward.head
    assert less.recomputed.head == 0 < work.recomputed.head
    assert less.backward.head == 2 * (700 + 3 * 10) * 64
    assert training_work(few, 16).backward.head == work.backward.head


def test_what_is_recomputed_is_no_part_of_the_model_s_work() -> None:
    config = config_of(**SMALL)
    plain = training_work(config, 16)
    saved = training_work(config, 16, chunked_mixture=True, recomputed_cross_entropy=True, checkpointing="pass")
    assert saved.model == plain.model == plain.total == 3 * plain.forward
    for part in ("core", "attention", "head"):
        assert getattr(saved.recomputed, part) == getattr(plain.forward, part)
    assert saved.total == saved.model + saved.recomputed


_histograms = st.lists(st.integers(0, 50), min_size=4, max_size=4).filter(any)


@settings(deadline=None, max_examples=50)
@given(histogram=_histograms, keys=st.floats(1, 4096), last=st.booleans())
def test_deeper_tokens_cost_more_and_full_depth_is_the_masked_path(
    histogram: list[int], keys: float, last: bool
) -> None:
    config = config_of(**SMALL, gate_on_last_pass=last)
    work = inference_work(config, keys, histogram)
    full = masked_inference_work(config, keys)
    assert work.total <= full.total * (1 + 1e-12)
    for part, value in inference_work(config, keys, [0, 0, 0, 9]).as_dict().items():
        assert value == pytest.approx(full.as_dict()[part])
    for depth in range(3):
        if histogram[depth]:
            deeper = list(histogram)
            deeper[depth], deeper[depth + 1] = histogram[depth] - 1, histogram[depth + 1] + 1
            assert inference_work(config, keys, deeper).total > work.total
    trained = training_work(config, keys, histogram)
    assert trained.forward.core == pytest.approx(work.core)
    assert trained.forward.attention == pytest.approx(work.attention)
    assert trained.forward.mixture == pytest.approx(work.mixture)
    assert trained.forward.head == pytest.approx(work.head)
    assert trained.forward.gates == full.gates


@settings(deadline=None, max_examples=50)
@given(one=_histograms, other=_histograms)
def test_the_count_is_linear_in_the_tokens(one: list[int], other: list[int]) -> None:
    config = config_of(**SMALL)
    both = [a + b for a, b in zip(one, other, strict=True)]
    parts = sum(one) * inference_work(config, 100, one) + sum(other) * inference_work(config, 100, other)
    together = sum(both) * inference_work(config, 100, both)
    for part, value in together.as_dict().items():
        assert value == pytest.approx(parts.as_dict()[part])
    assert passes_factor(both) == pytest.approx(sum((i + 1) * count for i, count in enumerate(both)) / sum(both))


def test_mistakes_are_told() -> None:
    config = config_of(**SMALL)
    with pytest.raises(ValueError, match="3 depths: max_passes is 4"):
        inference_work(config, 8, [1, 1, 1])
    for none in ([], [0, 0], [2, -1]):
        with pytest.raises(ValueError, match="it must hold tokens"):
            active_shares(none)
    with pytest.raises(ValueError, match="no gates"):
        training_work(config_of(**SMALL, gating="open"), 8, frozen_backbone=True)
    with pytest.raises(ValueError, match="none, activation, mlp, layer, pass"):
        training_work(config, 8, checkpointing="block")  # pyright: ignore[reportArgumentType]
