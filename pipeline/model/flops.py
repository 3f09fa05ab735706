"""What a token costs, in multiply-accumulates by part; head, mixture and gates are in (method section 7).

One multiply-accumulate is 2 FLOP. Matrix products are counted, element-wise work is not. Only sizes are read from the
configuration: no network is built.

`keys`, everywhere here: the number of keys that a query attends to, mean over the queries (see `mean_keys`). A kernel
that computes the whole square of a row of n tokens and masks half of it away has n. With pause tokens it still counts
tokens: the causal mean over their positions follows from it.
`depth_histogram`: tokens at depth 1, 2, ..., K, as counts or as shares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Literal

from .configuration_adaponder import AdaPonderConfig

Checkpointing = Literal["none", "activation", "mlp", "layer", "pass"]


@dataclass(frozen=True)
class MultiplyAccumulates:
    """Multiply-accumulates a token."""

    core: float
    """The transformer's linear layers: QKV, attention output, MLP."""
    attention: float
    """Scores and weighted values; what depends on the context."""
    head: float
    """lm_head: for the mixtures, and for the final logits."""
    mixture: float
    """Probabilities times embeddings."""
    gates: float

    @property
    def total(self) -> float:
        return self.core + self.attention + self.head + self.mixture + self.gates

    def __add__(self, other: MultiplyAccumulates) -> MultiplyAccumulates:
        return MultiplyAccumulates(*(getattr(self, part.name) + getattr(other, part.name) for part in fields(self)))

    def __mul__(self, factor: float) -> MultiplyAccumulates:
        return MultiplyAccumulates(*(getattr(self, part.name) * factor for part in fields(self)))

    __rmul__ = __mul__

    def as_dict(self) -> dict[str, float]:
        """The parts by name, and their `total`."""
        return asdict(self) | {"total": self.total}


@dataclass(frozen=True)
class TrainingWork:
    """Multiply-accumulates that training spends on a token."""

    forward: MultiplyAccumulates
    backward: MultiplyAccumulates
    recomputed: MultiplyAccumulates
    """What backward computes a second time to save memory."""

    @property
    def model(self) -> MultiplyAccumulates:
        """What the gradients need: the work that model FLOPs utilisation counts."""
        return self.forward + self.backward

    @property
    def total(self) -> MultiplyAccumulates:
        return self.model + self.recomputed


def mean_keys(tokens: int, context: int = 0) -> float:
    """Keys that a causal row of `tokens` attends to in the mean, itself included, after `context` cached tokens.

    One token decoded after n has n + 1.
    """
    return context + (tokens + 1) / 2


def active_shares(depth_histogram: Sequence[float]) -> list[float]:
    """Share of the tokens that take part in pass 1, 2, ..., K: 1 at first, never rising.

    Raises ValueError for a histogram without tokens, or with a negative entry.
    """
    if not depth_histogram or min(depth_histogram) < 0 or sum(depth_histogram) <= 0:
        raise ValueError(f"depth_histogram is {list(depth_histogram)}: it must hold tokens, and no negative entry")
    tokens = sum(depth_histogram)
    return [sum(depth_histogram[i:]) / tokens for i in range(len(depth_histogram))]


def passes_factor(depth_histogram: Sequence[float]) -> float:
    """The mean depth: the papers' "3.8x", which counts transformer passes alone (method section 6)."""
    return sum(active_shares(depth_histogram))


def work_factor(
    config: AdaPonderConfig, keys: float, depth_histogram: Sequence[float], logits_share: float = 1.0
) -> float:
    """All work of inference over that of the same backbone run once: what to put beside `passes_factor`."""
    work = inference_work(config, keys, depth_histogram, logits_share)
    return work.total / single_pass_work(config, keys, logits_share).total


def single_pass_work(config: AdaPonderConfig, keys: float, logits_share: float = 1.0) -> MultiplyAccumulates:
    """The same backbone with one pass, no gates, no mixture, no pauses: stock Pythia (method section 8, vanilla)."""
    return MultiplyAccumulates(
        core=_core(config),
        attention=_attention(config, keys),
        head=logits_share * config.vocab_size * config.hidden_size,
        mixture=0.0,
        gates=0.0,
    )


def masked_inference_work(config: AdaPonderConfig, keys: float, logits_share: float = 1.0) -> MultiplyAccumulates:
    """The plain path: every token pays for all passes, all gates and all mixtures, whatever halts.

    logits_share: share of the tokens whose final logits are wanted: 1 in scoring and in decoding, 1 / n where a
    prompt of n tokens is read before generation.
    """
    passes = config.max_passes
    return _forward(config, keys, passes=passes, gates=config.gated_passes, logits=logits_share)


def inference_work(
    config: AdaPonderConfig, keys: float, depth_histogram: Sequence[float], logits_share: float = 1.0
) -> MultiplyAccumulates:
    """Halted tokens are skipped, in prefill and in decoding.

    A token of depth d pays for d transformer passes, the gates after them, and the d - 1 mixtures that carried it on,
    each with its head: the gate comes first, so a token that halts pays for neither (method section 7). Its final
    logits are counted once, as in `masked_inference_work`. `keys` is the mean over the active queries: halted tokens
    stay visible. Raises ValueError if the histogram does not have K entries or no token.
    """
    active = _active_shares(config, depth_histogram)
    passes = sum(active)
    gates = sum(active[: config.gated_passes])
    return _forward(config, keys, passes=passes, gates=gates, logits=logits_share)


def training_work(
    config: AdaPonderConfig,
    keys: float,
    depth_histogram: Sequence[float] | None = None,
    *,
    frozen_backbone: bool = False,
    chunked_mixture: bool = False,
    recomputed_cross_entropy: bool = False,
    checkpointing: Checkpointing = "none",
) -> TrainingWork:
    """A training step: logits for every token, and 2 products in backward for each one whose two sides need a gradient.

    depth_histogram: where training skips halted tokens inside a pass; None: every token goes through every pass. Core,
    attention and mixtures follow it; the gates do not, since the ponder loss is over those of all tokens.
    frozen_backbone: the gates alone are trained. Other weights get no gradient, and nothing before the first gate does:
    no backward of the first pass and of its mixture.
    chunked_mixture: mixtures recompute their logits in backward. With `mixture_top_k` there is nothing to recompute,
    and the gradient of the logits is that of the k rows, where plain autograd multiplies a whole vocabulary of zeros.
    recomputed_cross_entropy: the final logits are recomputed too.
    checkpointing: what else is recomputed once. pass: the transformer as a whole, and the gates but for their last
    product; layer, and pass where halted tokens are skipped: the same but for each layer's last product (4h -> h
    without dropout), which torch's early stop leaves out; mlp: h -> 4h alone; activation: no product. What a fused
    attention kernel computes again by itself is not counted.
    Raises ValueError for a bad histogram, an unknown `checkpointing`, and a frozen backbone without gates.
    """
    if frozen_backbone and not config.gated_passes:
        raise ValueError("frozen_backbone is true and the network has no gates: there is nothing to train")
    skips = depth_histogram is not None
    active = _active_shares(config, depth_histogram) if skips else [1.0] * config.max_passes
    first = 1 if frozen_backbone else 0
    # Tokens that go on after a pass are those that take part in the next.
    passes, mixtures = sum(active[first:]), _mixtures(config, sum(active[first + 1 :]))
    forward = _forward(config, keys, passes=sum(active), gates=config.gated_passes, logits=1)

    hidden, vocabulary, rows = config.hidden_size, config.vocab_size, _mixture_rows(config)
    mixture_logits = rows if chunked_mixture else vocabulary
    # A product of a weight and an activation has two gradients, or one where the weight is frozen.
    sides = 1 if frozen_backbone else 2
    # With the backbone frozen the first gate's input leads to nothing that is trained.
    idle_gate_input = 4 * hidden**2 if frozen_backbone else 0
    backward = MultiplyAccumulates(
        core=sides * passes * _pass_core(config),
        attention=2 * passes * _pass_attention(config, keys),
        head=sides * (vocabulary + mixtures * mixture_logits) * hidden,
        mixture=sides * mixtures * rows * hidden,
        gates=2 * forward.gates - idle_gate_input,
    )

    up = hidden * config.intermediate_size
    layer = 4 * hidden**2 + up
    again = {"none": 0, "activation": 0, "mlp": up, "layer": layer, "pass": layer if skips else layer + up}
    if checkpointing not in again:
        raise ValueError(f"checkpointing is {checkpointing!r}: it must be one of {', '.join(again)}")
    logits_again = (mixtures if chunked_mixture and rows == vocabulary else 0) + bool(recomputed_cross_entropy)
    recomputed = MultiplyAccumulates(
        core=passes * config.positions_per_token * config.num_hidden_layers * again[checkpointing],
        attention=passes * _pass_attention(config, keys) if checkpointing in ("layer", "pass") else 0.0,
        head=logits_again * vocabulary * hidden,
        mixture=0.0,
        gates=config.gated_passes * 4 * hidden**2 if checkpointing in ("layer", "pass") else 0.0,
    )
    return TrainingWork(forward, backward, recomputed)


def _forward(
    config: AdaPonderConfig, keys: float, *, passes: float, gates: float, logits: float
) -> MultiplyAccumulates:
    """Each part so many times a token; `logits` are the final ones, beside those that the mixtures need, one before
    each further pass."""
    hidden, mixtures = config.hidden_size, _mixtures(config, passes - 1)
    return MultiplyAccumulates(
        core=passes * _pass_core(config),
        attention=passes * _pass_attention(config, keys),
        head=(mixtures + logits) * config.vocab_size * hidden,
        mixture=mixtures * _mixture_rows(config) * hidden,
        gates=gates * (4 * hidden**2 + 4 * hidden),
    )


def _mixtures(config: AdaPonderConfig, further_passes: float) -> float:
    """Mixtures that lead to so many passes: none where the hidden state itself is handed on (Loop Transformer)."""
    return 0.0 if config.feedback == "hidden_state" else further_passes


def _pass_core(config: AdaPonderConfig) -> float:
    """`_core` of a token and its pauses."""
    return config.positions_per_token * _core(config)


def _pass_attention(config: AdaPonderConfig, keys: float) -> float:
    """`_attention` of a token and its P pauses.

    The k-th token is attended from the positions (k - 1)(1 + P) + 1, ..., k (1 + P), each of which sees as many keys:
    k (1 + P) - P / 2 in the mean.
    """
    stride = config.positions_per_token
    return stride * _attention(config, keys * stride - config.pause_tokens / 2)


def _core(config: AdaPonderConfig) -> float:
    hidden = config.hidden_size
    return config.num_hidden_layers * (4 * hidden**2 + 2 * hidden * config.intermediate_size)


def _attention(config: AdaPonderConfig, keys: float) -> float:
    return 2 * keys * config.hidden_size * config.num_hidden_layers


def _mixture_rows(config: AdaPonderConfig) -> int:
    """Embeddings that enter a mixture: the whole vocabulary, or its `mixture_top_k` likeliest entries."""
    return config.mixture_top_k or config.vocab_size


def _active_shares(config: AdaPonderConfig, depth_histogram: Sequence[float]) -> list[float]:
    if len(depth_histogram) != config.max_passes:
        raise ValueError(f"depth_histogram has {len(depth_histogram)} depths: max_passes is {config.max_passes}")
    return active_shares(depth_histogram)
