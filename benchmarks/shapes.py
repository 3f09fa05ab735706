"""Networks of Pythia's sizes with random weights, and halting patterns of a given mean depth."""

from __future__ import annotations

from typing import Any

import torch

from pipeline.model import AdaPonderConfig, AdaPonderForCausalLM

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
    """The configuration of a shape; `fields` of GPT-NeoX or of the method beside."""
    if shape not in SHAPES:
        raise SystemExit(f"--shape {shape}: it must be one of {', '.join(SHAPES)}")
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
