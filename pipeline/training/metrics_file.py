"""metrics.jsonl: one line a logged step, the truth that MLflow and the progress line are fed from."""

from __future__ import annotations

import json
import time
from pathlib import Path

from pipeline.durable import append_line, write_text


class MetricsFile:
    """Appends steps on rank 0. Opened at a step, it first drops what a killed attempt wrote beyond it."""

    def __init__(self, path: Path, step: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            kept = [line for line in _whole_lines(path) if json.loads(line)["step"] <= step]
            write_text(path, "".join(line + "\n" for line in kept))
        # Without a buffer: closing a file whose disk is full would try once more and hide what was said first.
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - open for the run's length, closed by __exit__

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, step: int, metrics: dict[str, float]) -> None:
        """Raises OSError naming the file when the disk refuses."""
        append_line(self._file, json.dumps({"step": step, "time": time.time(), **metrics}) + "\n")


def _whole_lines(path: Path) -> list[str]:
    """Lines that end; a killed attempt may have left half of one."""
    text = path.read_text(encoding="utf-8")
    return text[: text.rfind("\n") + 1].splitlines()
