"""The system metrics of a training's nodes on their way to MLflow: each sample once, whatever was sent before.

Every node appends to a file of its own in the run's logs (`node_monitor`); who feeds the MLflow run sends them, named
system/node_0/cpu_utilization_percentage, with the time at which they were measured. That works as for the steps of
metrics.jsonl: the server keeps the number of the last sample that it has, in the same request as the sample.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.markup import escape

from pipeline.console import console
from pipeline.errors import WorldError
from pipeline.events import append_event
from pipeline.run_folder import RunFolder
from pipeline.tracking.metrics_lines import MetricsLine, read_metrics
from pipeline.tracking.server import METRICS_PER_BATCH, clean_name

SAMPLE_METRIC = "sample"
HOST_TAG = "adaponder.host."
"""With the node: where it ran last."""
_FILE_NAME = re.compile(r"system-node-(\d+)\.jsonl")


@dataclass
class _Sent:
    """How far the server has a node's file."""

    sample: int
    end: int = 0
    """Bytes."""
    host: str | None = None


@dataclass
class _Request:
    """Samples of one node that go out together."""

    metrics: list[Any] = field(default_factory=list)
    last: MetricsLine | None = None


class SystemMetrics:
    """Sends what the nodes of a run's folder have measured."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._sent: dict[str, _Sent] = {}
        self._damaged: set[Path] = set()

    def send(self, client: Any, run_id: str | None) -> None:
        """Send the samples past the last one that the server has, whole samples at a time.

        A damaged file is told, and left alone from there on: the other nodes and the training's metrics go on.
        """
        for node, path in self._files():
            if node not in self._sent:
                latest = client.get_run(run_id).data.metrics.get(f"system/{node}/{SAMPLE_METRIC}")
                self._sent[node] = _Sent(0 if latest is None else int(latest))
            try:
                self._send_node(client, run_id, node, path, self._sent[node])
            except WorldError as error:
                self._damaged.add(path)
                message = f"{error}: MLflow gets no more system metrics of {node}"
                console.print(f"[yellow]{escape(message)}[/yellow]", highlight=False)
                append_event(self._folder, "system_metrics_damaged", message=message)

    def forget_progress(self) -> None:
        """After a failed call nobody knows what arrived: ask the server before sending on."""
        self._sent.clear()

    def _files(self) -> Iterator[tuple[str, Path]]:
        for path in sorted(self._folder.logs.glob("system-node-*.jsonl")):
            match = _FILE_NAME.fullmatch(path.name)
            if match and path not in self._damaged:
                yield f"node_{int(match[1])}", path

    def _send_node(self, client: Any, run_id: str | None, node: str, path: Path, sent: _Sent) -> None:
        if path.stat().st_size <= sent.end:
            return
        from mlflow.entities import Metric

        request = _Request()
        for line in read_metrics(path, sent.end):
            if line.step <= sent.sample:
                continue
            values = [*line.metrics.items(), (SAMPLE_METRIC, float(line.step))]
            if len(request.metrics) + len(values) > METRICS_PER_BATCH:
                self._request(client, run_id, node, request, sent)
                request = _Request()
            request.metrics += [
                Metric(clean_name(f"system/{node}/{name}"), value, line.time_ms, line.step) for name, value in values
            ]
            request.last = line
        self._request(client, run_id, node, request, sent)

    def _request(self, client: Any, run_id: str | None, node: str, request: _Request, sent: _Sent) -> None:
        if request.last is None:
            return
        if request.last.host is not None and request.last.host != sent.host:
            client.set_tag(run_id, f"{HOST_TAG}{node}", request.last.host)
            sent.host = request.last.host
        client.log_batch(run_id, metrics=request.metrics)
        sent.sample, sent.end = request.last.step, request.last.end
