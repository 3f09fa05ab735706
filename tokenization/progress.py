"""The bars of the tokenize stage: one for all text, one a worker; speed in text and tokens, time left."""

from __future__ import annotations

import time

from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from pipeline.console import console
from tokenization.plan import Part


class TokenizeProgress:
    """Bars over the bytes of the inputs' text, which is an estimate for compressed files; speeds since the start."""

    def __init__(self, what: str, total_bytes: int, workers: int) -> None:
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._what = what
        self._total = _Bar(self._bars, self._bars.add_task(what, total=total_bytes, speed=""))
        self._workers = workers
        self._of_workers: dict[int, WorkerProgress] = {}

    def __enter__(self) -> TokenizeProgress:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._total.refresh()
        self._bars.stop()

    def worker(self, number: int) -> WorkerProgress:
        """What worker `number` reports to."""
        if number not in self._of_workers:
            task = self._bars.add_task(f"  worker {number}", total=None, speed="", visible=self._workers > 1)
            self._of_workers[number] = WorkerProgress(self._total, _Bar(self._bars, task))
        return self._of_workers[number]

    def begins(self, number: int, part: Part | None) -> None:
        """Worker `number` starts on `part`, or has no more to do."""
        self.worker(number).begin(part)


class WorkerProgress:
    """A worker's bar, which starts again with each part, and the one of all."""

    def __init__(self, total: _Bar, own: _Bar) -> None:
        self._total = total
        self._own = own

    def begin(self, part: Part | None) -> None:
        if part is None:
            self._own.show(visible=False)
        else:
            self._own.show(description=f"  part {part.number + 1}", total=part.size, completed=0)

    def advance(self, text_bytes: int) -> None:
        self._total.advance(text_bytes)
        self._own.advance(text_bytes)

    def count(self, text_bytes: int, tokens: int) -> None:
        self._total.count(text_bytes, tokens)
        self._own.count(text_bytes, tokens)


class _Bar:
    def __init__(self, bars: Progress, task: TaskID) -> None:
        self._bars = bars
        self._task = task
        self._started = time.monotonic()
        self._text_bytes = 0
        self._tokens = 0

    def show(self, **fields: object) -> None:
        self._bars.update(self._task, **fields)  # pyright: ignore[reportArgumentType]

    def advance(self, text_bytes: int) -> None:
        self._bars.advance(self._task, text_bytes)

    def count(self, text_bytes: int, tokens: int) -> None:
        self._text_bytes += text_bytes
        self._tokens += tokens
        self.refresh()

    def refresh(self) -> None:
        seconds = max(time.monotonic() - self._started, 1e-9)
        speed = f"{self._text_bytes / 1e6 / seconds:.2f} MB/s of text, {self._tokens / seconds:,.0f} tokens/s"
        self._bars.update(self._task, speed=speed if self._text_bytes else "")
