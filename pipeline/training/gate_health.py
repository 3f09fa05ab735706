"""Gates that have stopped deciding: after the ramp, a gate that closes for all tokens or for none makes the training a
fixed-depth one without saying so. Cross entropy and ponder loss look well in both cases.
"""

from __future__ import annotations

from pipeline.recipe_train import Phase
from pipeline.training.guards import Note

LEAST_KEPT = 0.01
MOST_KEPT = 0.999
LOOKS = 5
"""Logged steps in a row before an alarm is raised or taken back."""
ALARMS = "gates/alarms"


class GateHealth:
    """Watches what share of its tokens each pass keeps, by the metrics of logged steps."""

    def __init__(self, max_passes: int, note: Note) -> None:
        self._passes, self._note = max_passes, note
        self._phase: str | None = None
        self._forget()

    def look(self, step: int, phase: Phase, ramp_over: bool, metrics: dict[str, float]) -> dict[str, float]:
        """Judge a logged step; returns the metric of alarms that stand, none where gates do not halt tokens yet.

        ramp_over: whether as many gate values are pushed down as the phase wants.
        """
        if phase.name != self._phase:
            self._phase = phase.name
            self._forget()
        if not phase.halting or not ramp_over or self._passes < 2:
            return {}
        # Tokens that take part in pass 1, 2, ...: shares of all tokens.
        active = [metrics[f"depth/keep_ratio_pass_{number + 1}"] for number in range(self._passes)]
        for number in range(1, self._passes):
            arriving, going_on = active[number - 1 : number + 1]
            if not arriving:  # an earlier pass keeps none: that is said there
                continue
            self._look_at(step, number, going_on / arriving)
        return {ALARMS: float(len(self._alarmed))}

    def _look_at(self, step: int, number: int, kept: float) -> None:
        wrong = not LEAST_KEPT <= kept <= MOST_KEPT
        if wrong == (number in self._alarmed):
            self._in_a_row[number] = 0
            return
        self._in_a_row[number] = self._in_a_row.get(number, 0) + 1
        if self._in_a_row[number] < LOOKS:
            return
        self._in_a_row[number] = 0
        if wrong:
            self._alarmed.add(number)
            bound = f"under {LEAST_KEPT:.0%}" if kept < LEAST_KEPT else f"over {MOST_KEPT:.1%}"
            message = f"pass {number} keeps {kept:.2%} of its tokens at step {step}, {bound}: its gate does not decide"
            self._note("gate_alarm", message, step=step, gate_pass=number, kept=kept)
        else:
            self._alarmed.discard(number)
            message = f"pass {number} keeps {kept:.2%} of its tokens at step {step}: its gate decides again"
            self._note("gate_recovered", message, step=step, gate_pass=number, kept=kept)

    def _forget(self) -> None:
        self._alarmed: set[int] = set()
        self._in_a_row: dict[int, int] = {}
