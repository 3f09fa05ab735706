"""What ranks tell each other at the start of a step, so that all of them go on or all of them stop.

A rank that stopped alone would leave the others waiting in a collective until their time is up, and only its own log
would say why.
"""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
import torch.distributed as dist

from pipeline.errors import AdaPonderError, WorldError

Found = TypeVar("Found")


@dataclass(frozen=True)
class StepFlags:
    """What a rank says before a step; of all ranks together a flag is set where it is set on any."""

    reading_failed: bool = False
    """This rank has no batch for the step."""


def agreed(flags: StepFlags, device: torch.device) -> StepFlags:
    """The flags of all ranks together, by one small reduction on `device`; collective."""
    if not dist.is_initialized():
        return flags
    values = torch.tensor(dataclasses.astuple(flags), dtype=torch.int32, device=device)
    dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return StepFlags(*map(bool, values.tolist()))


def read_together(read: Callable[[], Found], device: torch.device) -> Found:
    """What `read` gives on this rank, once it has succeeded on every rank; collective.

    Where it raised `WorldError` or OSError on any, every rank raises the same `WorldError` with all messages and the
    ranks they come from.
    """
    found, failure = None, None
    try:
        found = read()
    except (WorldError, OSError) as error:
        failure = error
    if agreed(StepFlags(reading_failed=failure is not None), device).reading_failed:
        raise WorldError(_all_messages(failure)) from failure
    return cast(Found, found)


def _all_messages(failure: Exception | None) -> str:
    """Every rank's message with the ranks that have it, in the order of ranks; collective."""
    mine = None if failure is None else (_message(failure), socket.gethostname())
    told: list[tuple[str, str] | None] = [mine]
    if dist.is_initialized():
        told = [None] * dist.get_world_size()
        dist.all_gather_object(told, mine)
    ranks: dict[str, list[str]] = {}
    for rank, one in enumerate(told):
        if one is not None:
            message, host = one
            ranks.setdefault(message, []).append(f"rank {rank} on {host}")
    return "; ".join(f"{message} (read by {', '.join(who)})" for message, who in ranks.items())


def _message(failure: Exception) -> str:
    if isinstance(failure, OSError) and not isinstance(failure, AdaPonderError):
        return f"{failure.filename or 'a file'}: {failure.strerror or failure}"
    return str(failure)
