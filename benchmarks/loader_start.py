"""Opening a large set of shards: what a process of its own takes for it, in seconds and memory.

    python -m benchmarks.loader_start FOLDER

`benchmarks.loader` makes the folder and starts this; it imports nothing that would blur the figures.
"""

from __future__ import annotations

import hashlib
import io
import json
import resource
import sys
import time
from pathlib import Path

import numpy as np

from pipeline.data.batches import TrainingBatches
from pipeline.data.manifest import (
    Manifest,
    ShardEntry,
    SourceCount,
    SplitEntry,
    TokenizerEntry,
    read_manifest,
    write_manifest,
)
from pipeline.data.rows import RowReader

VOCABULARY = 50_277
BATCH_ROWS = 8


def main() -> None:
    folder = Path(sys.argv[1])
    before, began = memory_bytes(), time.perf_counter()
    manifest = read_manifest(folder)
    manifest_seconds = time.perf_counter() - began
    with (
        RowReader(folder, manifest, "train") as reader,
        TrainingBatches(reader, 0, "a", 0, 1, BATCH_ROWS, BATCH_ROWS, "none") as batches,
    ):
        batches.step(0)
        told = {
            "start_seconds": time.perf_counter() - began,
            "of_which_manifest_seconds": manifest_seconds,
            "memory_bytes_at_start": memory_bytes() - before,
        }
    with RowReader(folder, manifest, "train") as reader:
        starts = np.cumsum([0, *(shard.rows for shard in manifest.train.shards[:-1])])
        order = np.random.default_rng(0).permutation(starts)
        began = time.perf_counter()
        for first in range(0, len(order), BATCH_ROWS):
            reader.batch(order[first : first + BATCH_ROWS])
        told["first_use_of_a_shard_seconds"] = (time.perf_counter() - began) / len(order)
        told["memory_bytes_with_all_shards_used"] = memory_bytes() - before
    print(json.dumps(told))


def memory_bytes() -> int:
    """What this process has in memory just now."""
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * resource.getpagesize()


def simulate_shards(folder: Path, count: int, rows_per_chunk: int, seq_len: int, chunks: int = 56) -> None:
    """A set of `count` shards with whole indices, whose tars are holes but for the first chunk's header.

    56 chunks of 256 rows make some 300 billion tokens of 10,000 shards.
    """
    folder.mkdir()
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "<u2", "fortran_order": False, "shape": (rows_per_chunk, seq_len + 1)}
    )
    header = buffer.getvalue()
    tokens_bytes = len(header) + 2 * rows_per_chunk * (seq_len + 1)
    each = 512 + -(-tokens_bytes // 512) * 512 + 1024
    entries = []
    for number in range(count):
        stem = f"train-{number:06d}"
        lines = [f"v1.2 {chunks}"]
        with open(folder / f"{stem}.tar", "wb") as file:
            file.seek(512)
            file.write(header)
            file.truncate(chunks * each + 1024)
        for chunk in range(chunks):
            key, start = f"{stem}-{chunk:06d}", chunk * each + 512
            meta = (chunk + 1) * each - 512
            lines.append(f"tokens.npy {start} {tokens_bytes} {key}.tokens.npy meta.json {meta} 2 {key}.meta.json")
        index = ("\n".join(lines) + "\n").encode()
        (folder / f"{stem}.idx").write_bytes(index)
        entries.append(
            ShardEntry(
                name=f"{stem}.tar",
                chunks=chunks,
                rows=chunks * rows_per_chunk,
                bytes=chunks * each + 1024,
                sha256="0" * 64,
                index_sha256=hashlib.sha256(index).hexdigest(),
            )
        )
    write_manifest(folder, manifest_of(entries, seq_len))


def manifest_of(shards: list[ShardEntry], seq_len: int) -> Manifest:
    rows = sum(shard.rows for shard in shards)
    count = SourceCount(documents=1, tokens=rows * (seq_len + 1), text_bytes=1)
    train = SplitEntry(
        split="train", source=None, rows=rows, padding_tokens=0, sources={"random": count}, shards=shards
    )
    return Manifest(
        tokenizer=TokenizerEntry(name="none", sha256="", vocab_size=VOCABULARY, end_of_document_id=0),
        seq_len=seq_len,
        token_dtype="uint16",
        splits={"train": train},
        rejected={},
        inputs=[],
        settings_sha256="",
        command="",
        version="",
    )


if __name__ == "__main__":
    main()
