"""System metrics of the machine that this process runs on, one line a sample in a file of the run's logs.

One process a node measures, its local rank 0, with MLflow's own collectors; MLflow itself is not talked to: nodes
without a way to the server are measured too, and what cannot be sent is kept.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline.host_name import host_name
from pipeline.run_folder import RunFolder
from pipeline.tracking.metrics_lines import HOST, STEP, TIME
from pipeline.tracking.server import import_mlflow

_FIRST_SECONDS = 1.0
"""To the first sample: a processor's load is that of the time between two looks."""
_END_SECONDS = 2.0
_TAIL_BYTES = 1 << 16


class NodeMonitor:
    """Measures every `every_seconds` in a thread, from entering to leaving; 0 measures nothing.

    Never raises and never holds anything up: what cannot be measured or written is said once on stderr.
    """

    def __init__(self, folder: RunFolder, node: int | None, every_seconds: float) -> None:
        """node: its number in the training; None where another process of the machine measures it."""
        self._folder, self._node, self._every = folder, node, every_seconds
        self._said: set[str] = set()
        self._ending = threading.Event()
        # A daemon: an import or a disk that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._measure, name="node-monitor", daemon=True)

    def __enter__(self) -> NodeMonitor:
        if self._every > 0 and self._node is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join(_END_SECONDS)

    def _measure(self) -> None:
        assert self._node is not None
        path = self._folder.system_file(self._node)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            sample = last_sample(path)
            collectors = self._collectors()
        except Exception as error:  # whatever it is, training goes on
            self._say(f"no system metrics of this node: {error!r}")
            return
        pause = min(_FIRST_SECONDS, self._every)
        while not self._ending.wait(pause):
            began = time.monotonic()
            content = {STEP: sample + 1, TIME: round(time.time(), 3), HOST: host_name()}
            try:
                append_whole_line(path, json.dumps(content | self._sample(collectors)))
                sample += 1
            except OSError as error:
                self._say(f"{path}: {error.strerror or error}: system metrics are lost while that lasts")
            pause = max(0.0, self._every - (time.monotonic() - began))

    def _collectors(self) -> list[Any]:
        """Those of MLflow that work on this machine."""
        import_mlflow()
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
        from mlflow.system_metrics.metrics.rocm_monitor import ROCMMonitor

        drivers = {GPUMonitor: Path("/dev/nvidiactl"), ROCMMonitor: Path("/dev/kfd")}
        found: list[Any] = []
        for kind in (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor, ROCMMonitor):
            try:
                collector = kind()
                collector.collect_metrics()
                collector.clear_metrics()
            except Exception as error:  # no such device, its package not installed, a /proc without it
                if kind not in drivers or drivers[kind].exists():
                    self._say(f"{kind.__name__}: {error}")
            else:
                found.append(collector)
        return found

    def _sample(self, collectors: list[Any]) -> dict[str, float]:
        values: dict[str, float] = {}
        for collector in collectors:
            try:
                collector.collect_metrics()
                values |= {name: round(value, 1) for name, value in collector.aggregate_metrics().items()}
            except Exception as error:  # a device that fails must not cost the others' metrics
                self._say(f"{type(collector).__name__}: {error!r}")
            collector.clear_metrics()
        values["run_folder_available_megabytes"] = round(shutil.disk_usage(self._folder.path).free / 1e6, 1)
        return values

    def _say(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            print(f"node monitor: {message}", file=sys.stderr, flush=True)


def node_number(environment: Mapping[str, str]) -> int | None:
    """This node's number by torchrun's variables; None for all but the one process a node that measures it.

    Where a launcher says no more than RANK and LOCAL_RANK it is the rank of the node's first process.
    """
    if int(environment.get("LOCAL_RANK", 0)) != 0:
        return None
    return int(environment.get("GROUP_RANK", environment["RANK"]))


def last_sample(path: Path) -> int:
    """Number of the last sample in the file, 0 where there is none; a half line that a kill left is cut off."""
    try:
        with open(path, "rb+") as file:
            size = file.seek(0, os.SEEK_END)
            begin = max(0, size - _TAIL_BYTES)
            file.seek(begin)
            tail = file.read()
            whole = tail[: tail.rfind(b"\n") + 1]
            if len(whole) < len(tail):
                file.truncate(begin + len(whole))
    except FileNotFoundError:
        return 0
    lines = whole.splitlines()
    return int(json.loads(lines[-1])[STEP]) if lines else 0


def append_whole_line(path: Path, line: str) -> None:
    """Append `line` or nothing: what a full disk took of it is cut off again. Raises OSError."""
    data = line.encode() + b"\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        try:
            written = os.write(descriptor, data)
            if written < len(data):
                os.write(descriptor, data[written:])  # says why
        except OSError:
            os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)
