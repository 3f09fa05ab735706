"""Loss, perplexity and bits a byte from sums of negative log likelihoods.

Sums are kept, not means of batches: rows end in padding, so batches hold different numbers of tokens, and a mean of
means would weigh tokens unequally. They are float64, since a float32 sum of millions of terms loses digits.
"""

from __future__ import annotations

import math


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
