"""Loss, perplexity and bits a byte from sums of negative log likelihoods.

Sums are kept, not means of batches: rows end in padding, so batches hold different numbers of tokens, and a mean of
means would weigh tokens unequally. They are float64, since a float32 sum of millions of terms loses digits.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from pipeline.data.rows import IGNORED_LABEL


def token_nll(logits: torch.Tensor, shift_labels: torch.Tensor) -> torch.Tensor:
    """Negative log likelihood of every label, nats, float32 [B, n]; 0 where the label is -100.

    logits: [B, n, vocabulary]. shift_labels: int64 [B, n], the token that follows each position. Row by row, because
    the logarithms of a batch's whole vocabulary would double the memory that the logits take.
    """
    rows = [
        F.cross_entropy(row.float(), labels, ignore_index=IGNORED_LABEL, reduction="none")
        for row, labels in zip(logits, shift_labels, strict=True)
    ]
    return torch.stack(rows)


def perplexity(loss: float) -> float:
    """exp of the loss in nats a token; infinity beyond what a double holds."""
    return math.exp(loss) if loss < 709.0 else math.inf


def bits_per_byte(loss: float, tokens: int, text_bytes: float) -> float:
    """Bits that the model needs for one byte of text: loss [nats a token] x tokens a byte / ln 2.

    Losses a token cannot be compared between tokenizers, since one with longer tokens predicts fewer, harder ones; the
    bytes of the text are the same for all. `tokens` and `text_bytes` are the manifest's, of the same validation
    documents: its tokens count the end-of-document marks as the loss does (a code for the text must also say where a
    document ends), its bytes do not, and neither holds padding. Where only the first rows are evaluated the
    documents' ratio stands for theirs; the first token of a row is given, not predicted, which the ratio evens out
    because the loss is a mean.
    """
    return loss * (tokens / text_bytes) / math.log(2)
