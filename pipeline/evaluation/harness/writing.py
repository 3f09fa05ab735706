"""Continuing texts until they end, with the depth of every token that is read on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from pipeline.evaluation.harness.jobs import WriteBatch, Written

if TYPE_CHECKING:
    from pipeline.model import AdaPonderForCausalLM


@torch.inference_mode()
def write_texts(model: AdaPonderForCausalLM, tokenizer: Any, batch: WriteBatch) -> list[Written]:
    """Continue the texts together, with the network halting as it is configured; contexts are padded on the left."""
    width = max(len(context) for context in batch.contexts)
    input_ids = torch.full((len(batch.contexts), width), tokenizer.eos_token_id, dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    for number, context in enumerate(batch.contexts):
        input_ids[number, width - len(context) :] = torch.tensor(context)
        mask[number, width - len(context) :] = 1

    ending = _Ending(tokenizer, batch.stops, width)
    depths: list[torch.Tensor] = []
    noting = model.register_forward_hook(lambda module, inputs, output: depths.append(output.depths))
    network: Any = model  # generate() is typed for a protocol that transformers' own models do not fulfil
    try:
        with torch.random.fork_rng():
            torch.manual_seed(batch.seed)
            finished = network.generate(
                input_ids.to(model.device),
                attention_mask=mask.to(model.device),
                max_new_tokens=batch.max_new_tokens,
                stopping_criteria=StoppingCriteriaList([ending]),
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.eos_token_id,
                **batch.arguments,
            )
    finally:
        noting.remove()

    read = torch.cat(depths, dim=1).cpu()
    written = []
    for row, (context, new) in enumerate(zip(batch.contexts, finished[:, width:].tolist(), strict=True)):
        length = ending.lengths.get(row, len(new))
        spent = read[row, width - len(context) : width - 1 + length]
        written.append(Written(new[:length], int(spent[len(context) - 1 :].sum()), int(spent.sum())))
    return written


class _Ending(StoppingCriteria):
    """Ends each text by itself: at the end-of-text mark, or when what is new in it holds one of the stops."""

    def __init__(self, tokenizer: Any, stops: list[str], start: int) -> None:
        self._tokenizer = tokenizer
        self._stops = [stop for stop in stops if stop]
        self._start = start
        self.lengths: dict[int, int] = {}
        """Of each row that has ended: how many new tokens it has."""

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        new = input_ids[:, self._start :].tolist()
        for row, tokens in enumerate(new):
            if row not in self.lengths and self._ends(tokens):
                self.lengths[row] = len(tokens)
        return torch.tensor([row in self.lengths for row in range(len(new))], device=input_ids.device)

    def _ends(self, tokens: list[int]) -> bool:
        if tokens[-1] == self._tokenizer.eos_token_id:
            return True
        text = self._tokenizer.decode(tokens)
        return any(stop in text for stop in self._stops)
