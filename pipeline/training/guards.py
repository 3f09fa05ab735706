"""Steps that look wrong: a loss that is no number, and a loss or gradient norm far above those before it.

All ranks see the same numbers, reduced over them, and so come to the same decision without asking each other. The loss
of every step is looked at: it travels with what the ranks tell each other at the next step's start, so that looking
costs no synchronisation of its own; only skipping a spike needs the loss before the optimizer's step.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable
from typing import Any

from pipeline.errors import UserError, WorldError
from pipeline.recipe import Recipe
from pipeline.recipe_guards import GuardsSection

Note = Callable[..., None]
"""note(kind, message, **fields): an event of events.jsonl and a line on the console, by rank 0."""

_DEVIATIONS = 1.4826
"""Standard deviations of a normal distribution in one median absolute deviation."""
_LEAST_SPREAD = 1e-3
"""Of the median: values that hardly differ would make a spike of anything."""


class RollBack(Exception):
    """A guard says that the steps since the last checkpoint shall not have been; for the loop."""


class RobustScore:
    """How far a value stands above the median of those before it, in robust standard deviations.

    Up to half of the window may be outliers without moving the score; a level that stays becomes the new median.
    """

    def __init__(self, window: int) -> None:
        self._values: deque[float] = deque(maxlen=window)
        self._least = max(2, window // 4)

    def score(self, value: float) -> float:
        """0.0 at the median or below it, and while fewer than a quarter of the window is known."""
        if len(self._values) < self._least:
            return 0.0
        median = self.median()
        deviation = _DEVIATIONS * statistics.median(abs(known - median) for known in self._values)
        spread = max(deviation, _LEAST_SPREAD * abs(median))
        if value <= median:
            return 0.0
        return (value - median) / spread if spread else math.inf

    def add(self, value: float) -> None:
        """Remember `value`; one that is not finite is left out."""
        if math.isfinite(value):
            self._values.append(value)

    def median(self) -> float:
        return statistics.median(self._values)


class Guards:
    """What is done about the steps of a training, on every rank alike."""

    def __init__(self, section: GuardsSection, note: Note) -> None:
        self._section, self._note = section, note
        self._phase: str | None = None
        self._in_a_row = 0
        self._new_windows()

    @property
    def decides_before_the_step(self) -> bool:
        """Whether `skips` must be asked, with a loss reduced before the optimizer's step."""
        return self._section.loss_spike == "skip"

    def phase(self, name: str) -> None:
        """Say which phase the coming step belongs to: another one has other losses, and is not compared with it."""
        if name != self._phase:
            self._phase = name
            self._new_windows()

    def remember(self, phase: str, losses: list[float], grad_norms: list[float]) -> None:
        """Take up the windows where an earlier attempt left them: the last values of the phase, oldest first."""
        self.phase(phase)
        for loss in losses:
            self._loss.add(loss)
        for norm in grad_norms:
            self._grad_norm.add(norm)

    def skips(self, step: int, loss: float) -> bool:
        """Whether `step` is left out because of its loss, the mean over all ranks' micro-batches so far."""
        score = self._loss.score(loss)
        if not math.isfinite(loss) or score <= self._section.spike_score:
            return False
        self._tell_spike("loss", step, loss, score, self._loss, "skip")
        return True

    def look(self, step: int, loss: float, grad_norm: float | None) -> None:
        """Judge `step`, taken or skipped, by its loss over all ranks and its gradient norm before clipping.

        grad_norm: None where it is not known. Raises `WorldError` where a guard says stop, `RollBack` where one says
        roll_back.
        """
        section = self._section
        if not math.isfinite(loss):
            if section.non_finite_loss == "stop":
                raise WorldError(
                    f"the loss of step {step} is {loss}: nothing after the last checkpoint is kept; "
                    "a lower train.optimizer.peak_lr or other data may help"
                )
            message = f"the loss of step {step} is {loss}"
            self._note("loss_not_finite", message, step=step, loss=str(loss))
            if section.non_finite_loss == "roll_back":
                raise RollBack(message)
        elif section.loss_spike != "skip":
            self._judge("loss", step, loss, self._loss, section.loss_spike)
        self._loss.add(loss)
        # A step whose gradients were not finite has been skipped; its norm says nothing.
        if grad_norm is not None and math.isfinite(grad_norm):
            self._judge("grad_norm", step, grad_norm, self._grad_norm, section.grad_norm_spike)
            self._grad_norm.add(grad_norm)

    def took(self, step: int, skipped: bool, reason: str) -> None:
        """Say whether the optimizer left `step` out, and why. Raises `WorldError` after too many in a row."""
        if not skipped:
            self._in_a_row = 0
            return
        self._in_a_row += 1
        self._note("step_skipped", f"step {step} was skipped: {reason}", step=step, reason=reason)
        if self._in_a_row >= self._section.skips_in_a_row:
            raise WorldError(
                f"the last {self._in_a_row} steps up to step {step} were skipped ({reason}): nothing after the last "
                "checkpoint is kept; a lower train.optimizer.peak_lr or other data may help"
            )

    def _judge(self, quantity: str, step: int, value: float, known: RobustScore, action: str) -> None:
        score = known.score(value)
        if score <= self._section.spike_score:
            return
        message = self._tell_spike(quantity, step, value, score, known, action)
        if action == "roll_back":
            raise RollBack(message)
        if action == "stop":
            raise WorldError(
                f"{message}: train.guards.{quantity}_spike says stop; nothing after the last checkpoint is kept"
            )

    def _tell_spike(self, quantity: str, step: int, value: float, score: float, known: RobustScore, action: str) -> str:
        median = known.median()
        message = (
            f"{quantity.replace('_', ' ')} of step {step} is {value:.4g}, {score:.0f} robust standard deviations above "
            f"the median {median:.4g} of the steps before it"
        )
        fields: dict[str, Any] = {"step": step, "value": value, "median": median, "score": score, "action": action}
        self._note(f"{quantity}_spike", message, **fields)
        return message

    def _new_windows(self) -> None:
        self._loss = RobustScore(self._section.spike_window_steps)
        self._grad_norm = RobustScore(self._section.spike_window_steps)


def check_guards(recipe: Recipe, zero_stage: int) -> None:
    """`UserError` for what DeepSpeed cannot do: without ZeRO it takes every step."""
    if zero_stage > 0:
        return
    for name in ("non_finite_loss", "loss_spike"):
        if getattr(recipe.train.guards, name) == "skip":
            raise UserError(
                f"train.guards.{name} skip: train.strategy {recipe.train.strategy} is without ZeRO, where DeepSpeed "
                "cannot leave out a step; take stop, or zero1"
            )
