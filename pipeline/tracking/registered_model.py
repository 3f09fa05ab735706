"""A release becomes a version of the registered model, by a process of its own.

MLflow runs the model on its input example before it takes it, and copies the weights: that happens away from the stage,
with patience of its own, and nothing of it stays in this process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from pipeline.console import console
from pipeline.durable import sha256_file
from pipeline.errors import WorldError
from pipeline.run_folder import RunFolder
from pipeline.tracking.model_versions import call_candidate, version_of
from pipeline.tracking.server import connect, tracking_uri

_PACKAGES = ("mlflow", "torch", "transformers", "tokenizers", "safetensors", "pandas")
_TIMEOUT_SECONDS = 3600


def send_model(folder: RunFolder, release: Path, run_id: str) -> bool:
    """Register `release` under the run's name, once for each provenance; the newest version is `candidate`.

    run_id: of the training. Raises `WorldError` when MLflow does not take it.
    """
    client = connect(folder.root)
    provenance = release / "provenance.json"
    standing = version_of(client, folder.recipe.name, sha256_file(provenance))
    if standing is not None:
        call_candidate(client, standing)
        console.print(f"release: registered model {standing.name}, version {standing.version} stands", markup=False)
        return True
    log = folder.logs / "register-model.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="adaponder-register-") as scratch:
        request, report = Path(scratch) / "request.json", Path(scratch) / "report.json"
        content = {
            "root": str(folder.root),
            "uri": tracking_uri(folder.root),
            "name": folder.recipe.name,
            "release": str(release),
            "run_id": run_id,
            "experiment_id": client.get_run(run_id).info.experiment_id,
            "provenance": sha256_file(provenance),
            "step": json.loads(provenance.read_bytes())["identity"]["step"],
            "requirements": requirements(),
            "report": str(report),
        }
        request.touch(mode=0o600)  # a URI may hold a password
        request.write_text(json.dumps(content), encoding="utf-8")
        with open(log, "wb") as file:
            try:
                subprocess.run(
                    [sys.executable, "-m", "pipeline.tracking.register_release", str(request)],
                    env=_environment(scratch),
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    timeout=_TIMEOUT_SECONDS,
                    check=False,
                )
            except subprocess.TimeoutExpired as error:
                raise WorldError(f"registering the model took more than {_TIMEOUT_SECONDS} s (see {log})") from error
        if not report.is_file():
            raise WorldError(f"the process that registers the model ended without a word (see {log})")
        found = json.loads(report.read_text(encoding="utf-8"))
    if "error" in found:
        raise NotRegistered(found["error"], found["traceback"])
    console.print(f"release: registered model {folder.recipe.name}, version {found['version']}", markup=False)
    return True


class NotRegistered(WorldError):
    """Told by the process that registers, its message whole already."""

    def __init__(self, message: str, traceback: str | None) -> None:
        super().__init__(message)
        self.traceback = traceback


def requirements() -> list[str]:
    """What a server needs, in the versions that the release was verified with; torch without a build's own mark."""
    return [f"{package}=={metadata.version(package).partition('+')[0]}" for package in _PACKAGES]


def _environment(scratch: str) -> dict[str, str]:
    # Weights are large: a try may take long, and a part that broke off is sent again.
    patient = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "300", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
    # transformers copies a release's code into HF_HOME; nothing of it shall stay.
    own = {"HF_HOME": scratch, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "MLFLOW_DISABLE_TELEMETRY": "true"}
    return {**os.environ, **patient, **own}
