"""A run's inputs in MLflow: which data sets it has read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pipeline.data_read import DataRead
from pipeline.tracking.server import DIGEST_LENGTH, INPUT_TAG_LENGTH, without_secrets

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_INPUTS_AT_ONCE = 100


def log_missing_inputs(client: MlflowClient, run: Any, reads: Iterable[DataRead]) -> None:
    """Log what of `reads` the run, as MLflow gave it, does not have yet."""
    known = {(each.dataset.name, each.dataset.digest) for each in run.inputs.dataset_inputs} if run.inputs else set()
    missing = [read for read in reads if (read.name, read.digest[:DIGEST_LENGTH]) not in known]
    for first in range(0, len(missing), _INPUTS_AT_ONCE):
        some = [_input(read) for read in missing[first : first + _INPUTS_AT_ONCE]]
        client.log_inputs(run.info.run_id, some)


def _input(read: DataRead) -> Any:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=read.name,
        digest=read.digest[:DIGEST_LENGTH],
        source_type=read.source_type,
        source=json.dumps({name: without_secrets(str(value)) for name, value in read.source.items()}),
        profile=json.dumps(read.profile),
    )
    tags = {"mlflow.data.context": read.context, **read.tags}
    return DatasetInput(dataset, [InputTag(key, value[:INPUT_TAG_LENGTH]) for key, value in tags.items()])
