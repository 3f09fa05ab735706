"""A run folder with shards, and one migrated sqlite store for all tests: a fresh one takes MLflow two seconds."""

import json
import shutil
from pathlib import Path

import pytest

from pipeline.data.manifest import (
    Manifest,
    SourceCount,
    SplitEntry,
    TokenizerEntry,
    manifest_hash,
    read_manifest,
    write_manifest,
)
from pipeline.recipe_reader import read_recipe
from pipeline.run_folder import RunFolder
from pipeline.tracking.server import connect


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    root = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        connect(root).search_experiments()
    return root / "mlflow.db"


@pytest.fixture
def make_folder(tmp_path, empty_store, monkeypatch):
    """A function that gives the run folder of a recipe with overrides; all share one store."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)  # where MLflow would leave ./mlruns
    root = tmp_path / "runs"
    root.mkdir()
    shutil.copy(empty_store, root / "mlflow.db")

    def make(*overrides: str) -> RunFolder:
        folder = RunFolder(root, read_recipe("quickstart", ["name=tracked", *overrides]))
        folder.shards.mkdir(parents=True, exist_ok=True)
        write_manifest(folder.shards, _manifest())
        return folder

    return make


@pytest.fixture
def folder(make_folder):
    return make_folder()


@pytest.fixture
def manifest(folder):
    """The hash of the folder's manifest."""
    return manifest_hash(read_manifest(folder.shards))


@pytest.fixture
def take_steps(folder):
    """A function that writes the metrics of some steps as training does."""

    def take(*steps: int) -> None:
        write_steps(folder.metrics_file, *steps)

    return take


def write_steps(path: Path, *steps: int) -> None:
    with open(path, "a", encoding="utf-8") as file:
        for step in steps:
            file.write(json.dumps({"step": step, "train/loss": 10.0 - step, "depth/mean": 3.0}) + "\n")


def _manifest() -> Manifest:
    count = {"text": SourceCount(documents=3, tokens=900, text_bytes=3600)}
    shared = {"rows": 7, "padding_tokens": 3, "sources": count, "shards": []}
    return Manifest(
        tokenizer=TokenizerEntry(name="t", sha256="0" * 64, vocab_size=300, end_of_document_id=0),
        seq_len=128,
        token_dtype="uint16",
        splits={
            "train": SplitEntry(split="train", source=None, **shared),
            "validation-text": SplitEntry(split="validation", source="text", **shared),
        },
        rejected={},
        inputs=[],
        settings_sha256="0" * 64,
        command="adaponder tokenize",
        version="0.1.0",
    )
