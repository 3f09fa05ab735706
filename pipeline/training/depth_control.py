"""Lambda and k_s of each step: as the phase says, or whatever holds the mean depth that the recipe asks for.

A step beyond the paper, which fixes both and takes the depth that comes out. With `target_depth` a step's lambda is

    ponder_weight * clip((depth - aim) / target_width, -1, 1)

where `depth` is the running mean of what steps spend and `aim` falls with the ramp from K to the target. It presses on
the gates nearest to the threshold (`depth_loss`): above 0 some of them close, below 0 some that are closed open again.
Without the second a depth that fell too far would stay there, since a closed gate hears nothing from cross entropy; and
nothing is added up over time, so that a lag is not paid for later. The same on every rank; a checkpoint holds the
running mean, so that resuming changes nothing.
"""

from __future__ import annotations

from pipeline.checkpoint import DepthState
from pipeline.recipe_train import Phase
from pipeline.training.phases import ponder_fraction, ramp_share

MEMORY = 0.8
"""Weight of the past in the running mean of depth: five steps."""


class DepthControl:
    """Lambda of a training, step by step."""

    def __init__(self, max_passes: int, state: DepthState | None = None) -> None:
        """state: of the checkpoint that the training goes on from."""
        self._passes, self.state = max_passes, state

    def ponder_weight(self, phase: Phase, phase_step: int) -> float:
        """lambda of a step; below 0 where it is to open gates."""
        if phase.target_depth is None:
            return phase.ponder_weight
        state = self._of(phase)
        depth = self._passes if state is None else state.depth
        aim = self._passes - ramp_share(phase, phase_step) * (self._passes - phase.target_depth)
        return phase.ponder_weight * min(max((depth - aim) / phase.target_width, -1.0), 1.0)

    def ponder_fraction(self, phase: Phase, phase_step: int) -> float:
        """k_s of a step; with a target the whole of it from the first step, since lambda has the ramp."""
        return ponder_fraction(phase, phase_step) if phase.target_depth is None else phase.ponder_fraction

    def took(self, phase: Phase, depth: float) -> None:
        """A step of `phase` was taken, in which a token took `depth` passes on the mean over all ranks."""
        if phase.target_depth is None:
            self.state = None
            return
        known = self._of(phase)
        mean = depth if known is None else MEMORY * known.depth + (1 - MEMORY) * depth
        self.state = DepthState(phase=phase.name, depth=mean)

    def _of(self, phase: Phase) -> DepthState | None:
        return self.state if self.state is not None and self.state.phase == phase.name else None
