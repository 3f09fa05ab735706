"""Lambda and k_s of each step: as the phase says, or adjusted until the mean depth is what the recipe asks for.

A step beyond the paper, which fixes both and takes the depth that comes out. With `target_depth` the share that the
ponder loss pushes down is the share that has to halt, k = (K - target) / (K - 1), reached over the ramp: a token that
halts after pass d leaves K - d of the K - 1 gated passes. Pushing ends by itself there, since a closed gate has nothing
left to give. Lambda is an integral controller in logarithms:

    lambda <- lambda * exp(depth_gain * (depth - aim) / (K - 1))

where `depth` is the running mean of what steps spend and `aim` falls with the ramp from K to the target. It is a pure
function of the steps taken and the same on every rank, and a checkpoint holds its state, so that resuming changes
nothing.
"""

from __future__ import annotations

import math

from pipeline.checkpoint import DepthState
from pipeline.recipe_train import Phase
from pipeline.training.phases import ponder_fraction, ramp_share

MEMORY = 0.9
"""Weight of the past in the running mean of depth: ten steps."""
LEAST_WEIGHT, MOST_WEIGHT = 1e-4, 10.0
"""Between which lambda is adjusted: from next to no push to one that outweighs cross entropy."""


class DepthControl:
    """Lambda of a training, step by step."""

    def __init__(self, max_passes: int, state: DepthState | None = None) -> None:
        """state: of the checkpoint that the training goes on from."""
        self._passes, self.state = max_passes, state

    def ponder_weight(self, phase: Phase) -> float:
        """lambda of the next step in `phase`."""
        if phase.target_depth is None or self.state is None or self.state.phase != phase.name:
            return phase.ponder_weight
        return self.state.ponder_weight

    def ponder_fraction(self, phase: Phase, phase_step: int) -> float:
        """k_s of a step."""
        if phase.target_depth is None:
            return ponder_fraction(phase, phase_step)
        return ramp_share(phase, phase_step) * (self._passes - phase.target_depth) / max(1, self._passes - 1)

    def took(self, phase: Phase, phase_step: int, depth: float) -> None:
        """A step of `phase` was taken, in which a token took `depth` passes on the mean over all ranks."""
        if phase.target_depth is None:
            self.state = None
            return
        known = self.state if self.state is not None and self.state.phase == phase.name else None
        mean = depth if known is None else MEMORY * known.depth + (1 - MEMORY) * depth
        aim = self._passes - ramp_share(phase, phase_step) * (self._passes - phase.target_depth)
        weight = self.ponder_weight(phase) * math.exp(phase.depth_gain * (mean - aim) / max(1, self._passes - 1))
        self.state = DepthState(phase=phase.name, ponder_weight=min(max(weight, LEAST_WEIGHT), MOST_WEIGHT), depth=mean)
