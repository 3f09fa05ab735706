"""A network that answers batches, alone or shared out over the ranks of torch.distributed.

Rank 0 leads: it alone makes the requests, so that they are the same on any number of ranks, few-shot examples included,
which the harness draws one document after the other. The others need neither the harness nor its data: they wait for
batches (`pipeline.evaluation.worker` starts them). A batch is answered in one place as in any other, so the number of
ranks changes no result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from pipeline.errors import AdaPonderError, WorldError
from pipeline.evaluation.halting import inference_halting, run_as
from pipeline.evaluation.harness.jobs import Batch, ScoreBatch
from pipeline.evaluation.harness.scoring import score_rows
from pipeline.evaluation.harness.writing import write_texts

if TYPE_CHECKING:
    from pipeline.model import AdaPonderForCausalLM


@dataclass(frozen=True)
class Answerer:
    """A network in evaluation mode, and the tokenizer of its text."""

    model: AdaPonderForCausalLM
    tokenizer: Any
    halting: str | None = None
    """How the network halts; None: as it does in the least time."""

    def answer(self, batch: Batch) -> list[Any]:
        """A `RowScore` or a `Written` for each text of the batch."""
        with run_as(self.model, self.halting or inference_halting(self.model.config)):
            if isinstance(batch, ScoreBatch):
                return score_rows(self.model, batch.rows)
            return write_texts(self.model, self.tokenizer, batch)


class Ranks:
    """What rank 0 shares batches through; of one process where torch.distributed is not started."""

    def __init__(self, answerer: Answerer, subject: str | None) -> None:
        """subject: what the other ranks are to load; None keeps all to this process."""
        self._answerer = answerer
        self._subject = subject
        self.shares = subject is not None and dist.is_initialized() and dist.get_world_size() > 1

    def answer(self, batches: list[Batch], post_batch: Callable[[int], None] = lambda batches: None) -> list[Any]:
        """The answers to all batches, in their order. `post_batch` is told how many were answered since.

        Raises `WorldError` naming the rank that failed.
        """
        if not self.shares:
            return _answer(self._answerer, batches, lambda: post_batch(1))
        world = dist.get_world_size()
        parts = [(self._subject, batches[rank::world]) for rank in range(world)]
        dist.scatter_object_list([None], parts, src=0)
        # What fails here is told after the others were heard: they wait to be.
        own = _attempt(lambda: _answer(self._answerer, batches[0::world], lambda: post_batch(world)))
        gathered: list[Any] = [None] * world
        dist.gather_object(None, gathered, dst=0)
        if isinstance(own, BaseException):
            raise own
        gathered[0] = own
        for rank, part in enumerate(gathered):
            if isinstance(part, str):
                raise WorldError(f"rank {rank} failed in the evaluation: {part}")
        return [gathered[number % world][number // world] for number in range(len(batches))]


def let_others_go() -> None:
    """End `follow` on the other ranks, where there are any."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.scatter_object_list([None], [None] * dist.get_world_size(), src=0)


def follow(load: Callable[[str], Answerer]) -> None:
    """Answer rank 0's batches until it lets this rank go. `load` makes the network of what is evaluated.

    What fails here is told to rank 0, and raised when it has let this rank go.
    """
    loaded: dict[str, Answerer] = {}
    failure: BaseException | None = None
    while True:
        received: list[Any] = [None]
        dist.scatter_object_list(received, None, src=0)
        if received[0] is None:
            break
        subject, batches = received[0]

        def work(subject: str = subject, batches: list[Batch] = batches) -> list[Any]:
            if subject not in loaded:
                loaded[subject] = load(subject)
            return _answer(loaded[subject], batches, lambda: None)

        found = _attempt(work)
        if isinstance(found, BaseException):
            failure = failure or found
            found = _told(found)
        dist.gather_object(found, None, dst=0)
    if failure is not None:
        raise failure


def _answer(answerer: Answerer, batches: list[Batch], post_batch: Callable[[], None]) -> list[list[Any]]:
    answers = []
    for batch in batches:
        answers.append(answerer.answer(batch))
        post_batch()
    return answers


def _attempt(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except Exception as error:
        return error


def _told(error: BaseException) -> str:
    return str(error) if isinstance(error, AdaPonderError) else f"{type(error).__name__}: {error}"
