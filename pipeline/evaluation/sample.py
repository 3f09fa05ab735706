"""Generated text whose tokens are tinted by their depth: where the model thought longer.

A token's tint is the depth it has when it is read, as in the evaluation: its own passes, which predict what follows.
The depths come from one forward over the finished text; those that `generate()` gives would say nothing of the prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from rich.style import Style
from rich.text import Text

from pipeline.errors import UserError
from pipeline.evaluation.depth_colours import letters_on, tint
from pipeline.evaluation.halting import inference_halting, run_as

if TYPE_CHECKING:
    from pipeline.model import AdaPonderForCausalLM


@dataclass(frozen=True)
class Piece:
    """Some text, the tokens that make it up, and the depth of each."""

    text: str
    tokens: tuple[int, ...]
    depths: tuple[int, ...]

    @property
    def depth(self) -> int:
        """The largest among them."""
        return max(self.depths)


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    temperature: float = 1.0
    top_k: int = 50
    """Among how many of the likeliest; 0: all."""
    greedy: bool = False
    """The likeliest, whatever the others say."""

    def arguments(self) -> dict[str, Any]:
        """For `generate()`."""
        if self.greedy:
            return {"do_sample": False}
        return {"do_sample": True, "temperature": self.temperature, "top_k": self.top_k}


@dataclass(frozen=True)
class Sample:
    """A generated text, prompt included."""

    pieces: list[Piece]
    prompt_pieces: int
    """How many pieces at the start are the prompt's."""
    max_passes: int

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    @property
    def mean_depth(self) -> float:
        """Passes a token, prompt included."""
        depths = [depth for piece in self.pieces for depth in piece.depths]
        return sum(depths) / len(depths)


@torch.inference_mode()
def generate_sample(
    model: AdaPonderForCausalLM,
    tokenizer: Any,
    prompt: str,
    new_tokens: int,
    seed: int,
    sampling: Sampling = Sampling(),
) -> Sample:
    """Continue `prompt` by up to `new_tokens` tokens, the same for the same seed.

    `tokenizer` is a transformers tokenizer; its end-of-text mark ends the text, and starts that of an empty prompt.
    Raises `UserError` when prompt and new tokens are longer than the model's positions.
    """
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"] or [tokenizer.eos_token_id]
    config = model.config
    if len(ids) + new_tokens > config.max_tokens:
        pauses = f", {config.positions_per_token} a token" if config.pause_tokens else ""
        raise UserError(
            f"{len(ids)} prompt tokens and {new_tokens} new ones are beyond the model's "
            f"{config.max_position_embeddings} positions{pauses}: shorten them"
        )
    inputs = torch.tensor([ids], device=model.device)
    network: Any = model  # generate() is typed for a protocol that transformers' own models do not fulfil
    finished = inputs
    with run_as(model, inference_halting(model.config)), _seeded(model.device, seed):
        if new_tokens:
            finished = network.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=new_tokens,
                **sampling.arguments(),
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.eos_token_id,
            )
        depths = model(finished, logits_to_keep=1).depths[0].tolist()
    given = _pieces(tokenizer, ids, depths[: len(ids)])
    return Sample(
        pieces=given + _pieces(tokenizer, finished[0].tolist()[len(ids) :], depths[len(ids) :]),
        prompt_pieces=len(given),
        max_passes=model.config.max_passes,
    )


def render(sample: Sample) -> Text:
    """The sample for a terminal: every token on its depth's colour, the prompt in bold, and a legend below."""
    text = Text()
    for number, piece in enumerate(sample.pieces):
        style = depth_style(piece.depth, sample.max_passes)
        text.append(piece.text, style + Style(bold=True) if number < sample.prompt_pieces else style)
    text.append("\n\ndepth ", Style(dim=True))
    for depth in range(1, sample.max_passes + 1):
        text.append(f" {depth} ", depth_style(depth, sample.max_passes))
        text.append(" ")
    text.append(f"passes; mean {sample.mean_depth:.2f}; the prompt is bold", Style(dim=True))
    return text


def depth_style(depth: int, max_passes: int) -> Style:
    """Black or white letters on the depth's colour: light for the shallowest, dark for the deepest."""
    return Style(color=letters_on(depth, max_passes), bgcolor=tint(depth, max_passes))


@contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seed the generator that sampling on `device` draws from, and no other; after the block it is as it was."""
    generator = torch.cuda.default_generators[device.index] if device.type == "cuda" else torch.default_generator
    before = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(before)


def _pieces(tokenizer: Any, ids: Sequence[int], depths: Sequence[int]) -> list[Piece]:
    """Text token by token. Tokens that together make up one character stand in one piece."""
    pieces: list[Piece] = []
    waiting: list[int] = []
    thought: list[int] = []
    for place, (token, depth) in enumerate(zip(ids, depths, strict=True)):
        waiting.append(token)
        thought.append(depth)
        text = tokenizer.decode(waiting, clean_up_tokenization_spaces=False)
        # Half a character decodes to the replacement mark; a character has at most four bytes, so at most four tokens.
        if text.endswith("\N{REPLACEMENT CHARACTER}") and len(waiting) < 4 and place < len(ids) - 1:
            continue
        pieces.append(Piece(text, tuple(waiting), tuple(thought)))
        waiting, thought = [], []
    return pieces
