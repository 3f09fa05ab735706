"""Losses by document, and how sure their means are: documents are what a text is a sample of, tokens are not.

Tokens of one document are alike, so a bootstrap over tokens would be far too sure of itself. Documents are drawn again
with replacement; all policies are judged on the same draws, which makes their differences surer than their losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class DocumentPart:
    """Sums of some rows that follow each other, as any process can make them."""

    documents: np.ndarray
    """int64 [D], those that have a token which counts: 0 is the one that the first row begins in."""
    tokens: np.ndarray
    """int64 [D]."""
    nll: np.ndarray
    """float64 [names, D], nats."""
    ended: int
    """How many documents end in these rows."""


def document_part(
    inputs: torch.Tensor, counted: torch.Tensor, nll: torch.Tensor, end_of_document_id: int
) -> DocumentPart:
    """Sum rows. inputs: int64 [B, n]; counted: bool [B, n], tokens that predict; nll: float [names, B, n], nats.

    A prediction counts for the document that its token, the one that is read, stands in.
    """
    ends = (inputs == end_of_document_id).cpu().numpy().reshape(-1)
    document = np.concatenate([[0], np.cumsum(ends)])
    wanted = counted.cpu().numpy().reshape(-1)
    numbers, place = np.unique(document[:-1][wanted], return_inverse=True)
    values = nll.double().cpu().numpy().reshape(len(nll), -1)[:, wanted]
    return DocumentPart(
        documents=numbers,
        tokens=np.bincount(place, minlength=len(numbers)),
        nll=np.stack([np.bincount(place, weights=row, minlength=len(numbers)) for row in values]),
        ended=int(document[-1]),
    )


class DocumentSums:
    """Sums of several losses over the documents of rows that follow each other."""

    def __init__(self, names: list[str], end_of_document_id: int) -> None:
        self.names = names
        self.end_of_document_id = end_of_document_id
        self._document = 0
        self._documents: list[np.ndarray] = []
        self._tokens: list[np.ndarray] = []
        self._nll: list[np.ndarray] = []

    def begin(self) -> None:
        """Another set of rows, whose first token begins a document."""
        self._document += 1

    def add(self, inputs: torch.Tensor, counted: torch.Tensor, nll: torch.Tensor) -> None:
        """Add rows, those that follow the ones before; see `document_part`."""
        self.append(document_part(inputs, counted, nll, self.end_of_document_id))

    def append(self, part: DocumentPart) -> None:
        """Add the rows that follow the ones before."""
        self._documents.append(self._document + part.documents)
        self._document += part.ended
        self._tokens.append(part.tokens)
        self._nll.append(part.nll)

    def take(self, other: DocumentSums) -> None:
        """Add all documents of another set."""
        tokens, nll = other.totals()
        self._documents.append(self._document + np.arange(len(tokens)))
        self._document += len(tokens)
        self._tokens.append(tokens)
        self._nll.append(nll)

    def totals(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens int64 [documents], and nats float64 [names, documents]."""
        if not self._documents:
            return np.zeros(0, np.int64), np.zeros((len(self.names), 0))
        _, place = np.unique(np.concatenate(self._documents), return_inverse=True)
        tokens = np.bincount(place, weights=np.concatenate(self._tokens)).astype(np.int64)
        nll = np.concatenate(self._nll, axis=1)
        return tokens, np.stack([np.bincount(place, weights=row) for row in nll])

    def losses(self) -> dict[str, float]:
        """Nats a token, by name."""
        tokens, nll = self.totals()
        return {name: float(row.sum() / tokens.sum()) for name, row in zip(self.names, nll, strict=True)}

    def standard_error(self, name: str) -> float | None:
        """Of a loss, nats a token: how far it would move with other documents of the same kind; None for one document.

        That of a ratio of sums, nats over tokens, by the documents' residuals.
        """
        tokens, nll = self.totals()
        if len(tokens) < 2:
            return None
        of_name = nll[self.names.index(name)]
        residuals = of_name - of_name.sum() / tokens.sum() * tokens
        return float(np.sqrt(len(tokens) / (len(tokens) - 1) * (residuals**2).sum()) / tokens.sum())

    def bootstrap(self, draws: int, seed: int) -> np.ndarray:
        """Losses float64 [draws, names]: each draw takes as many documents as there are, with replacement."""
        generator = np.random.default_rng(seed)
        tokens, nll = self.totals()
        found = np.empty((draws, len(self.names)))
        for number in range(draws):
            times = np.bincount(generator.integers(len(tokens), size=len(tokens)), minlength=len(tokens))
            found[number] = nll @ times / (tokens @ times)
        return found


def joined(several: Sequence[DocumentSums]) -> DocumentSums:
    """All documents of several sets, which have the same names; at least one set."""
    together = DocumentSums(several[0].names, several[0].end_of_document_id)
    for sums in several:
        together.begin()
        together.take(sums)
    return together


def interval(values: np.ndarray, share: float = 0.95) -> tuple[float, float]:
    """The middle `share` of drawn values."""
    low, high = np.quantile(values, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)
