"""The peak of a rank's memory under a strategy: states, buckets, copies and a micro-batch, put together.

A step has three high points: the micro-batches; the end of backward, when gradients lie in DeepSpeed's buckets and are
sent from a flat copy; and AdamW's step. The highest is the peak. What DeepSpeed allocates when is read from its code
(0.19.8) and held to measured peaks on the CPU by a test.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from launch.plan.activations import MicroBatchMemory
from pipeline.strategy_file import offload_device, zero_stage

BUCKET_ELEMENTS = 500_000_000
"""DeepSpeed's default for reduce_bucket_size, and what it sends at once without ZeRO."""
MAX_LIVE, MAX_REUSE_DISTANCE, PREFETCH = 1_000_000_000, 1_000_000_000, 50_000_000
"""DeepSpeed's defaults for stage 3's gathered weights, in elements."""
MASTERS, MOMENTS = 4, 8
"""Bytes a parameter: the fp32 copy that ZeRO updates, and AdamW's two moments."""


@dataclass(frozen=True)
class Trained:
    """What a rank trains, and how."""

    parameters: int
    """Of those that are trained."""
    frozen: int
    largest: int
    """Elements of the largest weight."""
    weight_bytes: int
    """A weight: 2 in bf16, 4 in fp32."""
    sum_bytes: int
    """A gradient that is added up over micro-batches."""
    ranks: int
    accumulates: bool
    """Whether a step has several micro-batches on each rank."""
    chunk_bytes: int
    """The vocabulary chunk's scratch."""
    on_gpu: bool


@dataclass(frozen=True)
class RankMemory:
    """Bytes by part at the peak of one rank."""

    moment: str
    """micro-batch, reduction or step."""
    device: dict[str, int]
    """On the GPU, or in main memory where training runs on the CPU."""
    host: dict[str, int]
    """In main memory beside a GPU, while it trains."""
    host_start: int
    """In main memory while the engine is built: the network in fp32, before it goes to the GPU."""
    moments: dict[str, int]
    """Bytes at each high point."""

    @property
    def peak(self) -> int:
        return sum(self.device.values())


def rank_memory(strategy: dict[str, Any], trained: Trained, batch: MicroBatchMemory) -> RankMemory:
    """The peak under a strategy (`pipeline.strategy_file.read_strategy`) with that micro-batch."""
    t, zero, stage = trained, strategy["zero_optimization"], zero_stage(strategy)
    parameters, width = t.parameters, t.weight_bytes
    share = -(-parameters // t.ranks)
    bucket = int(zero.get("reduce_bucket_size", BUCKET_ELEMENTS))
    in_buckets = min(parameters, bucket)
    flat = width * in_buckets
    offloads = offload_device(strategy) != "none"
    on_nvme = offload_device(strategy) == "nvme"

    states: dict[str, int] = {"weights": width * (parameters + t.frozen)}
    host: dict[str, int] = {}
    if stage == 3:
        states["weights"] = width * -(-(parameters + t.frozen) // t.ranks)
    if stage == 0:
        states["masters and moments"] = MOMENTS * parameters
    elif not offloads:
        states["masters and moments"] = (MASTERS + MOMENTS) * share
    else:
        host["masters and moments"] = 0 if on_nvme else (MASTERS + MOMENTS) * share
        host["gradients for AdamW"] = 4 * share
        if stage == 2:
            host["weights for the GPU"] = width * share
        if stage == 3 and offload_device(strategy, "offload_param") != "none":
            host["weights"] = states.pop("weights")

    sums = {0: t.sum_bytes * parameters, 1: t.sum_bytes * parameters, 2: t.sum_bytes * share}.get(stage, 0)
    kept_sums = sums if t.accumulates else 0
    if offloads and stage == 2 and t.sum_bytes == width:
        host["gradient sums"], kept_sums = sums, 0
    if stage == 3:
        # They lie there from the start on, whatever is accumulated.
        where = host if offloads else states
        where["gradient sums"] = t.sum_bytes * share

    # A GPU's buckets are there as a whole; a CPU's pages are there once they are written.
    bucket_width = t.sum_bytes if stage == 1 else width
    buckets = {"buckets": 0}
    if stage == 3:
        buckets["buckets"] = bucket_width * (bucket if t.on_gpu else in_buckets)
        states |= buckets
    elif stage and t.on_gpu:
        buckets["buckets"] = bucket_width * bucket * (2 if zero.get("overlap_comm") else 1)
    elif stage:
        buckets["buckets"] = bucket_width * min(parameters, 2 * bucket if zero.get("overlap_comm") else bucket)
    gathered = {"gathered weights": width * _gathered(zero, trained)} if stage == 3 else {}

    # Gradients that are finished lie in sums or buckets that are counted already, or count as gradients.
    moved = kept_sums > 0 or stage == 3 or (stage > 0 and t.on_gpu)
    above = batch.peak_beside_sums if moved else batch.peak
    chunk = min(t.chunk_bytes, above)
    micro_batch = states | gathered | {"gradient sums": kept_sums or states.get("gradient sums", 0)}
    micro_batch |= {"vocabulary chunk": chunk, "activations and their gradients": above - chunk}
    if t.on_gpu:
        micro_batch |= buckets if stage else {}

    pending = width * max(0, parameters - in_buckets)
    reduction = states | gathered | {"gradients": pending, "flat copy to send": flat}
    if stage == 0:
        reduction["gradients"] = t.sum_bytes * parameters
    elif stage < 3:
        reduction |= buckets
    if stage == 2:
        reduction["gradient sums"] = kept_sums

    step = dict(states)
    if stage == 0:
        step |= {"gradients": width * parameters}
    elif offloads:
        step["gradient sums"] = kept_sums
    else:
        if stage < 3:
            step["gradient sums"] = t.sum_bytes * share
        step |= {"gradients for AdamW": 4 * share}  # fused, AdamW makes no copies of its own

    moments = {"micro-batch": micro_batch, "reduction": reduction, "step": step}
    if not t.on_gpu and host:
        # Both kinds of memory are one.
        moments = {
            name: {**parts, **{f"{part} (offloaded)": size for part, size in host.items()}}
            for name, parts in moments.items()
        }
        host = {}
    totals = {name: sum(parts.values()) for name, parts in moments.items()}
    highest = max(totals, key=lambda name: totals[name])
    network = 4 * (parameters + t.frozen)
    return RankMemory(
        moment=highest,
        device={name: size for name, size in moments[highest].items() if size},
        host={name: size for name, size in host.items() if size},
        # In bf16 the exact weights are kept beside the rounded ones until AdamW's masters have them.
        host_start=network + (4 * parameters if width == 2 else 0),
        moments=totals,
    )


def _gathered(zero: dict[str, Any], trained: Trained) -> int:
    """Elements of weights that stage 3 has gathered at once: all that are used again soon, or a few modules'."""
    if trained.ranks == 1 and not zero.get("offload_param"):
        return 0  # nothing is copied together
    everything = trained.parameters + trained.frozen
    live = int(zero.get("stage3_max_live_parameters", MAX_LIVE))
    if everything <= int(zero.get("stage3_max_reuse_distance", MAX_REUSE_DISTANCE)):
        return min(everything, live)
    # The embedding and the head lie side by side in a mixture.
    return min(everything, live, 2 * trained.largest + int(zero.get("stage3_prefetch_bucket_size", PREFETCH)))
