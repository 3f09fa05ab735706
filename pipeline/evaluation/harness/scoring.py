"""How likely continuations are: one forward over padded rows, logits for the scored tokens only.

Rows are padded on the right, where causal attention never looks; the skipping path does not compute padding at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pipeline.evaluation.harness.jobs import Row, RowScore
from pipeline.model.pondering import PonderInputs

if TYPE_CHECKING:
    from pipeline.model import AdaPonderForCausalLM


@torch.inference_mode()
def score_rows(model: AdaPonderForCausalLM, rows: list[Row]) -> list[RowScore]:
    """Score the rows together, with the network halting as it is configured.

    No more logits are held at once than those of the model's `vocabulary_chunk_tokens`.
    """
    input_ids = torch.zeros(len(rows), max(len(row.tokens) for row in rows), dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    for number, row in enumerate(rows):
        input_ids[number, : len(row.tokens)] = torch.tensor(row.tokens)
        mask[number, : len(row.tokens)] = 1
    input_ids = input_ids.to(model.device)
    mask = mask.to(model.device) if model.config.skips else None
    pondered = model.ponder(PonderInputs(input_ids, mask, every_gate=False))

    scored = [
        (number, len(row.tokens) - len(target) + place, token)
        for number, row in enumerate(rows)
        for target in row.targets
        for place, token in enumerate(target)
    ]
    where = torch.tensor(scored, device=model.device)
    log_likelihoods, greedy = _of_tokens(model, pondered.hidden[where[:, 0], where[:, 1]], where[:, 2])
    depths = pondered.depths.cpu()

    scores, start = [], 0
    for row, row_depths in zip(rows, depths, strict=True):
        read = row_depths[: len(row.tokens)]
        score = RowScore(answers=[], target_depths=[], read_depths=int(read.sum()))
        for target in row.targets:
            end = start + len(target)
            score.answers.append((float(log_likelihoods[start:end].sum()), bool(greedy[start:end].all())))
            score.target_depths.append(int(read[len(read) - len(target) :].sum()))
            start = end
        scores.append(score)
    return scores


def _of_tokens(
    model: AdaPonderForCausalLM, hidden: torch.Tensor, tokens: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each token, from the state [N, h] that predicts it: its log likelihood, float64 [N], and whether it is the
    likeliest, bool [N]; on the CPU."""
    chunk = model.config.vocabulary_chunk_tokens or len(tokens)
    found, greedy = [], []
    for states, ids in zip(hidden.split(chunk), tokens.split(chunk), strict=True):
        logits = model.lm_head(states)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        found.append(logits.log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1))
        greedy.append(logits.argmax(-1) == ids)
    return torch.cat(found).double().cpu(), torch.cat(greedy).cpu()
