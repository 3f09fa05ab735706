"""How many parameters a network has, by part; exact, from its sizes alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from pipeline.model import AdaPonderConfig
from pipeline.recipe import Architecture


@dataclass(frozen=True)
class Parameters:
    """Counts of weights and biases."""

    backbone: int
    """The layers and the final LayerNorm."""
    embeddings: int
    """Of tokens, and of pauses."""
    head: int
    gates: int

    @property
    def total(self) -> int:
        return self.backbone + self.embeddings + self.head + self.gates

    def as_dict(self) -> dict[str, int]:
        """The parts by name, and their `total`."""
        return asdict(self) | {"total": self.total}


def count_parameters(config: AdaPonderConfig) -> Parameters:
    """Parameters of the network of that configuration."""
    return _count(config, config.num_gates, config.attention_bias, config.pause_tokens)


def architecture_parameters(network: Architecture, max_passes: int = 4) -> Parameters:
    """The same of an AdaPonder on that backbone, with a gate after every pass but the last."""
    return _count(network, max_passes - 1, attention_bias=True)


def largest_parameter(config: AdaPonderConfig) -> int:
    """Elements of the largest single weight."""
    hidden = config.hidden_size
    return hidden * max(config.vocab_size, config.intermediate_size, 4 * hidden if config.num_gates else 3 * hidden)


def _count(network: AdaPonderConfig | Architecture, gates: int, attention_bias: bool, pauses: int = 0) -> Parameters:
    hidden, inner = network.hidden_size, network.intermediate_size
    norm = 2 * hidden
    attention = 4 * hidden * hidden + (4 * hidden if attention_bias else 0)
    layer = 2 * norm + attention + (hidden * inner + inner) + (inner * hidden + hidden)
    gate = (4 * hidden * hidden + 4 * hidden) + (4 * hidden + 1)
    return Parameters(
        backbone=network.num_hidden_layers * layer + norm,
        embeddings=(network.vocab_size + pauses) * hidden,
        head=network.vocab_size * hidden,
        gates=gates * gate,
    )
