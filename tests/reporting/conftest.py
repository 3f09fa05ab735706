"""A tiny run with two evaluated checkpoints and a source whose name would like to be markup; it is only read."""

import copy
import json

import pytest
import torch

from pipeline.evaluation.stage import evaluate_suites
from pipeline.reporting.stage import report
from tests.evaluation.tiny_run import make_model, make_run, write_checkpoint

HOSTILE = "</td><script>alert(1)</script><img src=x onerror=alert(2)> | **bold** \"'&amp; $_{$"


@pytest.fixture(autouse=True, scope="session")
def _own_store():
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("reported")
    sources = [
        {"kind": "text", "name": name, "path": str(root / folder), "validation_share": share}
        for name, folder, share in ((HOSTILE, "words", 0.1), ("more words", "more", 0.3))
    ]
    made = make_run(
        root,
        tokenize={"sources": sources},
        evaluate={"rows_per_source": 8, "sample_prompt": "</p><script>alert(3)</script> `", "sample_tokens": 8},
    )
    model = make_model(made)
    for step, factor in ((10, 0.2), (20, 1.0)):
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.lm_head.weight.mul_(factor)
        write_checkpoint(made, other, step)
    lines = ({"step": step, "time": step, "train/ce_loss": 6 - step / 50} for step in range(1, 21))
    made.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return made


@pytest.fixture(scope="session")
def reported(run):
    """Both checkpoints by loss and depth; both reports."""
    for name in ("step-00000010", "step-00000020"):
        evaluate_suites(run.recipe, run, name, ["validation", "depth"])
    report(run.recipe, run)
    return run
