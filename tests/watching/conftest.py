"""A run with real shards whose checkpoints are written here, a copy for each test."""

import pytest

from tests.evaluation.tiny_run import copy_run, make_model, make_run


@pytest.fixture(scope="session")
def tokenized(tmp_path_factory):
    return make_run(
        tmp_path_factory.mktemp("watched"),
        evaluate={
            "rows_per_source": 2,
            "suites": ["validation"],
            "full_suites": ["depth"],
            "full_every": 2,
            "depth": {"rows_per_source": 2},
            "jobs": {"poll_seconds": 0.2},
        },
    )


@pytest.fixture
def run(tokenized, tmp_path, monkeypatch):
    """The run's folder without checkpoints, in a folder of runs of its own."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return copy_run(tokenized, tmp_path / "runs")


@pytest.fixture(scope="session")
def model(tokenized):
    return make_model(tokenized)
