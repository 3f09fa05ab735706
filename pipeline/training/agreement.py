"""What ranks tell each other at the start of a step, so that all of them go on or all of them stop.

A rank that stopped alone would leave the others waiting in a collective until their time is up, and only its own log
would say why.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import torch
import torch.distributed as dist

from pipeline.errors import AdaPonderError, WorldError
from pipeline.host_name import host_name

Found = TypeVar("Found")
Told = TypeVar("Told")


@dataclass(frozen=True)
class StepFlags:
    """What a rank says before a step; of all ranks together a flag is set where it is set on any."""

    reading_failed: bool = False
    """This rank has no batch for the step."""
    stop_wanted: bool = False
    """This rank knows a reason to stop before the step."""
    save_failed: bool = False
    """This rank knows of a checkpoint that could not be written beside the training."""


@dataclass(frozen=True)
class StepStart(Generic[Found]):
    """A step that all ranks begin."""

    found: Found
    stop_wanted: bool
    """By any rank."""
    save_failed: bool
    """On any rank."""
    sums: list[float]
    """What each rank gave to be added up."""


def agreed(flags: StepFlags, device: torch.device) -> StepFlags:
    """The flags of all ranks together, by one small reduction on `device`; collective."""
    return _reduced(flags, None, device)[0]


def read_together(read: Callable[[], Found], device: torch.device) -> Found:
    """What `read` gives on this rank, once it has succeeded on every rank; collective.

    Where it raised on any, every rank raises the same `WorldError` with all messages and the ranks they come from; but
    a rank whose own error is neither `WorldError` nor OSError raises that one: a user's mistake, or a bug.
    """
    return begin_together(read, device).found


def begin_together(
    read: Callable[[], Found],
    device: torch.device,
    stop_wanted: bool = False,
    sums: torch.Tensor | None = None,
    save_failed: bool = False,
) -> StepStart[Found]:
    """`read_together` for a step, and what else ranks tell each other before it, in one reduction; collective.

    sums: numbers to be added up over the ranks, [n], the same n on all.
    """
    found, failure = None, None
    try:
        found = read()
    except Exception as error:  # whatever it is, the others must not wait for this rank
        failure = error
    flags, added = _reduced(StepFlags(failure is not None, stop_wanted, save_failed), sums, device)
    if flags.reading_failed:
        messages = _all_messages(failure)
        if failure is not None and not isinstance(failure, WorldError | OSError):
            raise failure
        raise WorldError(messages) from failure
    return StepStart(cast(Found, found), flags.stop_wanted, flags.save_failed, added)


def told_by_all(mine: Told | None) -> list[tuple[Told, str]]:
    """What ranks have to say, with "rank 3 on HOST" for each that says something, in their order; collective."""
    pair = None if mine is None else (mine, f"rank {_rank()} on {host_name()}")
    pairs: list[tuple[Told, str] | None] = [pair]
    if dist.is_initialized():
        pairs = [None] * dist.get_world_size()
        dist.all_gather_object(pairs, pair)
    return [pair for pair in pairs if pair is not None]


def ranks_by_host() -> dict[str, list[int]]:
    """Which ranks are on which host, in their order; collective."""
    found: dict[str, list[int]] = {}
    for rank, (host, _) in enumerate(told_by_all(host_name())):
        found.setdefault(host, []).append(rank)
    return found


def numbers_of_all(mine: list[float], device: torch.device) -> list[list[float]]:
    """The numbers of every rank, in the order of ranks, as many from each; collective."""
    if not dist.is_initialized():
        return [mine]
    own = torch.tensor(mine, dtype=torch.float64, device=device)
    found = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(found, own)
    return torch.stack(found).tolist()


def _reduced(flags: StepFlags, sums: torch.Tensor | None, device: torch.device) -> tuple[StepFlags, list[float]]:
    # A sum serves both: a flag is set where any rank set it, and one loss that is no number makes the mean none.
    values = torch.tensor(dataclasses.astuple(flags), dtype=torch.float64, device=device)
    count = len(values)
    if sums is not None:
        values = torch.cat([values, sums.to(values)])
    if dist.is_initialized():
        dist.all_reduce(values)
    told = values.tolist()
    return StepFlags(*(value > 0 for value in told[:count])), told[count:]


def from_rank_0(value: Any) -> Any:
    """Rank 0's value, on every rank; collective."""
    box = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(box, src=0)
    return box[0]


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _all_messages(failure: Exception | None) -> str:
    """Every rank's message with the ranks that have it, in the order of ranks; collective."""
    ranks: dict[str, list[str]] = {}
    for message, who in told_by_all(None if failure is None else message_of(failure)):
        ranks.setdefault(message, []).append(who)
    return "; ".join(f"{message} (read by {', '.join(who)})" for message, who in ranks.items())


def message_of(failure: Exception) -> str:
    """What ranks tell each other of an error."""
    if isinstance(failure, OSError) and not isinstance(failure, AdaPonderError):
        return f"{failure.filename or 'a file'}: {failure.strerror or failure}"
    return str(failure) if isinstance(failure, AdaPonderError) else f"{type(failure).__name__}: {failure}"
