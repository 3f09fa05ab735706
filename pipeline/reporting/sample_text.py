"""The text that a checkpoint writes for its report: made once, and kept beside it in sample.json."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.durable import write_text
from pipeline.errors import UserError
from pipeline.evaluation.sample import generate_sample
from pipeline.evaluation.subject import Subject
from pipeline.reporting.content import Chapter, Tinted

SAMPLE_NAME = "sample.json"


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SampleIdentity(_Entry):
    """What decides the text."""

    save_id: str
    prompt: str
    new_tokens: int
    seed: int


class SampleText(_Entry):
    """The content of sample.json."""

    schema_version: int = 1
    identity: SampleIdentity
    pieces: list[tuple[str, int]]
    """Text and depth."""
    prompt_pieces: int
    max_passes: int
    refused: str | None = None
    """Why there is none."""


def sample_identity(subject: Subject) -> SampleIdentity:
    section = subject.recipe.evaluate
    return SampleIdentity(
        save_id=subject.checkpoint.state.save_id,
        prompt=section.sample_prompt,
        new_tokens=section.sample_tokens,
        seed=subject.recipe.seed,
    )


def sample_text(subject: Subject, folder: Path) -> SampleText:
    """The text kept in `folder` if it is the one asked for, else a new one, which is then kept there.

    Raises `WorldError` for a checkpoint that cannot be loaded.
    """
    path, identity = folder / SAMPLE_NAME, sample_identity(subject)
    try:
        kept = SampleText.model_validate_json(path.read_bytes())
        if kept.identity == identity:
            return kept
    except (FileNotFoundError, ValidationError):
        pass  # there is none that is of use: it is made anew
    model = subject.model
    try:
        sample = generate_sample(model, subject.tokenizer, identity.prompt, identity.new_tokens, identity.seed)
    except UserError as error:  # a prompt beyond the network's positions costs the text, not the report
        text = SampleText(
            identity=identity, pieces=[], prompt_pieces=0, max_passes=model.config.max_passes, refused=str(error)
        )
    else:
        text = SampleText(
            identity=identity,
            pieces=[(piece.text, piece.depth) for piece in sample.pieces],
            prompt_pieces=sample.prompt_pieces,
            max_passes=sample.max_passes,
        )
    write_text(path, text.model_dump_json(indent=2) + "\n")
    return text


def sample_chapter(text: SampleText) -> Chapter:
    """The text, every token on its depth's colour."""
    if text.refused is not None or not text.pieces:
        return Chapter("A text it writes", [f"None was written: {text.refused or 'the sample has no tokens'}."])
    mean = sum(depth for _, depth in text.pieces) / len(text.pieces)
    told = (
        f"Drawn with seed {text.identity.seed} at temperature 1 from the 50 likeliest tokens. Each token stands on the "
        f"colour of its depth, the passes it took part in; {mean:.2f} of {text.max_passes} in the mean."
    )
    return Chapter("A text it writes", [told], tinted=Tinted(text.pieces, text.prompt_pieces, text.max_passes))
