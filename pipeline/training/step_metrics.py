"""What one step shows of itself, the same on any number of ranks: sums over micro-batches, reduced once.

Names are those of metrics.jsonl and of MLflow.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist

from pipeline.model import AdaPonderConfig
from pipeline.model.modeling_adaponder import AdaPonderOutput

GATE_EDGES = (1e-4, 1e-2, 1e-1, 0.5, 0.9)
"""Edges of the gate histogram: the halting threshold's decade, then what is nearly closed, half and nearly open."""


class StepSums:
    """Sums of a step over this rank's micro-batches; `metrics` reduces them over all ranks."""

    def __init__(self, config: AdaPonderConfig, device: torch.device) -> None:
        self._passes = config.max_passes
        self._gated = config.gated_passes
        self._edges = torch.tensor(GATE_EDGES, device=device)
        # [losses and micro-batches 4 | tokens, depth 2 | active tokens a pass K | gate sums | gate histogram]
        self._size = 6 + self._passes + self._gated * (2 + len(GATE_EDGES))
        self._sums = torch.zeros(self._size, dtype=torch.float64, device=device)

    def add(self, output: AdaPonderOutput) -> None:
        """Add a micro-batch's output."""
        losses = (output.loss, output.ce_loss, output.ponder_loss)
        depths, gates = output.depths, output.gates
        assert depths is not None and gates is not None, "every forward gives them"
        parts = [
            torch.stack([loss for loss in losses if loss is not None]),
            torch.ones(1, device=depths.device),
            torch.stack([torch.as_tensor(depths.numel(), device=depths.device), depths.sum()]),
            torch.stack([(depths > i).sum() for i in range(self._passes)]),
        ]
        if self._gated:
            gates = gates.detach().reshape(-1, self._gated)
            bins = torch.bucketize(gates, self._edges.to(gates.dtype), right=True)
            counts = torch.stack([(bins == i).sum(0) for i in range(len(GATE_EDGES) + 1)], dim=1)
            parts += [gates.double().sum(0), counts.reshape(-1)]
        self._sums += torch.cat([part.detach().double().reshape(-1) for part in parts])

    def metrics(self) -> dict[str, float]:
        """Means over all ranks' micro-batches and tokens; collective."""
        sums = self._sums
        if dist.is_initialized():
            dist.all_reduce(sums)
        values = sums.tolist()
        loss, cross_entropy, ponder, micro_batches, tokens, depth = values[:6]
        cross_entropy /= micro_batches
        found = {
            "train/loss": loss / micro_batches,
            "train/ce_loss": cross_entropy,
            "train/ponder_loss": ponder / micro_batches,
            "train/perplexity": math.exp(min(cross_entropy, 700.0)),
            "depth/mean": depth / tokens,
        }
        active = values[6 : 6 + self._passes]
        found |= {f"depth/keep_ratio_pass_{i + 1}": count / tokens for i, count in enumerate(active)}
        gate_values = values[6 + self._passes :]
        bins = len(GATE_EDGES) + 1
        names = ["below_1e-4", *(f"from_{edge:g}" for edge in GATE_EDGES)]
        for i in range(self._gated):
            found[f"gates/pass_{i + 1}/mean"] = gate_values[i] / tokens
            histogram = gate_values[self._gated + i * bins : self._gated + (i + 1) * bins]
            found |= {
                f"gates/pass_{i + 1}/{name}": count / tokens for name, count in zip(names, histogram, strict=True)
            }
        return found
