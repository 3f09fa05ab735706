"""Real watchers in processes of their own, and what they left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import yaml
from mlflow.tracking import MlflowClient

from pipeline.run_folder import RunFolder
from pipeline.tracking import tracking_uri


def written_recipe(folder: RunFolder) -> Path:
    """The run's recipe in a file, as an operator has it."""
    path = folder.root / f"watched-{folder.recipe.name}.yaml"
    if not path.exists():
        path.write_text(yaml.safe_dump(folder.recipe.resolved()), encoding="utf-8")
    return path


def environment() -> dict[str, str]:
    """Of a command on the CPU whose MLflow is the store beside the runs."""
    hidden = {"MLFLOW_TRACKING_URI", "ADAPONDER_RUNS", "RANK", "WORLD_SIZE"}
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return {**kept, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "COLUMNS": "300", "OMP_NUM_THREADS": "1"}


def start_watcher(folder: RunFolder, *options: str) -> subprocess.Popen:
    """`adaponder watch` on the run."""
    return start(folder, "watch", *options)


def start(folder: RunFolder, command: str, *options: str, **variables: str) -> subprocess.Popen:
    """`adaponder COMMAND` on the run; variables: of its environment."""
    recipe = written_recipe(folder)
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", command, str(recipe), "--runs", str(folder.root), *options],
        env=environment() | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen, timeout: float = 400) -> tuple[int, str]:
    """Exit code and all that was said."""
    try:
        said, _ = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, said


def events_of(folder: RunFolder, kind: str) -> list[dict[str, Any]]:
    lines = folder.events_file.read_text().splitlines() if folder.events_file.exists() else []
    return [event for event in map(json.loads, lines) if event["kind"] == kind]


def judged(folder: RunFolder) -> set[tuple[str, str]]:
    """(checkpoint, suite) of all results on disk."""
    found = (folder.path / "evaluation").glob("step-*/*/metrics.json")
    return {(path.parent.parent.name, path.parent.name) for path in found}


def in_mlflow(folder: RunFolder) -> list[tuple[int, str, str]]:
    """(step, suite, status) of every evaluation that MLflow has, sorted."""
    client = MlflowClient(tracking_uri(folder.root))
    runs = [run for one in client.search_experiments() for run in client.search_runs([one.experiment_id])]
    children = [run for run in runs if "adaponder.suite" in run.data.tags]
    assert len({run.data.tags["mlflow.parentRunId"] for run in children}) <= 1
    return sorted(
        (int(run.data.tags["adaponder.step"]), run.data.tags["adaponder.suite"], run.info.status) for run in children
    )


def watchers_beside(command: subprocess.Popen) -> list[psutil.Process]:
    """The watchers that a training's command has as children."""
    found = []
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(command.pid).children():
            with suppress(psutil.NoSuchProcess):
                if "watch" in child.cmdline():
                    found.append(child)
    return found


def leftovers(folder: RunFolder) -> list[Path]:
    """Half-made things that no result should leave."""
    below = folder.path / "evaluation"
    return [path for path in below.rglob("*") if path.name.endswith((".partial", ".old"))]


def note_results(run: RunFolder, written: dict[Path, set[int]], seconds: float) -> None:
    """Look at all results for so long; each new content of one is another entry."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for path in (run.path / "evaluation").glob("step-*/*/metrics.json"):
            if "." in path.parent.name:  # not under its own name yet
                continue
            try:
                written.setdefault(path, set()).add(path.stat().st_mtime_ns)
            except FileNotFoundError:
                continue
        time.sleep(0.05)
