"""What stages after training tell MLflow: the rest of the metrics, evaluations as child runs, reports, the release.

None of it may fail a stage whose result is on disk: a server that is away is told on the console and in
events.jsonl, and the same command sends it later.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from pipeline.console import console
from pipeline.data.manifest import manifest_hash, read_manifest
from pipeline.data_read import DataRead
from pipeline.durable import sha256_file, sha256_json
from pipeline.events import append_event
from pipeline.run_folder import RunFolder
from pipeline.tracking.data_sets import log_missing_inputs
from pipeline.tracking.failures import failure_of
from pipeline.tracking.identity import only_writer, read_identity
from pipeline.tracking.registered_model import NotRegistered, send_model
from pipeline.tracking.server import (
    METRICS_PER_BATCH,
    batches,
    clean_name,
    connect,
)
from pipeline.tracking.training_run import TrainingRun

if TYPE_CHECKING:
    from pipeline.checkpoint import Checkpoint

CONTENT_TAG = "adaponder.content_sha256"
"""Hash of all that an evaluation logs: its child run is found by it, and is FINISHED when all of it arrived."""
METRICS_TAG = "adaponder.metrics_sent"
"""Set when the child run has its metrics, before its artifacts: these may be refused alone, and are tried again."""
RELEASE_TAG = "adaponder.release_sha256"
REPORT_TAG = "adaponder.report_sha256."
"""With what is reported, a checkpoint or the run: the content of the report that MLflow has."""


def sync(folder: RunFolder) -> bool:
    """Send what training could not, and how it ended; whether this was done.

    A training that is over and noted no end was killed. Where another process feeds the MLflow run, as the tracker of
    a live training does, it is left to that one.
    """
    return _told_if_away(folder, "metrics", lambda: _feed(folder) is not None)


def log_evaluation(
    folder: RunFolder,
    checkpoint: Checkpoint,
    suite: str,
    metrics: dict[str, float],
    artifacts: Path,
    reads: Sequence[DataRead] = (),
) -> bool:
    """Log an evaluation as a child of the training's run; whether MLflow has it now.

    Metrics are named eval/SUITE/NAME and stand at the checkpoint's step; the files of the folder `artifacts` become
    artifacts under SUITE/, `reads` its inputs. The same evaluation is logged once, another one of the same checkpoint
    as another child.
    """
    return _told_if_away(
        folder, f"evaluation {suite}", lambda: _log_evaluation(folder, checkpoint, suite, metrics, artifacts, reads)
    )


def log_release(folder: RunFolder, release: Path, revision: str = "main") -> bool:
    """Log the model card and the provenance as artifacts of the training's run; whether MLflow has them now.

    They stand under release/, those of another revision than main under release/revisions/REVISION/.
    """
    return _told_if_away(folder, "release", lambda: _log_release(folder, release, revision))


def register_release(folder: RunFolder, release: Path) -> bool:
    """Make it a version of the registered model that has the run's name; whether MLflow has it now."""
    return _told_if_away(folder, "registered model", lambda: _register(folder, release))


def log_report(folder: RunFolder, about: str, content: str, files: Mapping[Path, str]) -> bool:
    """Log a report as artifacts of the training's run under reports/ABOUT/; whether MLflow has them now.

    about: a checkpoint's name (its step stands in it), or "run". content: SHA-256 of what the report tells; the same is
    sent once. files: with the folder below reports/ABOUT/ that each goes to, "" for none.
    """
    return _told_if_away(folder, f"report of {about}", lambda: _log_report(folder, about, content, files))


def _feed(folder: RunFolder) -> str | None:
    """Id of the training's run, now with all metrics of metrics.jsonl; None where that is another process's task."""
    with only_writer(folder) as lock:
        noted = read_identity(folder)
        training_is_over = lock == "held" or (lock == "unsupported" and noted is not None and noted.status is not None)
        if not training_is_over:
            return None
        run = TrainingRun(folder, _manifest_hash(folder))
        run_id = run.open(None)
        run.send_new_metrics()
        run.send_system_metrics()
        # Nobody trains; if nobody said how it ended, the attempt was killed.
        run.end((noted.status if noted else None) or "KILLED")
        return run_id


def _manifest_hash(folder: RunFolder) -> str:
    """The training's own, as its newest checkpoint says: the shards may have been made anew, or their store be away."""
    from pipeline.checkpoint import has_checkpoint, newest_whole

    if has_checkpoint(folder.checkpoints):
        return newest_whole(folder.checkpoints).state.manifest_hash
    folder.open_shards()
    return manifest_hash(read_manifest(folder.shards))


def _training_run(folder: RunFolder) -> str | None:
    """Id of the training's run, fed if it is nobody else's task; None where a live training has none yet."""
    run_id = _feed(folder)
    if run_id is None:
        noted = read_identity(folder)
        run_id = noted.run_id if noted else None
    return run_id


def _log_evaluation(
    folder: RunFolder,
    checkpoint: Checkpoint,
    suite: str,
    metrics: dict[str, float],
    artifacts: Path,
    reads: Sequence[DataRead],
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
        "adaponder.save_id": checkpoint.state.save_id,
        "adaponder.recipe_hash": checkpoint.state.recipe_hash,
        "adaponder.manifest_hash": checkpoint.state.manifest_hash,
    }
    files = sorted(path for path in artifacts.iterdir() if path.is_file())
    content = sha256_json([tags, metrics, {path.name: sha256_file(path) for path in files}])
    experiment = client.get_run(parent).info.experiment_id
    found = client.search_runs([experiment], f"tags.`{CONTENT_TAG}` = '{content}'", max_results=1)
    child = (
        found[0]
        if found
        else client.create_run(experiment, run_name=f"{suite}-{checkpoint.name}", tags={**tags, CONTENT_TAG: content})
    )
    log_missing_inputs(client, child, reads)  # of a child that an older version has finished, too
    if child.info.status == "FINISHED":
        return True
    run_id = child.info.run_id
    if METRICS_TAG not in child.data.tags:
        # Of the files and not of now: what is sent a second time is the same metric to MLflow.
        time_ms = max((path.stat().st_mtime_ns for path in files), default=time.time_ns()) // 1_000_000
        entries = [
            Metric(clean_name(f"eval/{suite}/{name}"), value, time_ms, checkpoint.step)
            for name, value in metrics.items()
        ]
        for some in batches(entries, METRICS_PER_BATCH):
            client.log_batch(run_id, metrics=some)
        client.set_tag(run_id, METRICS_TAG, "all")
    for path in files:
        client.log_artifact(run_id, str(path), suite)
    client.set_terminated(run_id, "FINISHED")
    return True


def _log_release(folder: RunFolder, release: Path, revision: str) -> bool:
    run_id = _training_run(folder)
    if run_id is None:
        return False
    client = connect(folder.root)
    provenance = sha256_file(release / "provenance.json")
    main = revision == "main"
    tag = RELEASE_TAG if main else f"{RELEASE_TAG}.{revision}"
    if client.get_run(run_id).data.tags.get(tag) != provenance:
        for name in ("README.md", "provenance.json"):
            client.log_artifact(run_id, str(release / name), "release" if main else f"release/revisions/{revision}")
        client.set_tag(run_id, tag, provenance)
    return True


def _log_report(folder: RunFolder, about: str, content: str, files: Mapping[Path, str]) -> bool:
    run_id = _training_run(folder)
    if run_id is None:
        return False
    client = connect(folder.root)
    if client.get_run(run_id).data.tags.get(REPORT_TAG + about) != content:
        for path, place in files.items():
            client.log_artifact(run_id, str(path), "/".join(part for part in ("reports", about, place) if part))
        client.set_tag(run_id, REPORT_TAG + about, content)  # last: what was cut short is sent again
    return True


def _register(folder: RunFolder, release: Path) -> bool:
    run_id = _training_run(folder)
    return run_id is not None and send_model(folder, release, run_id)


def _told_if_away(folder: RunFolder, what: str, send: Callable[[], bool]) -> bool:
    fields: dict[str, str] = {}
    try:
        if send():
            return True
        message = f"another process feeds this run's MLflow run: the {what} goes to MLflow with the next call"
    except NotRegistered as error:  # told by its own process already
        message = f"{error}: the same command sends it later"
        fields = {} if error.traceback is None else {"traceback": error.traceback}
    except Exception as error:  # whatever it is, the stage's result is on disk; `failure_of` tells whose it is
        failure = failure_of(error, what, folder.root)
        message, fields = f"{failure.message}: the same command sends it later", failure.fields()
    console.print(f"[yellow]{escape(message)}[/yellow]")
    append_event(folder, "tracking_away", message=message, **fields)
    return False
