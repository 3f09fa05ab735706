"""depth.html: the most and the least pondered tokens in their context, every token on its depth's colour.

One file without scripts, fonts or images from elsewhere. Texts are data: whatever a document holds is escaped.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.evaluation.pondering.tokens import Tokens
from pipeline.evaluation.tinted_page import legend, tinted_page

SHOWN, CONTEXT = 20, 24
"""Tokens of each kind, and how many stand before and after each."""
_LEAST_COUNT = 20
"""How often a token must occur for its mean depth to be told."""


@dataclass(frozen=True)
class Pondered:
    """A token that is shown: its place among `Tokens`, and why."""

    place: int
    told: str


def depth_page(tokens: Tokens, tokenizer: Any, title: str) -> str:
    """The page as HTML."""
    most, least = most_pondered(tokens), least_pondered(tokens)
    parts = [
        f"<p>Every token stands on the colour of its depth, the passes it took part in: {legend(tokens.max_passes)}. "
        "Its depth is that of the token that is read; the loss is that of what comes next, which it predicts.</p>",
        *_section("Most pondered", most, tokens, tokenizer),
        *_section("Least pondered", least, tokens, tokenizer),
        "<h2>Tokens by their mean depth</h2>",
        *_vocabulary(tokens, tokenizer),
    ]
    return tinted_page(title, parts, tokens.max_passes)


def most_pondered(tokens: Tokens) -> list[Pondered]:
    """The deepest, among them those whose last gate stood widest open; each text once."""
    last = np.nan_to_num(_gate(tokens, tokens.depths.clip(max=tokens.gates.shape[1]) - 1), nan=0.0)
    return _chosen(tokens, np.lexsort((-last, -tokens.depths)))


def least_pondered(tokens: Tokens) -> list[Pondered]:
    """The shallowest, among them those whose gate closed most firmly; each text once."""
    last = np.nan_to_num(_gate(tokens, tokens.depths.clip(max=tokens.gates.shape[1]) - 1), nan=1.0)
    return _chosen(tokens, np.lexsort((last, tokens.depths)))


def _gate(tokens: Tokens, number: np.ndarray) -> np.ndarray:
    """The value of one gate of each token."""
    if not tokens.gates.shape[1]:
        return np.zeros(len(tokens))
    return tokens.gates[np.arange(len(tokens)), number]


def _chosen(tokens: Tokens, order: np.ndarray) -> list[Pondered]:
    found: list[Pondered] = []
    seen: set[tuple[int, int]] = set()
    for place in order.tolist():
        pair = int(tokens.ids[place]), int(tokens.next_ids[place])
        if pair in seen:  # the same word in the same turn says nothing new
            continue
        seen.add(pair)
        gates = ", ".join(f"{value:.4f}" for value in tokens.gates[place] if not np.isnan(value))
        source = tokens.source_names[int(tokens.sources[place])]
        told = f"{source}, depth {tokens.depths[place]}, gates {gates or 'none'}, loss {tokens.nll[place]:.2f} nats"
        found.append(Pondered(place, told))
        if len(found) == SHOWN:
            break
    return found


def _section(name: str, chosen: Sequence[Pondered], tokens: Tokens, tokenizer: Any) -> list[str]:
    parts = [f"<h2>{name}</h2>"]
    for each in chosen:
        parts += [
            f'<p class="told">{html.escape(each.told)}</p>',
            f'<p class="text">{_context(each.place, tokens, tokenizer)}</p>',
        ]
    return parts


def _context(place: int, tokens: Tokens, tokenizer: Any) -> str:
    row = tokens.rows[place]
    first = max(0, place - CONTEXT)
    last = min(len(tokens), place + CONTEXT + 1)
    shown = [number for number in range(first, last) if tokens.rows[number] == row]
    texts = tokenizer.batch_decode([[int(tokens.ids[number])] for number in shown], clean_up_tokenization_spaces=False)
    spans = []
    for number, text in zip(shown, texts, strict=True):
        mark = "b" if number == place else "span"
        it = " it" if number == place else ""
        spans.append(f'<{mark} class="d{tokens.depths[number]}{it}">{html.escape(text)}</{mark}>')
    return "".join(spans)


def _vocabulary(tokens: Tokens, tokenizer: Any) -> list[str]:
    """The tokens with the highest and the lowest mean depth, of those that occur often enough."""
    counts = np.bincount(tokens.ids)
    depths = np.bincount(tokens.ids, weights=tokens.depths)
    losses = np.bincount(tokens.ids, weights=tokens.nll)
    often = np.flatnonzero(counts >= _LEAST_COUNT)
    if not len(often):
        return [f"<p>No token occurs {_LEAST_COUNT} times.</p>"]
    order = often[np.argsort(-(depths[often] / counts[often]), kind="stable")]
    shown = order if len(order) <= 2 * SHOWN else np.concatenate([order[:SHOWN], order[-SHOWN:]])
    rows = ["<tr><th>token</th><th>times</th><th>mean depth</th><th>loss after it, nats</th></tr>"]
    for token in shown.tolist():
        text = html.escape(repr(tokenizer.decode([token], clean_up_tokenization_spaces=False))[1:-1])
        depth, loss = depths[token] / counts[token], losses[token] / counts[token]
        rows.append(f"<tr><td>{text}</td><td>{counts[token]:,}</td><td>{depth:.3f}</td><td>{loss:.3f}</td></tr>")
    return ["<table>", *rows, "</table>"]
