"""Small recipes and inputs for the tests of tokenization."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import zstandard
from tokenizers import Tokenizer

from pipeline.recipe_reader import parse_recipe
from pipeline.run_folder import RunFolder
from tests.tokenization.generated_records import END, MakeRun, generated_texts, record_lines
from tokenization.encoding.tokenizer import train_tokenizer


@pytest.fixture(scope="session")
def small_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds a tokenizer.json of 400 entries and nothing else."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer: Tokenizer = train_tokenizer(generated_texts(100), 400, END)[0]
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def make_run(tmp_path: Path, small_tokenizer: Path) -> MakeRun:
    """make_run(sources, name=..., **tokenize settings) gives a recipe and its folder below tmp_path/runs."""

    def make(sources: list[dict[str, Any]], *, name: str = "run", seed: int = 0, shards: str = "shards", **settings):
        backbone = {
            "vocab_size": 400,
            "hidden_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "intermediate_size": 8,
        }
        content = {
            "name": name,
            "seed": seed,
            "tokenize": {
                "tokenizer": str(small_tokenizer),
                "seq_len": 16,
                "rows_per_chunk": 8,
                "sources": sources,
                **settings,
            },
            "data": {"shards": shards},
            "model": {"start": "scratch", "backbone": backbone},
            "train": {
                "micro_batch": 1,
                "global_batch": 1,
                "optimizer": {"peak_lr": 1e-3},
                "phases": [{"name": "only", "steps": 1, "halting": False}],
            },
        }
        recipe = parse_recipe(content, "of a test")
        return recipe, RunFolder(tmp_path / "runs", recipe)

    return make


@pytest.fixture
def pile_like(tmp_path: Path) -> dict[str, Any]:
    """A source with two training files and a validation file, zstandard, two sources inside."""
    compress = zstandard.ZstdCompressor().compress
    texts = generated_texts(60)
    texts[3] = f"before {END} behind, <|padding|> too"
    texts[7] = "naïve café 東京 🙂 \r\n\ttabs   and    spaces  "
    names = ("A", "Wikipedia (en)")
    (tmp_path / "train").mkdir()
    # The first file consists of two frames, as parallel compressors write them.
    (tmp_path / "train" / "00.jsonl.zst").write_bytes(
        compress(record_lines(texts[:10], names)) + compress(record_lines(texts[10:20], names))
    )
    (tmp_path / "train" / "01.jsonl.zst").write_bytes(compress(record_lines(texts[20:40], names)))
    (tmp_path / "val.jsonl.zst").write_bytes(compress(record_lines(texts[40:], names)))
    return {
        "kind": "jsonl",
        "train": [str(tmp_path / "train" / "*.jsonl.zst")],
        "validation": [str(tmp_path / "val.jsonl.zst")],
    }


@pytest.fixture
def pile_like_texts() -> dict[str, list[str]]:
    """What `pile_like` holds, by split, in reading order."""
    texts = generated_texts(60)
    texts[3] = f"before {END} behind, <|padding|> too"
    texts[7] = "naïve café 東京 🙂 \r\n\ttabs   and    spaces  "
    return {"train": texts[:40], "A": texts[40::2], "Wikipedia (en)": texts[41::2]}
