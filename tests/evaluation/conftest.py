"""One tiny run for the module: its shards and checkpoint are only read."""

import pytest
import torch

from tests.evaluation.tiny_run import make_model, make_run, write_checkpoint


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    torch.set_num_threads(1)
    return make_run(tmp_path_factory.mktemp("evaluated"))


@pytest.fixture(scope="session")
def model(run):
    return make_model(run)


@pytest.fixture(scope="session")
def checkpoint(run, model):
    return write_checkpoint(run, model)


@pytest.fixture(autouse=True)
def _own_store(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
