"""Micro-batches of a rank: the right rows, read ahead, with errors where they belong."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.data.batches import TrainingBatches
from pipeline.data.order import row_at
from pipeline.data.rows import RowReader
from pipeline.errors import UserError, WorldError
from tests.data.random_shards import MakeShards

SEED, HASH = 5, "cd" * 32
CHUNK_ROWS = 8


@pytest.fixture
def make_shards_once(make_shards: MakeShards):
    """41 rows in six chunks, the last of one row, in several shards; the same for all examples of a test."""
    found = make_shards(tokens=690, rows_per_chunk=CHUNK_ROWS, shard_bytes=5000)
    assert len(found[2]) == 41
    assert len(found[1].train.shards) > 2
    return found


def global_batch_rows(batches_of_ranks: list[list], micro_batch: int) -> np.ndarray:
    """Inputs of a global batch in the order of its positions, from what each rank saw."""
    in_order = [batch[0] for accumulation in zip(*batches_of_ranks, strict=True) for batch in accumulation]
    assert all(len(inputs) == micro_batch for inputs in in_order)
    return torch.cat(in_order).numpy()


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_number_of_ranks_sees_the_global_batches_of_the_order(make_shards: MakeShards, world_size: int) -> None:
    folder, manifest, expected = make_shards(tokens=700)
    micro_batch, global_batch = 2, 12
    readers = [RowReader(folder, manifest, "train") for _ in range(world_size)]
    ranks = [
        TrainingBatches(reader, SEED, HASH, rank, world_size, micro_batch, global_batch)
        for rank, reader in enumerate(readers)
    ]
    try:
        # Ten steps go over the rows more than twice; step 40 is a resumed run's.
        for step in (*range(10), 40, 41):
            positions = np.arange(step * global_batch, (step + 1) * global_batch)
            wanted = expected[row_at(positions, len(expected), SEED, HASH)][:, :-1]
            found = global_batch_rows([rank.step(step) for rank in ranks], micro_batch)
            np.testing.assert_array_equal(found, wanted)
    finally:
        for batches, reader in zip(ranks, readers, strict=True):
            batches.close()
            reader.close()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    micro_batch=st.integers(1, 3),
    accumulation=st.integers(1, 2),
    shuffle=st.sampled_from(["rows", "chunks", "none"]),
    seed=st.integers(0, 2**32),
    worlds=st.lists(st.sampled_from([1, 2, 3, 6]), min_size=1, max_size=5),
    lengths=st.lists(st.integers(0, 5), min_size=5, max_size=5),
)
def test_a_run_broken_off_and_continued_on_other_ranks_sees_the_rows_of_an_unbroken_one(
    make_shards_once, micro_batch: int, accumulation: int, shuffle, seed: int, worlds: list[int], lengths: list[int]
) -> None:
    folder, manifest, expected = make_shards_once
    global_batch = micro_batch * accumulation * 6  # what 1, 2, 3 and 6 ranks divide
    seen, step = [], 0
    for world_size, length in zip(worlds, lengths, strict=False):  # each is a process that is killed after its steps
        readers = [RowReader(folder, manifest, "train") for _ in range(world_size)]
        ranks = [
            TrainingBatches(reader, seed, HASH, rank, world_size, micro_batch, global_batch, shuffle)
            for rank, reader in enumerate(readers)
        ]
        for _ in range(length):
            seen.append(global_batch_rows([rank.step(step) for rank in ranks], micro_batch))
            step += 1
        for batches, reader in zip(ranks, readers, strict=True):
            batches.close()
            reader.close()
    rows = len(expected)
    found = np.concatenate(seen) if seen else np.empty((0, manifest.seq_len))
    order = row_at(np.arange(step * global_batch), rows, seed, HASH, shuffle, CHUNK_ROWS)
    np.testing.assert_array_equal(found, expected[order][:, :-1])
    for epoch in range(len(found) // rows):
        of_epoch = found[epoch * rows : (epoch + 1) * rows]
        assert sorted(map(tuple, of_epoch.tolist())) == sorted(map(tuple, expected[:, :-1].tolist()))


def test_the_same_step_can_be_asked_for_again(make_shards: MakeShards) -> None:
    folder, manifest, _ = make_shards(tokens=700)
    with RowReader(folder, manifest, "train") as reader, TrainingBatches(reader, SEED, HASH, 0, 1, 2, 4) as batches:
        first, again = batches.step(3), batches.step(3)
        for before, after in zip(first, again, strict=True):
            assert torch.equal(before[0], after[0])
            assert torch.equal(before[1], after[1])


def test_a_damaged_chunk_is_raised_with_the_step_that_needs_it(make_shards: MakeShards) -> None:
    folder, manifest, expected = make_shards(tokens=2000, rows_per_chunk=1, shard_bytes=1 << 20)
    order = row_at(np.arange(len(expected)), len(expected), SEED, HASH)
    damaged_step = next(step for step in range(2, len(order)) if order[step] != 0)
    path = folder / manifest.train.shards[0].name
    content = bytearray(path.read_bytes())
    place = -1
    for _ in range(int(order[damaged_step]) + 1):
        place = content.index(b"\x93NUMPY", place + 1)
    content[place : place + 6] = b"damage"
    path.write_bytes(content)
    with RowReader(folder, manifest, "train") as reader, TrainingBatches(reader, SEED, HASH, 0, 1, 1, 1) as batches:
        for step in range(damaged_step):
            assert len(batches.step(step)) == 1
        # The first error ends the reading.
        for step in (damaged_step, damaged_step, damaged_step + 1, damaged_step + 1000):
            with pytest.raises(WorldError, match=r"train-000000\.tar is damaged: tokens of chunk"):
                batches.step(step)


def test_a_bug_met_while_reading_ahead_is_raised_and_hangs_nobody(make_shards: MakeShards) -> None:
    folder, manifest, _ = make_shards(tokens=700)
    with RowReader(folder, manifest, "train") as reader, TrainingBatches(reader, SEED, HASH, 0, 1, 2, 4) as batches:
        for _ in range(2):
            with pytest.raises(ValueError, match="must not be negative"):
                batches.step(-1000)
    with pytest.raises(RuntimeError, match="closed"):
        batches.step(0)


def test_closing_ends_the_thread(make_shards: MakeShards) -> None:
    folder, manifest, _ = make_shards(tokens=700)
    with RowReader(folder, manifest, "train") as reader:
        with TrainingBatches(reader, SEED, HASH, 0, 1, 2, 4) as batches:
            batches.step(0)
            assert any(thread.name.startswith("batches") for thread in threading.enumerate())
        assert not any(thread.name.startswith("batches") for thread in threading.enumerate())


def test_a_global_batch_that_does_not_divide_is_refused(make_shards: MakeShards) -> None:
    folder, manifest, _ = make_shards(tokens=700)
    with RowReader(folder, manifest, "train") as reader, pytest.raises(UserError, match="not divisible"):
        TrainingBatches(reader, SEED, HASH, 0, 2, 3, 16)
