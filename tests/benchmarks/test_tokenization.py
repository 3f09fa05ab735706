"""The sides of the benchmark of tokenization do what they are timed for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from benchmarks.tokenization import END, _encoder_seconds, _raw_seconds, _recipe, _stage_seconds, _texts
from pipeline.data.manifest import read_manifest
from tests.tokenization.generated_records import generated_texts, record_lines
from tokenization.encoding.tokenizer import save_tokenizer, train_tokenizer


@pytest.mark.slow
def test_each_side_runs(tmp_path: Path) -> None:
    texts = generated_texts(300)
    (tmp_path / "x.jsonl").write_bytes(record_lines(texts))
    found, text_bytes = _texts([tmp_path / "x.jsonl"])
    assert found == texts
    assert text_bytes == len("".join(texts).encode())
    save_tokenizer(*train_tokenizer(texts, 400, END), tmp_path / "tokenizer")
    (tmp_path / "sample.json").write_text(json.dumps(texts))
    tokenizer = tmp_path / "tokenizer" / "tokenizer.json"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(_recipe([str(tmp_path / "x.jsonl")], tokenizer)))
    assert 0 < _raw_seconds(tokenizer, tmp_path / "sample.json") < 30
    for count in (1, 2):
        assert 0 < _encoder_seconds(tmp_path / "tokenizer", tmp_path / "sample.json", count) < 30
    assert 0 < _stage_seconds(recipe, tmp_path / "runs", 2) < 60
    manifest = read_manifest(tmp_path / "runs" / "benchmark" / "shards")
    assert sum(split.documents for split in manifest.splits.values()) == len(texts)
