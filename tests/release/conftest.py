"""One tiny run for the folder: its shards and checkpoint are only read, or put back as they were."""

import pytest
import torch

from tests.evaluation.tiny_run import make_model, make_run, write_checkpoint


@pytest.fixture(autouse=True, scope="package")
def _own_store():
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    torch.set_num_threads(1)
    return make_run(tmp_path_factory.mktemp("released"))


@pytest.fixture(scope="session")
def model(run):
    return make_model(run)


@pytest.fixture(scope="session")
def checkpoint(run, model):
    return write_checkpoint(run, model)
