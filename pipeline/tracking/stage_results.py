"""What stages after training tell MLflow: the rest of the metrics, evaluations as child runs, the release.

None of it may fail a stage whose result is on disk: a server that is away is told on the console and in
events.jsonl, and the same command sends it later.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from pipeline.console import console
from pipeline.data.manifest import manifest_hash
from pipeline.durable import sha256_file, sha256_json
from pipeline.events import append_event
from pipeline.run_folder import RunFolder
from pipeline.tracking.identity import only_writer, read_identity
from pipeline.tracking.server import (
    METRICS_PER_BATCH,
    batches,
    clean_name,
    connect,
    reason,
    tracking_uri,
    without_secrets,
)
from pipeline.tracking.training_run import TrainingRun

if TYPE_CHECKING:
    from pipeline.checkpoint import Checkpoint

CONTENT_TAG = "adaponder.content_sha256"
"""Hash of what was logged; set last, so that it says that all of it arrived."""
RELEASE_TAG = "adaponder.release_sha256"


def sync(folder: RunFolder) -> bool:
    """Send what training could not; whether MLflow now has everything. Leaves it to the tracker of a live training."""
    return _told_if_away(folder, "metrics", lambda: _training_run(folder) is not None)


def log_evaluation(
    folder: RunFolder, checkpoint: Checkpoint, suite: str, metrics: dict[str, float], artifacts: Path
) -> bool:
    """Log an evaluation as a child of the training's run; whether MLflow has it now.

    Metrics are named eval/SUITE/NAME and stand at the checkpoint's step; the files of the folder `artifacts` become
    artifacts under SUITE/. The child is found again by its tags: the same evaluation is logged once.
    """
    return _told_if_away(
        folder, f"evaluation {suite}", lambda: _log_evaluation(folder, checkpoint, suite, metrics, artifacts)
    )


def log_release(folder: RunFolder, release: Path) -> bool:
    """Log the model card and the provenance as artifacts of the training's run; whether MLflow has them now."""
    return _told_if_away(folder, "release", lambda: _log_release(folder, release))


def _training_run(folder: RunFolder) -> str | None:
    """Id of the training's run with all metrics of metrics.jsonl in it; None when only a live training may say."""
    with only_writer(folder) as alone:
        if not alone:
            noted = read_identity(folder)
            return noted.run_id if noted else None
        run = TrainingRun(folder, manifest_hash(folder.shards))
        run_id = run.open(None)
        run.send_new_metrics()
        noted = read_identity(folder)
        assert noted is not None, "open() wrote it"
        # Nobody trains, and nobody said how it ended: the attempt was killed.
        run.end(noted.status or "KILLED")
        return run_id


def _log_evaluation(
    folder: RunFolder, checkpoint: Checkpoint, suite: str, metrics: dict[str, float], artifacts: Path
) -> bool:
    from mlflow.entities import Metric

    parent = _training_run(folder)
    if parent is None:
        return False
    client = connect(folder.root)
    tags = {
        "mlflow.parentRunId": parent,
        "adaponder.suite": suite,
        "adaponder.step": str(checkpoint.step),
        "adaponder.recipe_hash": checkpoint.state.recipe_hash,
        "adaponder.manifest_hash": checkpoint.state.manifest_hash,
    }
    files = sorted(path for path in artifacts.iterdir() if path.is_file())
    content = sha256_json([metrics, {path.name: sha256_file(path) for path in files}])
    experiment = client.get_run(parent).info.experiment_id
    wanted = " and ".join(f"tags.`{name}` = '{value}'" for name, value in list(tags.items())[:3])
    found = client.search_runs([experiment], wanted, max_results=1)
    child = found[0] if found else client.create_run(experiment, run_name=f"{suite}-{checkpoint.name}", tags=tags)
    if child.data.tags.get(CONTENT_TAG) == content:
        return True
    run_id = child.info.run_id
    now = int(time.time() * 1000)
    entries = [
        Metric(clean_name(f"eval/{suite}/{name}"), value, now, checkpoint.step) for name, value in metrics.items()
    ]
    for some in batches(entries, METRICS_PER_BATCH):
        client.log_batch(run_id, metrics=some)
    for path in files:
        client.log_artifact(run_id, str(path), suite)
    client.set_tag(run_id, CONTENT_TAG, content)
    client.set_terminated(run_id, "FINISHED")
    return True


def _log_release(folder: RunFolder, release: Path) -> bool:
    run_id = _training_run(folder)
    if run_id is None:
        return False
    client = connect(folder.root)
    provenance = sha256_file(release / "provenance.json")
    if client.get_run(run_id).data.tags.get(RELEASE_TAG) != provenance:
        for name in ("README.md", "provenance.json"):
            client.log_artifact(run_id, str(release / name), "release")
        client.set_tag(run_id, RELEASE_TAG, provenance)
    return True


def _told_if_away(folder: RunFolder, what: str, send: Callable[[], Any]) -> bool:
    try:
        if send():
            return True
        message = f"the training's tracker has no MLflow run yet: the {what} goes to MLflow with the next call"
    except Exception as error:  # MLflow raises its own, requests', SQLAlchemy's and the artifact store's errors
        where = without_secrets(tracking_uri(folder.root))
        message = f"MLflow at {where} did not take the {what} ({reason(error)}): the same command sends it later"
    console.print(f"[yellow]{escape(message)}[/yellow]")
    append_event(folder, "tracking_away", message=message)
    return False
