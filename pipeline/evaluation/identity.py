"""What an evaluation is an evaluation of: tells whether a finished one is the one asked for."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from pipeline.checkpoint import Checkpoint


class Identity(BaseModel):
    """Two evaluations of the same give the same."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    suite: str
    checkpoint: str
    step: int
    save_id: str
    """The checkpoint's: tells its weights from others of the same step and recipe."""
    recipe_hash: str
    """The recipe that trained the checkpoint."""
    manifest_hash: str
    settings: dict[str, Any]
    """What of the recipe decides the suite's numbers, as plain data."""


def identify(checkpoint: Checkpoint, suite: str, settings: dict[str, Any]) -> Identity:
    """Of a suite with these settings on this checkpoint."""
    return Identity(
        suite=suite,
        checkpoint=checkpoint.name,
        step=checkpoint.step,
        save_id=checkpoint.state.save_id,
        recipe_hash=checkpoint.state.recipe_hash,
        manifest_hash=checkpoint.state.manifest_hash,
        settings=settings,
    )
