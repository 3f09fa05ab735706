"""Reading metrics.jsonl, which training writes: one line a step, flat numbers, the truth from which MLflow is fed.

The files of system metrics are written alike: their lines are samples of a node, `step` is the number of the sample.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import WorldError

STEP = "step"
TIME = "time"
HOST = "host"


@dataclass(frozen=True)
class MetricsLine:
    """One step's metrics."""

    step: int
    time_ms: int
    """The line's `time` (seconds since 1970) in milliseconds; now, where it has none."""
    metrics: dict[str, float]
    end: int
    """Position in the file just past the line, bytes."""
    host: str | None = None
    """Where it was measured, if the line says so."""


def read_metrics(path: Path, start: int = 0) -> Iterator[MetricsLine]:
    """The complete lines from byte `start` on; one that is still being written is left for the next time.

    Raises `WorldError` naming file and byte for a complete line that is not a step's metrics.
    """
    if not path.is_file():
        return
    with open(path, "rb") as file:
        file.seek(start)
        end = start
        for raw in file:
            if not raw.endswith(b"\n"):
                return
            try:
                content = json.loads(raw)
                step = int(content.pop(STEP))
                seconds = float(content.pop(TIME, time.time()))
                host = content.pop(HOST, None)
                metrics = {name: float(value) for name, value in content.items()}
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise WorldError(f"{path} holds no step's metrics at byte {end}: {error}") from error
            end += len(raw)
            yield MetricsLine(step, int(seconds * 1000), metrics, end, host)
