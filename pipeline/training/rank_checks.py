"""Do all ranks train the same thing? Asked at the start, and again every `train.cross_check_every_steps`.

A host with another version, an older recipe file or a bit flipped in its weights trains on without any error: gradients
are averaged whatever they are gradients of.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from pipeline.errors import WorldError
from pipeline.host_name import host_name
from pipeline.recipe import Recipe
from pipeline.training.checks import TrainingPlan
from pipeline.versions import installed_versions

_CHUNK = 1 << 22
"""Elements whose bits are widened to 64 at once."""
_NAMED = 8
"""Differences that are told."""
_ODD = 0x9E3779B97F4A7C15 - (1 << 64)
"""2^64 over the golden ratio, as a signed number: multiplying by it modulo 2^64 is one to one."""


def check_ranks(
    recipe: Recipe, plan: TrainingPlan, step: int, data_step: int, model: torch.nn.Module, trained: str
) -> None:
    """Compare recipe, data, versions, position and weights over all ranks after `step` steps; collective.

    Raises `WorldError` on every rank, naming what differs and on which ranks. Under ZeRO 3 no rank holds the whole
    weights, and no two hold the same: they are left out.
    """
    facts: dict[str, Any] = {
        "recipe hash": recipe.hash()[:12],
        "manifest hash": plan.manifest_hash[:12],
        "step": step,
        "row that comes next": data_step * recipe.train.global_batch,
        "trained parameters": trained,
        **{f"version of {package}": version for package, version in installed_versions().items()},
    }
    if plan.zero_stage < 3:
        facts |= {f"weight {name}": checksum(weight) for name, weight in model.named_parameters()}
        facts |= {f"buffer {name}": checksum(buffer) for name, buffer in model.named_buffers()}
    require_the_same(facts)


def require_the_same(facts: dict[str, Any]) -> None:
    """Raise `WorldError` on every rank where `facts` are not the same on all of them; collective."""
    mine = (host_name(), facts)
    told: list[tuple[str, dict[str, Any]]] = [mine]
    if dist.is_initialized():
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, mine)
        told = gathered
    names = list(dict.fromkeys(name for _, known in told for name in known))
    different = [name for name in names if any(known.get(name) != told[0][1].get(name) for _, known in told)]
    if not different:
        return
    problems = [_difference(name, told) for name in different[:_NAMED]]
    if len(different) > _NAMED:
        problems.append(f"and {len(different) - _NAMED} more")
    raise WorldError(f"the ranks do not train the same: {'; '.join(problems)}")


def checksum(tensor: torch.Tensor) -> int:
    """Of the tensor's bits and where they stand, on its own device: equal for equal tensors, whatever they hold."""
    flat = tensor.detach().reshape(-1)
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()]
    flat = flat.view(integers) if flat.dtype != torch.bool else flat.to(torch.uint8)
    total = torch.zeros((), dtype=torch.int64, device=flat.device)
    for start in range(0, flat.numel(), _CHUNK):
        bits = flat[start : start + _CHUNK].to(torch.int64)
        places = torch.arange(start, start + bits.numel(), device=flat.device)
        # At each place its own one-to-one function of the bits: one element that differs always changes the sum.
        mixed = (bits + places * _ODD) * _ODD
        total += (mixed ^ ((mixed >> 32) & 0xFFFFFFFF)).sum()
    return int(total.item())


def _difference(name: str, told: list[tuple[str, dict[str, Any]]]) -> str:
    """Which ranks have what, the smaller groups with their hosts."""
    groups: dict[Any, list[int]] = {}
    for rank, (_, known) in enumerate(told):
        groups.setdefault(known.get(name, "none"), []).append(rank)
    ordered = sorted(groups.items(), key=lambda group: len(group[1]))
    is_checksum = name.startswith(("weight ", "buffer "))
    parts = []
    for number, (value, ranks) in enumerate(ordered):
        last = number == len(ordered) - 1 and len(ordered) > 1 and len(ranks) > 1
        where = f"{len(ranks)} ranks" if last else ", ".join(f"rank {rank} on {told[rank][0]}" for rank in ranks[:4])
        if not last and len(ranks) > 4:
            where += f" and {len(ranks) - 4} more"
        shown = f"{value & 0xFFFFFFFF:08x}" if is_checksum and isinstance(value, int) else value
        parts.append(f"{shown} on {where}")
    return f"{name} is {', '.join(parts)}"
