"""One function, however it is computed: training forward = prefill = token by token = any split = skipping.

Weights, halting patterns, prompts, paddings and batch sizes are drawn at random (method section 2: the equality that
the method is named for).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.model.tiny_adaponder import halting_config, random_model, random_tokens

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
MEMBERS = [
    {"feedback": "hidden_state", "gating": "open", "mixture_top_k": 0},
    {"pause_tokens": 2, "max_passes": 1},
]
"""Loop Transformer and pause tokens (method section 8)."""


@dataclass
class Case:
    model: Any
    tokens: torch.Tensor
    mask: torch.Tensor
    imposed: torch.Tensor | None
    cuts: list[int]
    places: torch.Tensor
    """Position of each token; where no mask is given they may start again in mid-row, as after a document's end."""
    masked: bool


@st.composite
def cases(draw: Any, dtype: torch.dtype) -> Case:
    rows, n = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    seed = draw(st.integers(0, 2**31))
    fields = {
        "max_passes": draw(st.integers(1, 4)),
        "gating": draw(st.sampled_from(["learned", "learned", "learned", "open"])),
        "gate_on_last_pass": draw(st.booleans()),
        "use_parallel_residual": draw(st.booleans()),
        "mixture_top_k": draw(st.sampled_from([0, 0, 5])),
        "vocabulary_chunk_tokens": draw(st.sampled_from([0, 3, 256])),
        "embed_scale": draw(st.sampled_from([1.0, 2.0])),
    }
    fields |= draw(st.sampled_from([{}, {}, *MEMBERS]))
    fields["shared_gate"] = draw(st.booleans()) and fields["gating"] == "learned" and fields["max_passes"] > 1
    generator = torch.Generator().manual_seed(seed)
    imposed = None
    if draw(st.booleans()):
        imposed = torch.randint(1, fields["max_passes"] + 1, (rows, n), generator=generator)
    padding = draw(st.lists(st.integers(0, n - 1), min_size=rows, max_size=rows))
    mask = torch.ones(rows, n, dtype=torch.long)
    if draw(st.booleans()):
        for row, width in enumerate(padding):
            mask[row, :width] = 0
    cuts = sorted(draw(st.sets(st.integers(1, max(n - 1, 1)), max_size=n)))
    model = random_model(halting_config(attn_implementation="sdpa", **fields), seed=seed, dtype=dtype)
    masked = bool((mask == 0).any()) or draw(st.booleans())
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    if not masked and draw(st.booleans()):
        places = places % draw(st.integers(1, n))
    return Case(model, random_tokens(rows, n, seed=seed), mask, imposed, cuts, places, masked)


def run(case: Case, halting: str, ends: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, gates and depths of all tokens, read in pieces that end at `ends`; one piece is read without a cache."""
    case.model.config.halting = halting
    cache = case.model.new_cache() if len(ends) > 1 else None
    outputs, start = [], 0
    for end in ends:
        piece = slice(start, end)
        outputs.append(
            case.model(
                case.tokens[:, piece],
                attention_mask=case.mask[:, :end] if case.masked else None,
                position_ids=case.places[:, piece],
                past_key_values=cache,
                imposed_depths=None if case.imposed is None else case.imposed[:, piece],
            )
        )
        start = end
    return tuple(torch.cat([out[name] for out in outputs], dim=1) for name in ("logits", "gates", "depths"))  # pyright: ignore


def check(case: Case) -> None:
    n = case.tokens.shape[1]
    tolerance = TOLERANCE[case.model.dtype]
    case.model.train()
    logits, gates, depths = run(case, "masked", [n])
    case.model.eval()
    real = case.mask.bool()
    with torch.no_grad():
        for halting in ("masked", "skip"):
            for ends in ([n], [*case.cuts, n] if n > 1 else [n], list(range(1, n + 1))):
                if ends[-2:] == [n, n]:
                    continue
                other, other_gates, other_depths = run(case, halting, ends)
                assert torch.equal(other_depths[real], depths[real])
                scale = logits[real].abs().max().clamp(min=1)
                assert (other[real] - logits[real]).abs().max() / scale < tolerance
                computed = (other_gates != 0) & real.unsqueeze(-1)
                assert torch.allclose(other_gates[computed], gates[computed], rtol=0, atol=tolerance)
                if halting == "skip":
                    assert not other_depths[~real].any()


def losses(case: Case, halting: str) -> list[torch.Tensor]:
    case.model.config.halting = halting
    out = case.model(
        case.tokens,
        attention_mask=case.mask if case.masked else None,
        position_ids=case.places,
        labels=case.tokens,
        ponder_weight=0.5,
        ponder_fraction=0.6,
        imposed_depths=case.imposed,
    )
    return [out.loss, out.ce_loss, out.ponder_loss]


@settings(max_examples=20, deadline=None)
@given(case=cases(torch.float64), recording=st.booleans(), on=st.sampled_from(["probability", "logit"]))
def test_every_path_has_the_same_loss(case: Case, recording: bool, on: str) -> None:
    case.model.config.ponder_loss_on = on
    with torch.set_grad_enabled(recording):
        for plain, skipping in zip(losses(case, "masked"), losses(case, "skip"), strict=True):
            assert torch.allclose(plain, skipping, rtol=1e-9, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(case=cases(torch.float64))
def test_every_way_of_reading_gives_the_same_in_float64(case: Case) -> None:
    check(case)


@settings(max_examples=15, deadline=None)
@given(case=cases(torch.float32))
def test_every_way_of_reading_gives_the_same_in_float32(case: Case) -> None:
    check(case)
