"""Networks of Pythia's sizes with random weights, and halting patterns of a given mean depth."""

from __future__ import annotations

import sys
from typing import Any

import torch
from transformers import AutoTokenizer

from pipeline.model import AdaPonderConfig, AdaPonderForCausalLM

MAX_PASSES = 4
SHAPES = {
    # hidden size, layers, heads (Pythia, arXiv 2304.01373, table 1); "tiny" is for trying a benchmark out.
    "tiny": (64, 2, 2),
    "70m": (512, 6, 8),
    "160m": (768, 12, 12),
    "410m": (1024, 24, 16),
    "1.4b": (2048, 24, 16),
    "2.8b": (2560, 32, 32),
}


def config_of(shape: str, **fields: Any) -> AdaPonderConfig:
    """The configuration of one of `SHAPES`; `fields` of GPT-NeoX or of the method beside."""
    hidden, layers, heads = SHAPES[shape]
    sizes = {
        "vocab_size": 50304,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * hidden,
        "max_position_embeddings": 8192,
        "rotary_pct": 0.25,
        "attn_implementation": "sdpa",
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    return AdaPonderConfig(**{**sizes, **fields})


def network(config: AdaPonderConfig, chosen: Any) -> Any:
    """An AdaPonderForCausalLM of that configuration on the device and in the dtype that were asked for."""
    torch.manual_seed(chosen.seed)
    model: Any = AdaPonderForCausalLM(config)
    return model.to(device=chosen.device, dtype=getattr(torch, chosen.dtype)).eval()


def released(chosen: Any) -> Any:
    """The network in the folder `chosen.model`, skipping; a line and exit code 2 where it has nothing to skip."""
    try:
        model: Any = AdaPonderForCausalLM.from_pretrained(chosen.model)
    except (OSError, ValueError) as error:
        print(f"--model {chosen.model}: {str(error).splitlines()[0]}", file=sys.stderr)
        raise SystemExit(2) from error
    if not (model.config.halts and model.config.kv_reuse and model.config.freeze_halted):
        print(
            f"--model {chosen.model}: no token of it halts, or a halted one changes: nothing to skip", file=sys.stderr
        )
        raise SystemExit(2)
    chosen.shape = f"released, hidden size {model.config.hidden_size}"
    return model.to(device=chosen.device, dtype=getattr(torch, chosen.dtype)).eval()


def tokens_of(chosen: Any, model: Any, shape: tuple[int, int]) -> torch.Tensor:
    """int64 of `shape`: the first tokens of the file `chosen.text`, or random ones where there is no such text."""
    count = shape[0] * shape[1]
    if chosen.text:
        with open(chosen.text, encoding="utf-8") as file:
            ids = AutoTokenizer.from_pretrained(chosen.model)(file.read())["input_ids"]
        if len(ids) < count:
            print(
                f"--text {chosen.text}: {len(ids)} tokens, {count} wanted: a longer text, or fewer rows",
                file=sys.stderr,
            )
            raise SystemExit(2)
        return torch.tensor(ids[:count]).view(shape).to(chosen.device)
    generator = torch.Generator().manual_seed(chosen.seed)
    return torch.randint(1, model.config.vocab_size, shape, generator=generator).to(chosen.device)


def depths_of_mean(mean: float, max_passes: int, count: int, seed: int) -> torch.Tensor:
    """int64 [count]: depths 1..K with shares in a geometric series and the given mean, in a random order.

    Equal shares give (K + 1) / 2; the series falls or rises as far as the mean asks for. Counts are rounded, not
    drawn, so that the mean is met closely by few tokens too. Raises ValueError for a mean outside 1..K.
    """
    if not 1 <= mean <= max_passes:
        raise ValueError(f"mean depth {mean} is not between 1 and {max_passes}")
    passes = torch.arange(1, max_passes + 1, dtype=torch.float64)
    low, high = -40.0, 40.0
    for _ in range(200):
        slope = (low + high) / 2
        shares = (slope * passes).softmax(0)
        low, high = (slope, high) if float((shares * passes).sum()) < mean else (low, slope)
    bounds = (shares.cumsum(0) * count).round().long()
    depths = torch.searchsorted(bounds, torch.arange(count), right=True).clamp(max=max_passes - 1) + 1
    return depths[torch.randperm(count, generator=torch.Generator().manual_seed(seed))]


def histogram(depths: torch.Tensor, max_passes: int) -> list[int]:
    """Tokens at depth 1..K."""
    return torch.bincount(depths.flatten().cpu(), minlength=max_passes + 1)[1:].tolist()
