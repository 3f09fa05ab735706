"""What MLflow accepts, what must never be printed, and a store that is made whole or not at all."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.utils.validation import _validate_metric_name, _validate_param

from pipeline.tracking.server import batches, clean_name, flat, reason, tracking_uri, without_secrets


def test_the_default_store_lies_in_the_folder_of_all_runs(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(Path("/data/runs")) == "sqlite:////data/runs/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert tracking_uri(Path("/data/runs")) == "http://tracking:5000"


@pytest.mark.parametrize("uri", ["https://ada:s3cret@host:5000/x", "postgresql://ada:s3c@ret@host/db"])
def test_no_user_and_no_password_is_told(uri):
    told = reason(RuntimeError(f"API request to {uri} failed\nsecond line"))
    assert "host" in told
    assert "s3c" not in told
    assert "ada" not in told


@pytest.mark.parametrize(
    "uri",
    [
        "mysql://host/mlflow?user=ada&password=s3cret",
        "https://host/api?token=s3cret",
        "mssql+pyodbc:///?odbc_connect=DRIVER%3DSQL;UID=ada;PWD=s3cret",
        "postgresql://ada:s3/cret@host/db",
        "postgresql://ada:x?s3cret@host/db",
        "https://ada:a@s3cret@host:5000/x?token=s3cret",
        "/api/2.0/mlflow/runs/get?run_id=ada&key=s3cret",
    ],
)
def test_no_password_hides_from_being_hidden(uri):
    told = without_secrets(f"no answer from '{uri}' (refused)")
    assert told.startswith("no answer from ")
    assert told.endswith(" (refused)")
    assert "s3" not in told
    assert "cret" not in told
    assert "ada" not in told


@pytest.mark.parametrize(
    "text", ["sqlite:////data/runs/mlflow.db", "sqlite:////home/ada@site/mlflow.db", "what? a = b"]
)
def test_what_is_no_secret_is_told(text):
    assert without_secrets(text) == text


@given(st.text(min_size=1, max_size=300))
@settings(max_examples=50, deadline=None)
def test_every_cleaned_name_is_one_that_mlflow_takes(name):
    _validate_metric_name("eval/" + clean_name(name)[:200] + "x")


names = st.text(alphabet="abcdefgh_", min_size=1, max_size=8)
trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(names, trees, min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_every_leaf_becomes_one_param_that_mlflow_takes(tree):
    def leaves(node):
        children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else []
        return sum(map(leaves, children)) or 1

    params = flat(tree)
    assert len(params) == leaves(tree)
    for name, value in params.items():
        _validate_param(name, value)


def test_long_values_are_cut_to_what_mlflow_takes():
    assert len(flat({"a": "x" * 10_000})["a"]) == 6000


@given(st.lists(st.integers()), st.integers(min_value=1, max_value=7))
@settings(max_examples=30, deadline=None)
def test_batches_keep_order_and_size(items, size):
    made = list(batches(items, size))
    assert [item for batch in made for item in batch] == items
    assert all(0 < len(batch) <= size for batch in made)


CONNECT = """
import sys
from pathlib import Path
from pipeline.tracking.server import connect, experiment_id
print(experiment_id(connect(Path(sys.argv[1])), Path(sys.argv[1]), "adaponder"))
"""


@pytest.mark.slow
def test_killed_while_the_store_is_made_and_made_again_by_two_at_once(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    command = [sys.executable, "-c", CONNECT, str(tmp_path)]
    for seconds in (0.1, 0.6, 1.0):  # MLflow makes some hundred tables and changes, one after the other
        killed = subprocess.Popen(command, env=environment, cwd=tmp_path)
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("mlflow.db*")):
            assert killed.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(seconds)
        killed.kill()
        killed.wait()
        if (tmp_path / "mlflow.db").exists():  # a quick machine
            break
    both = [
        subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    assert [process.communicate(timeout=60)[0] for process in both] == ["1\n", "1\n"]
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]
