"""A network that answers the harness's batches, alone or on the ranks that there are.

Rank 0 alone makes the requests, so that they are the same on any number of ranks, few-shot examples included, which the
harness draws one document after the other. A batch is answered in one place as in any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.evaluation.halting import inference_halting, run_as
from pipeline.evaluation.harness.jobs import Batch, ScoreBatch
from pipeline.evaluation.harness.scoring import score_rows
from pipeline.evaluation.harness.writing import write_texts
from pipeline.evaluation.ranks import answered

if TYPE_CHECKING:
    from pipeline.evaluation.subject import Subject
    from pipeline.model import AdaPonderForCausalLM

Answers = Callable[[Iterable[Batch]], Iterator[list[Any]]]
"""The answers to batches, in their order."""


def answer(model: AdaPonderForCausalLM, tokenizer: Any, batch: Batch, halting: str | None = None) -> list[Any]:
    """A `RowScore` or a `Written` for each text of the batch, of a network in evaluation mode.

    halting: how the network halts; None: as it does in the least time.
    """
    with run_as(model, halting or inference_halting(model.config)):
        if isinstance(batch, ScoreBatch):
            return score_rows(model, batch.rows)
        return write_texts(model, tokenizer, batch)


def answers_of(subject: Subject) -> Answers:
    """By a checkpoint's network, on all ranks."""
    return lambda batches: (found for _, found in answered(subject, map(_Answer, batches)))


@dataclass(frozen=True)
class _Answer:
    """A job."""

    batch: Batch

    def run(self, subject: Subject) -> list[Any]:
        return answer(subject.model, subject.tokenizer, self.batch)
