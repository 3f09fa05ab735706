"""A program: makes a release a version of MLflow's registered model, once, and calls it `candidate`.

`python -m pipeline.tracking.register_release REQUEST`, run by `pipeline.tracking.registered_model`. REQUEST is a JSON
file with `root` (the folder of all runs), `uri`, `name`, `release`, `run_id` (the training's), `experiment_id`,
`provenance` (SHA-256 of provenance.json), `step`, `requirements`, and `report`: the JSON file that gets `version`, or
`error`, one line, and `traceback`.

What a kill leaves is found again: the logged model by its tag, so that weights are not sent twice, and the version by
its own, so that there are never two of one release.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.tracking.failures import failure_of
from pipeline.tracking.model_versions import PROVENANCE_TAG, STEP_TAG, call_candidate, version_of
from pipeline.tracking.server import import_mlflow

_PARAMS = {"max_new_tokens": 32, "greedy": True, "temperature": 1.0, "top_k": 50, "seed": 0}


def main(request_path: str) -> None:
    request = json.loads(Path(request_path).read_text(encoding="utf-8"))
    try:
        report = {"version": _register(request)}
    except Exception as error:
        failure = failure_of(error, "registered model", Path(request["root"]))
        report = {"error": failure.message, "traceback": failure.traceback}
    Path(request["report"]).write_text(json.dumps(report), encoding="utf-8")


def _register(request: dict[str, Any]) -> str:
    import_mlflow()
    import mlflow
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    mlflow.set_tracking_uri(request["uri"])
    mlflow.set_registry_uri(request["uri"])
    client = MlflowClient(request["uri"], request["uri"])
    name, provenance = request["name"], request["provenance"]
    found = version_of(client, name, provenance)
    if found is None:
        try:
            client.create_registered_model(name)
        except MlflowException:  # it is there already, or the server does not take it
            client.get_registered_model(name)
        model = _logged(client, request)
        found = client.create_model_version(
            name,
            source=model.artifact_location,
            run_id=request["run_id"],
            tags={PROVENANCE_TAG: provenance, STEP_TAG: str(request["step"])},
            description=f"Step {request['step']:,}; its provenance is in the release's provenance.json.",
            model_id=model.model_id,
        )
    call_candidate(client, found)
    return str(found.version)


def _logged(client: Any, request: dict[str, Any]) -> Any:
    """The release as a logged model of the training's run, whole; sent where it is not there yet."""
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    experiment, tag = request["experiment_id"], request["provenance"]
    for model in client.search_logged_models([experiment]):
        if model.tags.get(PROVENANCE_TAG) == tag and str(model.status) in ("READY", "LoggedModelStatus.READY"):
            return model
    signature = ModelSignature(
        inputs=Schema([ColSpec("string", "prompt")]),
        outputs=Schema([ColSpec("string", "text"), ColSpec("double", "mean_depth")]),
        params=ParamSchema(
            [
                ParamSpec(name, {int: "long", bool: "boolean", float: "double"}[type(value)], value)
                for name, value in _PARAMS.items()
            ]
        ),
    )
    import pandas

    with _staged(Path(request["release"])) as staged:
        mlflow.set_experiment(experiment_id=experiment)
        info = mlflow.pyfunc.log_model(
            name="release",
            python_model=str(Path(__file__).with_name("released_model.py")),
            artifacts={"release": str(staged)},
            signature=signature,
            input_example=(pandas.DataFrame({"prompt": ["The "]}), {"max_new_tokens": 4}),
            pip_requirements=request["requirements"],
            tags={PROVENANCE_TAG: tag, STEP_TAG: str(request["step"])},
        )
    return client.get_logged_model(info.model_id)


@contextmanager
def _staged(release: Path) -> Iterator[Path]:
    """The release without the revisions that lie below it, as links of the same files where the disk allows that."""
    scratch = release.with_name(release.name + ".registering")  # on the same disk; one name, so that none is left
    shutil.rmtree(scratch, ignore_errors=True)
    staged = scratch / "release"
    staged.mkdir(parents=True)
    try:
        for path in release.iterdir():
            if path.is_file():
                try:  # no symbolic ones: MLflow refuses them
                    os.link(path, staged / path.name)
                except OSError:
                    shutil.copyfile(path, staged / path.name)
        yield staged
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main(sys.argv[1])
