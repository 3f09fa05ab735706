"""A kill -9 in the middle leaves nothing that looks finished, and the same call completes the work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.data.manifest import MANIFEST_NAME
from pipeline.durable import sha256_file
from tests.tokenization.generated_records import MakeRun, generated_texts, record_lines
from tokenization.stage import tokenize

CHILD = """
import sys
from pathlib import Path
from pipeline.recipe_reader import read_recipe
from pipeline.run_folder import RunFolder
from tokenization.stage import tokenize

recipe = read_recipe(sys.argv[1])
tokenize(recipe, RunFolder(Path(sys.argv[2]), recipe), "child")
"""


@pytest.mark.slow
def test_a_killed_run_is_made_anew(make_run: MakeRun, tmp_path: Path) -> None:
    texts = generated_texts(2500, words=300)
    (tmp_path / "x.jsonl").write_bytes(record_lines(texts))
    source = {"kind": "jsonl", "train": [str(tmp_path / "x.jsonl")], "validation_share": 0.01}
    recipe, folder = make_run([source], shard_bytes=1 << 18, seq_len=128, rows_per_chunk=32)
    folder.write_recipe()
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(folder.recipe_file), str(folder.root)])
    third_shard = folder.shards / "train-000002.tar"
    deadline = time.monotonic() + 120
    try:
        while not third_shard.exists():
            assert child.poll() is None, "the child ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.kill(child.pid, signal.SIGKILL)
    finally:
        child.kill()
    assert child.wait() == -signal.SIGKILL
    assert not (folder.shards / MANIFEST_NAME).exists()
    assert list(folder.shards.glob("*.partial"))

    manifest = tokenize(recipe, folder, "again")
    assert sum(split.documents for split in manifest.splits.values()) == len(texts)
    unbroken_recipe, unbroken = make_run([source], name="unbroken", shard_bytes=1 << 18, seq_len=128, rows_per_chunk=32)
    assert tokenize(unbroken_recipe, unbroken, "again").splits == manifest.splits
    assert {path.name for path in folder.shards.iterdir()} == {path.name for path in unbroken.shards.iterdir()}
    for split in manifest.splits.values():
        for shard in split.shards:
            assert sha256_file(folder.shards / shard.name) == shard.sha256
