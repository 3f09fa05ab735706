"""The bar of the tokenize stage: bytes of the inputs, speed in text and tokens, time left."""

from __future__ import annotations

import time

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline.console import console


class TokenizeProgress:
    """Advances over the inputs' bytes as they lie on disk; speeds are means since the start."""

    def __init__(self, total_bytes: int) -> None:
        self._bar = Progress(
            TextColumn("tokenize"),
            BarColumn(),
            DownloadColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._bar.add_task("tokenize", total=total_bytes, speed="")
        self._started = time.monotonic()
        self._text_bytes = 0
        self._tokens = 0

    def __enter__(self) -> TokenizeProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.update(self._task, speed=self.speed)
        self._bar.stop()

    def advance(self, input_bytes: int) -> None:
        self._bar.advance(self._task, input_bytes)

    def count(self, text_bytes: int, tokens: int) -> None:
        """Add what was encoded since the last call."""
        self._text_bytes += text_bytes
        self._tokens += tokens
        self._bar.update(self._task, speed=self.speed)

    @property
    def speed(self) -> str:
        seconds = max(time.monotonic() - self._started, 1e-9)
        return f"{self._text_bytes / 1e6 / seconds:.2f} MB/s of text, {self._tokens / seconds:,.0f} tokens/s"
