"""The progress line of a training: live on a terminal, a line now and then in a log file."""

from __future__ import annotations

import time

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline.console import console

_SECONDS_BETWEEN_LINES = 10.0


class TrainingProgress:
    """Rank 0's progress: step, loss, perplexity, mean depth, tokens/s, MFU where the chip is known, ETA."""

    def __init__(self, first_step: int, total_steps: int, max_passes: int) -> None:
        self._first, self._total, self._passes = first_step, total_steps, max_passes
        self._began = self._printed = time.monotonic()
        self._live: Progress | None = None
        if console.is_terminal:
            self._live = Progress(
                TextColumn("train"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[shown]}"),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                console=console,
            )
            self._task = self._live.add_task("train", total=total_steps, completed=first_step, shown="")

    def __enter__(self) -> TrainingProgress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, step: int, metrics: dict[str, float]) -> None:
        shown = (
            f"loss {metrics['train/loss']:.3f}  ppl {metrics['train/perplexity']:.1f}  "
            f"depth {metrics['depth/mean']:.2f}/{self._passes}  {metrics['speed/tokens_per_second']:,.0f} tok/s"
        )
        if "speed/mfu" in metrics:
            shown += f"  MFU {metrics['speed/mfu']:.1%}"
        if self._live is not None:
            self._live.update(self._task, completed=step, shown=shown)
            return
        now = time.monotonic()
        if step == self._total or step == self._first + 1 or now - self._printed >= _SECONDS_BETWEEN_LINES:
            self._printed = now
            left = (now - self._began) / (step - self._first) * (self._total - step)
            console.print(f"step {step}/{self._total}  {shown}  ETA {left:.0f} s")
