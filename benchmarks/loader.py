"""Rows and tokens a second from shards on this machine's disk, on one core, and what the start of a large set costs.

    python -m benchmarks.loader

The sides read the same shards, all of them warm in memory: this loader in its three orders, stock webdataset in the
order of the shards (it knows no order of rows), and a flat file of tokens mapped into memory, in the loader's own order
of rows. Every side gives int64 inputs and labels of `--batch-rows` rows.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from webdataset.compat import WebDataset

from benchmarks.loader_start import VOCABULARY, manifest_of, simulate_shards
from benchmarks.measurement import Report, arguments, interleaved, parsed, ratios, spread
from pipeline.data.batches import TrainingBatches
from pipeline.data.manifest import Manifest, manifest_hash, read_manifest, write_manifest
from pipeline.data.order import Shuffle, row_at
from pipeline.data.rows import RowReader
from tokenization.packing import Chunk, Pieces
from tokenization.shard_writer import ShardWriter

SEED = 0


def main() -> None:
    parser = arguments("The loader against stock webdataset and a flat memory map, on one core.")
    parser.add_argument("--seq-len", type=int, default=2048, help="tokens a row predicts")
    parser.add_argument("--rows-per-chunk", type=int, default=256)
    parser.add_argument("--chunks", type=int, default=128, help="chunks of the shards that are read")
    parser.add_argument("--shard-bytes", type=int, default=32 << 20)
    parser.add_argument("--batch-rows", type=int, default=8, help="rows a batch")
    parser.add_argument("--rows", type=int, default=8192, help="rows a run reads")
    parser.add_argument("--many-shards", type=int, default=10_000, help="shards of the simulated set; 0: leave it out")
    chosen = parsed(parser)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    sizes = {
        "tokens": chosen.seq_len,
        "rows": chosen.rows,
        "batch_rows": chosen.batch_rows,
        "rows_per_chunk": chosen.rows_per_chunk,
        "chunks": chosen.chunks,
        "shard_bytes": chosen.shard_bytes,
        "many_shards": chosen.many_shards,
    }
    report = Report("loader", chosen, sizes)
    with tempfile.TemporaryDirectory(prefix="loader-") as folder:
        shards, flat = Path(folder) / "shards", Path(folder) / "flat.bin"
        make_shards(shards, flat, chosen.chunks, chosen.rows_per_chunk, chosen.seq_len, chosen.shard_bytes)
        measure(report, shards, flat, chosen.rows, chosen.batch_rows, chosen.rounds)
        if chosen.many_shards:
            simulated = Path(folder) / "simulated"
            simulate_shards(simulated, chosen.many_shards, chosen.rows_per_chunk, chosen.seq_len)
            measure_start(report, simulated, chosen.rounds)
    report.close()


def measure(report: Report, shards: Path, flat: Path, rows: int, batch_rows: int, rounds: int) -> None:
    """A line a side: rows and tokens a second, and its time over that of the loader with all rows shuffled."""
    manifest = read_manifest(shards)
    name = manifest_hash(manifest)
    steps = rows // batch_rows
    orders: tuple[Shuffle, ...] = ("rows", "chunks", "none")
    with contextlib.ExitStack() as opened:
        sides: dict[str, Callable[[], None]] = {}
        for order in orders:
            reader = opened.enter_context(RowReader(shards, manifest, "train"))
            batches = opened.enter_context(TrainingBatches(reader, SEED, name, 0, 1, batch_rows, batch_rows, order))
            # What is read ahead is waited for: it would go on in the next side's time. The next run begins with it.
            sides[f"loader, shuffle {order}"] = take(partial(loaded, batches), steps, batches.wait)
        sides["webdataset"] = take(lambda start: from_webdataset(shards, manifest, batch_rows), steps)
        sides["flat memory map, shuffle rows"] = take(
            lambda start: from_flat(flat, manifest, name, batch_rows, start), steps
        )
        read_all(shards, flat)
        seconds = interleaved(sides, rounds, "cpu")
    reference = seconds["loader, shuffle rows"]
    for side, times in seconds.items():
        report.line(
            side,
            seconds=spread(times),
            rows_per_second=spread([steps * batch_rows / one for one in times]),
            million_tokens_per_second=spread([steps * batch_rows * manifest.seq_len / one / 1e6 for one in times]),
            time_over_loader_with_rows_shuffled=spread(ratios(times, reference)),
        )


def take(
    batches: Callable[[int], Iterator[tuple[torch.Tensor, torch.Tensor]]],
    steps: int,
    settle: Callable[[], None] = lambda: None,
) -> Callable[[], None]:
    """A side: `steps` batches from where the run before ended, then `settle`."""
    taken = 0

    def run() -> None:
        nonlocal taken
        found = batches(taken)
        for _ in range(steps):
            inputs, shift_labels = next(found)
            assert inputs.dtype == shift_labels.dtype == torch.int64
        settle()
        taken += steps

    return run


def loaded(batches: TrainingBatches, start: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    while True:
        yield batches.step(start)[0]
        start += 1


def from_webdataset(shards: Path, manifest: Manifest, batch_rows: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Chunks as webdataset decodes them, cut into batches."""
    paths = [str(shards / shard.name) for shard in manifest.train.shards]
    while True:
        decoded: Any = WebDataset(paths, shardshuffle=False).decode()
        for sample in decoded:
            tokens = sample["tokens.npy"]
            for first in range(0, len(tokens) - batch_rows + 1, batch_rows):
                yield as_batch(tokens[first : first + batch_rows])


def from_flat(
    flat: Path, manifest: Manifest, name: str, batch_rows: int, start: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Rows of one file of tokens; their numbers in the loader's order, many at once as the loader has them."""
    rows, ahead = manifest.train.rows, 4096 // batch_rows * batch_rows
    tokens = np.memmap(flat, np.uint16, "r").reshape(rows, -1)
    position = start * batch_rows
    while True:
        order = row_at(np.arange(position, position + ahead), rows, SEED, name)
        for first in range(0, ahead, batch_rows):
            yield as_batch(tokens[order[first : first + batch_rows]])
        position += ahead


def as_batch(tokens: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(tokens[:, :-1].astype(np.int64)), torch.from_numpy(tokens[:, 1:].astype(np.int64))


def read_all(shards: Path, flat: Path) -> None:
    """Have all files in the kernel's memory."""
    for path in [*shards.glob("*.tar"), flat]:
        with open(path, "rb") as file:
            while file.read(1 << 24):
                pass


def make_shards(shards: Path, flat: Path, chunks: int, rows_per_chunk: int, seq_len: int, shard_bytes: int) -> None:
    """Random tokens as shards, and the same in one flat file."""
    generator = np.random.default_rng(SEED)
    with ShardWriter(shards, "train", shard_bytes) as writer, open(flat, "wb") as file:
        for _ in range(chunks):
            tokens = generator.integers(0, VOCABULARY, (rows_per_chunk, seq_len + 1)).astype(np.uint16)
            writer.write(Chunk(tokens, Pieces(), 0))
            file.write(tokens.tobytes())
    write_manifest(shards, manifest_of(writer.shards, seq_len))


def measure_start(report: Report, folder: Path, rounds: int) -> None:
    """Seconds to the first batch and memory after it, and after a row of every shard; a fresh process each."""
    found = []
    for _ in range(rounds):
        command = [sys.executable, "-m", "benchmarks.loader_start", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent)
        found.append(json.loads(done.stdout))
    figures = {name: spread([one[name] for one in found]) for name in found[0]}
    report.line("start of many shards", **figures, bound_start_seconds=2.0, bound_memory_bytes=200e6)


if __name__ == "__main__":
    main()
