"""The recipe's guards section: what is done when a step looks wrong (`pipeline.training.guards`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.recipe_section import PositiveFloat, PositiveInt, Section


class GuardsSection(Section):
    """What is done when a step looks wrong. log: an event and a line; skip: the step is not taken, its rows are passed
    over; roll_back: the training begins anew at its last checkpoint and passes over the rows since, those of the step
    included; stop: the training ends, nothing after the last checkpoint is kept."""

    non_finite_loss: Literal["skip", "roll_back", "stop"] = "stop"
    """A loss that is not a number or infinite. skip needs ZeRO 1, 2 or 3. Where gradients alone are not finite, these
    skip the step whatever stands here."""
    loss_spike: Literal["log", "skip", "roll_back", "stop"] = "log"
    """A loss far above those before it. skip needs ZeRO 1, 2 or 3 and one more reduction of two numbers a step."""
    grad_norm_spike: Literal["log", "roll_back", "stop"] = "log"
    """A gradient norm far above those before it; it is known once the step is taken, with the clipped gradient."""
    spike_score: PositiveFloat = 10.0
    """How far above the median of the window a spike is, in robust standard deviations (1.4826 x the median absolute
    deviation)."""
    spike_window_steps: Annotated[int, Field(ge=8)] = 128
    """Steps of the same phase that a step is compared with; nothing is judged before a quarter of them is there."""
    skips_in_a_row: PositiveInt = 10
    """The training stops when so many steps in a row are skipped."""
    roll_backs_in_a_row: PositiveInt = 3
    """The training stops instead of going back to the same checkpoint once more."""
