"""The one MLflow run of a run folder: found or created, described, fed from metrics.jsonl, ended.

Every method talks to the server and raises whatever MLflow raises; all of them may be called again after a failure
and then do only what is still missing. Who calls, and what a failure means, is in `tracker` and `stage_results`.
"""

from __future__ import annotations

import json
from typing import Any

import yaml

from pipeline.console import console
from pipeline.data.manifest import MANIFEST_NAME, manifest_hash, read_manifest
from pipeline.data_read import shards_read
from pipeline.events import append_event
from pipeline.run_folder import RunFolder
from pipeline.tracking.data_sets import log_missing_inputs
from pipeline.tracking.identity import (
    EndStatus,
    Identity,
    identity_at,
    new_identity,
    read_identity,
    write_identity,
)
from pipeline.tracking.metrics_lines import MetricsLine, read_metrics
from pipeline.tracking.server import (
    DIGEST_LENGTH,
    METRICS_PER_BATCH,
    PARAMS_PER_BATCH,
    TAG_LENGTH,
    batches,
    clean_name,
    connect,
    experiment_id,
    flat,
    noted_uri,
)
from pipeline.tracking.system_metrics import SystemMetrics
from pipeline.versions import installed_versions

KEY_TAG = "adaponder.key"
ATTEMPT_TAG = "adaponder.attempt"
"""The newest attempt whose description is complete."""
STEP_METRIC = "step"
"""Sent with every step's metrics in one transaction: its newest value is the last step that the server has."""


class TrainingRun:
    """The MLflow run of one folder, seen from one process that is its only writer."""

    def __init__(self, folder: RunFolder, manifest_hash: str) -> None:
        self._folder = folder
        self._manifest_hash = manifest_hash
        self._client: Any = None
        self._run_id: str | None = None
        self._sent_step: int | None = None
        """Last step that the server has; None when it must be asked."""
        self._sent_bytes = 0
        self._system = SystemMetrics(folder)

    def open(self, attempt: int | None) -> str:
        """Find or create the run and bring its description up to date; returns its id.

        `attempt` is the number of this start of the training, None outside training (then the one noted counts).
        """
        if self._client is None:
            self._client = connect(self._folder.root)
        identity = self._claim(attempt)
        run = self._existing(identity)
        if run is None:
            if identity.run_id is not None:
                self._say("tracking_run_lost", f"MLflow run {identity.run_id} is gone: tracking goes on in a new one")
                identity = new_identity(identity.uri, identity.experiment, identity.attempt, identity.status)
                write_identity(self._folder, identity)
            run = self._client.create_run(
                experiment_id(self._client, self._folder.root, identity.experiment),
                run_name=self._folder.recipe.name,
                tags={KEY_TAG: identity.key, "mlflow.source.name": "adaponder train"},
            )
        if identity.run_id != run.info.run_id:
            write_identity(self._folder, identity.model_copy(update={"run_id": run.info.run_id}))
        if attempt is not None or run.data.tags.get(ATTEMPT_TAG) != str(identity.attempt):
            self._describe(run, identity.attempt)
        if attempt is not None:
            self._client.update_run(run.info.run_id, status="RUNNING")
        self._run_id = run.info.run_id
        return run.info.run_id

    def send_new_metrics(self) -> None:
        """Send the lines of metrics.jsonl past the last step that the server has, whole steps at a time."""
        assert self._run_id is not None, "open() comes first"
        if self._sent_step is None:
            latest = self._client.get_run(self._run_id).data.metrics.get(STEP_METRIC)
            self._sent_step = -1 if latest is None else int(latest)
        waiting: list[MetricsLine] = []
        count = 0
        for line in read_metrics(self._folder.metrics_file, self._sent_bytes):
            if line.step <= self._sent_step:
                continue
            size = len(line.metrics) + 1
            if count + size > METRICS_PER_BATCH:
                self._send(waiting)
                waiting, count = [], 0
            waiting.append(line)
            count += size
        self._send(waiting)

    def send_system_metrics(self) -> None:
        """Send the samples of every node past the last one that the server has."""
        self._system.send(self._client, self._run_id)

    def forget_progress(self) -> None:
        """After a failed call nobody knows what arrived: ask the server before sending on."""
        self._sent_step = None
        self._sent_bytes = 0
        self._system.forget_progress()

    def log_recipe(self, attempt: int) -> None:
        """The resolved recipe as an artifact, one a start of the training."""
        text = yaml.safe_dump(self._folder.recipe.resolved(), sort_keys=False, allow_unicode=True)
        self._client.log_text(self._run_id, text, f"recipe/attempt-{attempt}.yaml")

    def tag(self, name: str, text: str) -> None:
        """Set a tag of the run."""
        self._client.set_tag(self._run_id, name, text[:TAG_LENGTH])

    def end(self, status: EndStatus) -> None:
        """Set the run's final status; one that it has already keeps its end time."""
        if self._client.get_run(self._run_id).info.status != status:
            self._client.set_terminated(self._run_id, status)

    def _claim(self, attempt: int | None) -> Identity:
        """The identity noted for this store and experiment, or a new one; it is now the one tracked last."""
        uri, experiment = noted_uri(self._folder.root), self._folder.recipe.track.experiment
        last = read_identity(self._folder)
        here = identity_at(self._folder, uri, experiment)
        if last is not None and last != here:
            was, now = f"{last.uri} ({last.experiment})", f"{uri} ({experiment})"
            goes_on = "it gets a new MLflow run there" if here is None else "it goes on in its MLflow run there"
            self._say("tracking_moved", f"this run was tracked at {was}, now at {now}: {goes_on}")
        # How far training is does not depend on the store.
        status = last.status if last is not None and attempt is None else None
        attempt = attempt or (last.attempt if last else 1)
        if here is None:
            here = new_identity(uri, experiment, attempt, status)
        claimed = here.model_copy(update={"attempt": attempt, "status": status})
        if claimed != last:
            write_identity(self._folder, claimed)
        return claimed

    def _existing(self, identity: Identity) -> Any:
        from mlflow.exceptions import MlflowException

        if identity.run_id is None:
            experiment = experiment_id(self._client, self._folder.root, identity.experiment)
            found = self._client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{identity.key}'", max_results=1)
            return found[0] if found else None
        try:
            run = self._client.get_run(identity.run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return run if run.info.lifecycle_stage == "active" else None

    def _describe(self, run: Any, attempt: int) -> None:
        from mlflow.entities import Param, RunTag

        params = flat(self._folder.recipe.resolved())
        logged = run.data.params
        missing = [Param(name, value) for name, value in params.items() if name not in logged]
        # MLflow refuses to change a param; what a resumed attempt does differently stands in a tag of its own.
        changed = {name: value for name, value in params.items() if logged.get(name, value) != value}
        tags = {
            "adaponder.recipe_hash": self._folder.recipe.hash(),
            "adaponder.manifest_hash": self._manifest_hash,
            "adaponder.run_folder": str(self._folder.path),
            **{f"version.{package}": version for package, version in installed_versions().items()},
        }
        if changed:
            tags[f"recipe.changed.attempt-{attempt}"] = json.dumps(changed, ensure_ascii=False)
        tags[ATTEMPT_TAG] = str(attempt)  # last
        stale = [RunTag(name, text[:TAG_LENGTH]) for name, text in tags.items() if run.data.tags.get(name) != text]
        run_id = run.info.run_id
        for some in batches(missing, PARAMS_PER_BATCH):
            self._client.log_batch(run_id, params=some)
        digest = self._manifest_hash[:DIGEST_LENGTH]
        if all(known.dataset.digest != digest for known in run.inputs.dataset_inputs):
            self._log_data_set(run)
        for some in batches(stale, PARAMS_PER_BATCH):
            self._client.log_batch(run_id, tags=some)

    def _log_data_set(self, run: Any) -> None:
        if not (self._folder.shards / MANIFEST_NAME).is_file():
            self._folder.open_shards()  # the cache of a URL may be gone
        manifest = read_manifest(self._folder.shards)
        if manifest_hash(manifest) != self._manifest_hash:
            told = f"{self._folder.shards} holds other shards by now: MLflow gets no description of the training's"
            self._say("tracking_shards_changed", told)
            return
        log_missing_inputs(self._client, run, [shards_read(self._folder, manifest, "training")])

    def _send(self, lines: list[MetricsLine]) -> None:
        if not lines:
            return
        from mlflow.entities import Metric

        metrics = [
            Metric(clean_name(name), value, line.time_ms, line.step)
            for line in lines
            for name, value in [*line.metrics.items(), (STEP_METRIC, float(line.step))]
        ]
        for some in batches(metrics, METRICS_PER_BATCH):  # more than one only for a step of over 999 metrics
            self._client.log_batch(self._run_id, metrics=some)
        self._sent_step = lines[-1].step
        self._sent_bytes = lines[-1].end

    def _say(self, kind: str, message: str) -> None:
        console.print(f"[yellow]{message}[/yellow]", highlight=False)
        append_event(self._folder, kind, message=message)
