"""The order of the data: every row once an epoch, the same for any number of ranks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.order import Shuffle, accumulation_steps, micro_batch_positions, row_at
from pipeline.errors import UserError

seeds = st.integers(0, 2**70)
hashes = st.text("0123456789abcdef", min_size=64, max_size=64)


@settings(max_examples=80, deadline=None)
@given(
    rows=st.integers(1, 9) | st.integers(1, 3000) | st.sampled_from([16, 17, 64, 65, 256, 257, 1024, 1025]),
    epoch=st.integers(0, 3) | st.integers(0, 2**40),
    seed=seeds,
    manifest_hash=hashes,
)
def test_an_epoch_holds_every_row_once(rows: int, epoch: int, seed: int, manifest_hash: str) -> None:
    positions = epoch * rows + np.arange(rows, dtype=np.int64)
    found = row_at(positions, rows, seed, manifest_hash)
    assert found.dtype == np.int64
    assert np.array_equal(np.sort(found), np.arange(rows))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 2**45), seed=seeds, manifest_hash=hashes, start=st.integers(0, 2**50), count=st.integers(1, 40)
)
def test_a_position_gives_the_same_row_however_it_is_asked(
    rows: int, seed: int, manifest_hash: str, start: int, count: int
) -> None:
    positions = np.arange(start, start + count, dtype=np.int64)
    together = row_at(positions, rows, seed, manifest_hash)
    assert np.array_equal(together, row_at(positions, rows, seed, manifest_hash))
    assert np.array_equal(together[::-1], row_at(positions[::-1], rows, seed, manifest_hash))
    alone = [int(row_at(np.array([position]), rows, seed, manifest_hash)[0]) for position in positions]
    assert together.tolist() == alone
    assert together.min() >= 0
    assert together.max() < rows


def test_this_order_is_the_order_of_existing_checkpoints() -> None:
    """A changed order would resume a run on rows that it has already seen: these numbers must stay."""
    expected = [88, 73, 90, 20, 47, 29, 60, 42]
    assert row_at(np.arange(96, 104), 100, 1234, "ab" * 32).tolist() == expected


def test_the_order_of_chunks_is_that_of_existing_checkpoints() -> None:
    expected = [45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 70, 71, 72, 73, 74]
    assert row_at(np.arange(96, 112), 100, 1234, "ab" * 32, "chunks", 7).tolist() == expected


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(1, 40) | st.integers(1, 3000),
    chunk_rows=st.integers(1, 12) | st.sampled_from([64, 256, 5000]),
    epoch=st.integers(0, 3) | st.integers(0, 2**40),
    seed=seeds,
    manifest_hash=hashes,
)
def test_shuffled_chunks_keep_their_rows_in_order(
    rows: int, chunk_rows: int, epoch: int, seed: int, manifest_hash: str
) -> None:
    found = row_at(epoch * rows + np.arange(rows), rows, seed, manifest_hash, "chunks", chunk_rows)
    assert np.array_equal(np.sort(found), np.arange(rows))
    starts = found[found % chunk_rows == 0].tolist()
    chunks = [np.arange(start, min(start + chunk_rows, rows)) for start in starts]
    assert np.array_equal(found, np.concatenate(chunks))


def test_chunks_are_shuffled_anew_in_every_epoch_and_the_short_one_with_them() -> None:
    rows, chunk_rows = 1003, 10
    orders = row_at(np.arange(300 * rows), rows, 0, "a", "chunks", chunk_rows).reshape(300, rows)
    assert len({tuple(order.tolist()) for order in orders}) == 300
    place_of_short = np.argmax(orders == 1000, axis=1) // chunk_rows
    assert len(set(place_of_short.tolist())) > 60  # of 101 places


def test_a_batch_that_spans_epochs_is_that_of_its_positions() -> None:
    positions = np.array([[0, 12, 13], [25, 26, 99], [5, 5, 1300]])
    shuffles: tuple[Shuffle, ...] = ("rows", "chunks", "none")
    for shuffle in shuffles:
        together = row_at(positions, 13, 3, "a", shuffle, 4)
        alone = [int(row_at(np.array(place), 13, 3, "a", shuffle, 4)) for place in positions.flat]
        assert together.tolist() == np.reshape(alone, (3, 3)).tolist()
    assert row_at(positions, 13, 3, "a", "none").tolist() == (positions % 13).tolist()


def test_epochs_seeds_and_manifests_have_orders_of_their_own() -> None:
    rows = 1000
    orders = [
        row_at(np.arange(rows), rows, 0, "a"),
        row_at(np.arange(rows) + rows, rows, 0, "a"),
        row_at(np.arange(rows), rows, 1, "a"),
        row_at(np.arange(rows), rows, 0, "b"),
    ]
    for number, first in enumerate(orders):
        for second in orders[number + 1 :]:
            # Independent permutations agree in one place on average.
            assert np.sum(first == second) < 12


@pytest.mark.parametrize("rows", [2, 3, 5, 12, 37])
def test_every_row_is_equally_likely_at_every_place(rows: int) -> None:
    epochs = 4000
    orders = row_at(np.arange(epochs * rows), rows, 7, "a").reshape(epochs, rows)
    counts = np.stack([np.bincount(orders[:, place], minlength=rows) for place in range(rows)])
    expected = epochs / rows
    chi_square = float(np.sum((counts - expected) ** 2 / expected))
    freedom = (rows - 1) ** 2
    # Five standard deviations of the chi-square distribution.
    assert chi_square < freedom + 5 * np.sqrt(2 * freedom) + 5


def test_neighbouring_positions_are_far_apart_rows() -> None:
    rows = 100_000
    order = row_at(np.arange(rows), rows, 3, "a").astype(float)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(order, np.arange(rows))[0, 1]) < 0.02


@settings(max_examples=60, deadline=None)
@given(
    step=st.integers(0, 10**9),
    micro_batch=st.integers(1, 5),
    micro_batches=st.sampled_from([1, 2, 6, 8, 12]),
    d=st.data(),
)
def test_all_numbers_of_ranks_see_the_same_micro_batches(step: int, micro_batch: int, micro_batches: int, d) -> None:
    global_batch = micro_batch * micro_batches
    expected = [
        step * global_batch + np.arange(start, start + micro_batch) for start in range(0, global_batch, micro_batch)
    ]
    world_size = d.draw(st.sampled_from([size for size in (1, 2, 3, 4, 6, 8, 12) if micro_batches % size == 0]))
    steps = accumulation_steps(micro_batch, global_batch, world_size)
    found = [
        micro_batch_positions(step, index, rank, world_size, micro_batch, global_batch)
        for index in range(steps)
        for rank in range(world_size)
    ]
    assert np.array_equal(np.stack(found), np.stack(expected))


def test_what_does_not_divide_is_the_users_mistake_and_what_is_beyond_is_ours() -> None:
    with pytest.raises(UserError, match=r"global_batch 16 is not divisible by 3 ranks x train\.micro_batch 4"):
        accumulation_steps(4, 16, 3)
    for index, rank in ((2, 0), (-1, 0), (0, 2), (0, -1)):
        with pytest.raises(ValueError, match="is"):
            micro_batch_positions(0, index, rank, 2, 4, 16)
    with pytest.raises(ValueError, match="negative"):
        row_at(np.array([-1]), 4, 0, "a")
    with pytest.raises(ValueError, match="rows must be at least 1"):
        row_at(np.array([0]), 0, 0, "a")
    with pytest.raises(ValueError, match="chunk_rows must be at least 1"):
        row_at(np.array([0]), 4, 0, "a", "chunks", 0)
