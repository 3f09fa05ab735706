"""`adaponder generate`: a network's continuations of prompts, tinted by depth; for terminals, as a page, as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.console import console
from pipeline.durable import write_text
from pipeline.evaluation.sample import Sample, Sampling, generate_sample, render
from pipeline.evaluation.standing_network import StandingNetwork, open_network
from pipeline.evaluation.tinted_page import legend, tinted_page, tinted_text


@dataclass(frozen=True)
class Asked:
    """What is generated, and how."""

    prompts: list[str]
    tokens: int
    seed: int
    sampling: Sampling

    def of(self, network: StandingNetwork) -> list[Sample]:
        """One text a prompt, each from the same seed: a text does not depend on those before it."""
        return [
            generate_sample(network.model, network.tokenizer, prompt, self.tokens, self.seed, self.sampling)
            for prompt in self.prompts
        ]

    def told(self) -> str:
        """In words."""
        if self.sampling.greedy:
            return f"greedy, up to {self.tokens} new tokens"
        among = f"the {self.sampling.top_k} likeliest" if self.sampling.top_k else "all entries"
        return (
            f"seed {self.seed}, temperature {self.sampling.temperature:g} among {among}, up to {self.tokens} new tokens"
        )


def generate_and_tell(
    where: str, runs: Path | None, checkpoint_name: str, asked: Asked, page: Path | None, as_json: bool
) -> None:
    """Generate and print; `page` gets the same as HTML. Raises `UserError` for what `where` does not name."""
    network = open_network(where, runs, checkpoint_name)
    samples = asked.of(network)
    if page is not None:
        write_text(page, generation_page(network, asked, samples))
    if as_json:
        print(json.dumps([sample_json(network, asked, sample) for sample in samples], ensure_ascii=False, indent=2))
        return
    for number, sample in enumerate(samples):
        if number:
            console.print()
        console.print(render(sample))
    if page is not None:
        console.print(f"\ngenerate: {page}")


def generation_page(network: StandingNetwork, asked: Asked, samples: list[Sample]) -> str:
    """All texts on one page."""
    passes = network.model.config.max_passes
    parts = [
        f"<p>Every token stands on the colour of its depth, the passes it took part in when it was read: "
        f"{legend(passes)}. The prompt is bold; the pointer on a token tells its depth.</p>",
        f'<p class="told">{asked.told()}</p>',
    ]
    for number, sample in enumerate(samples, start=1):
        if len(samples) > 1:
            parts.append(f"<h2>Prompt {number}</h2>")
        parts += [f'<p class="told">mean depth {sample.mean_depth:.2f} of {passes}</p>', tinted_text(sample)]
    return tinted_page(f"Text of {network.name}", parts, passes)


def sample_json(network: StandingNetwork, asked: Asked, sample: Sample) -> dict[str, Any]:
    """A text for machines: pieces are what can be shown alone, a character or more, with their tokens' depths."""
    given = sample.pieces[: sample.prompt_pieces]
    return {
        "network": network.name,
        "step": network.step,
        "prompt": "".join(piece.text for piece in given),
        "text": sample.text,
        "prompt_tokens": sum(len(piece.tokens) for piece in given),
        "pieces": [asdict(piece) for piece in sample.pieces],
        "mean_depth": sample.mean_depth,
        "max_passes": network.model.config.max_passes,
        "seed": asked.seed,
        "tokens": asked.tokens,
        "sampling": asdict(asked.sampling),
    }
