"""The training's own loss, thinned for a figure."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from statistics import fmean

from pipeline.tracking.metrics_lines import read_metrics

LOSS = "train/ce_loss"
MOST_POINTS = 300


def training_curve(metrics_file: Path, last_step: int) -> list[tuple[int, float]]:
    """Step and cross entropy (nats a token) up to `last_step`, means of equal stretches of steps.

    Steps after it are left out: while training goes on, a report of the same checkpoints stays the same. Raises
    `WorldError` for a damaged file.
    """
    # A step taken again after a failure stands twice; the later one is what training went on from.
    losses = {line.step: line.metrics[LOSS] for line in read_metrics(metrics_file) if LOSS in line.metrics}
    kept = sorted((step, loss) for step, loss in losses.items() if step <= last_step)
    stretch = max(1, -(-last_step // MOST_POINTS))
    points = []
    for _, some in groupby(kept, key=lambda pair: pair[0] // stretch):
        steps, values = zip(*some, strict=True)
        points.append((steps[-1], fmean(values)))
    return points
