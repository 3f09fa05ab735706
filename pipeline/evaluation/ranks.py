"""A network's work shared out over the ranks of torch.distributed, where there are several.

Rank 0 leads: it alone reads rows, makes requests, adds up and writes. The others have the same network, and no need of
rows or of a task's data: they wait for jobs (`pipeline.evaluation.worker` starts them). A job is the same on any rank,
and answers come back in the order of the jobs: what is added up is the same, in the same order, on any number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch.distributed as dist

from pipeline.errors import AdaPonderError, WorldError

if TYPE_CHECKING:
    from pipeline.evaluation.subject import Subject

_JOBS_A_ROUND = 4
"""Of each rank, before answers are gathered: more would be held in memory, and a failure be seen later; with fewer the
ranks would wait for each other more often."""


class Job(Protocol):
    """Plain data that says what to do with the network."""

    def run(self, subject: Subject) -> Any:
        """The answer, plain data too."""
        ...


_Job = TypeVar("_Job", bound=Job)


class LostRank(WorldError):
    """Another rank is gone: why, it may have told itself."""


def several_ranks() -> bool:
    return dist.is_initialized() and dist.get_world_size() > 1


def answered(subject: Subject, jobs: Iterable[_Job]) -> Iterator[tuple[_Job, Any]]:
    """Every job with its answer, in the order of the jobs, which are made as they are needed.

    A network that is not saved is on this rank only, and so is the work on it. Raises `WorldError` naming the rank that
    failed.
    """
    if subject.network is not None or not several_ranks():
        for job in jobs:
            yield job, job.run(subject)
        return
    waiting = iter(jobs)
    while some := list(islice(waiting, dist.get_world_size() * _JOBS_A_ROUND)):
        yield from zip(some, _round(subject, some), strict=True)


def let_others_go() -> None:
    """End `follow` on the other ranks, where there are any that still listen."""
    if several_ranks():
        with suppress(LostRank):
            _send([None] * dist.get_world_size())


def follow(load: Callable[[str], Subject]) -> None:
    """Do rank 0's jobs until it lets this rank go. `load` opens the checkpoint of that name.

    What fails here is told to rank 0, and raised when it has let this rank go.
    """
    loaded: dict[str, Subject] = {}
    failure: Exception | None = None
    while (received := _receive()) is not None:
        name, jobs = received

        def work(name: str = name, jobs: list[Job] = jobs) -> list[Any]:
            if jobs and name not in loaded:
                loaded[name] = load(name)
            return [job.run(loaded[name]) for job in jobs]

        found = _attempt(work)
        if isinstance(found, Exception):
            failure = failure or found
            found = _told(found)
        _gather(found)
    if failure is not None:
        raise failure


def _round(subject: Subject, jobs: list[Any]) -> list[Any]:
    world = dist.get_world_size()
    _send([(subject.checkpoint.name, jobs[rank::world]) for rank in range(world)])
    # What fails here is told after the others were heard: they wait to be.
    own = _attempt(lambda: [job.run(subject) for job in jobs[0::world]])
    gathered = _gather(None)
    if isinstance(own, Exception):
        raise own
    gathered[0] = own
    for rank, part in enumerate(gathered):
        if isinstance(part, str):
            raise WorldError(f"rank {rank} failed in the evaluation: {part}")
    return [gathered[number % world][number // world] for number in range(len(jobs))]


def _send(parts: list[Any]) -> None:
    with _losses_told():
        dist.scatter_object_list([None], parts, src=0)


def _receive() -> Any:
    received: list[Any] = [None]
    with _losses_told():
        dist.scatter_object_list(received, None, src=0)
    return received[0]


def _gather(found: Any) -> list[Any]:
    """What every rank has found, on rank 0; an empty list on others."""
    gathered: list[Any] = [None] * dist.get_world_size() if dist.get_rank() == 0 else []
    with _losses_told():
        dist.gather_object(found, gathered or None, dst=0)
    return gathered


@contextmanager
def _losses_told() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # what gloo raises when a connection ends
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise LostRank(f"rank {dist.get_rank()} lost another rank of the evaluation ({first}): judge again") from error


def _attempt(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except Exception as error:
        return error


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, AdaPonderError) else f"{type(error).__name__}: {error}"
