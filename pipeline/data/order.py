"""The order of the data, as pure functions: which row stands where, and which rank takes it in which step.

Positions count rows over all epochs: position p lies in epoch p // rows. What stands there follows from the manifest,
the seed, what is shuffled and p alone - not from the number of ranks, nodes or workers - so resuming needs one number,
and any number of ranks sees the same global batches.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np

from pipeline.errors import UserError

ROUNDS = 6
Shuffle = Literal["rows", "chunks", "none"]
"""What is permuted in every epoch."""


def row_at(
    positions: np.ndarray,
    rows: int,
    seed: int,
    manifest_hash: str,
    shuffle: Shuffle = "rows",
    chunk_rows: int = 1,
) -> np.ndarray:
    """Rows that stand at `positions`; every epoch holds each row once.

    positions: int64, any shape, >= 0; returns int64 of the same shape, in [0, rows). `shuffle` says what is permuted
    anew in every epoch: all rows; the chunks of `chunk_rows` rows (the last one perhaps shorter), with their rows in
    order; or nothing. The permutation is a keyed Feistel network over the next even power of two with cycle walking
    (Black and Rogaway, "Ciphers with arbitrary finite domains"), so that nothing of the size of the data set is held:
    a few vector operations, which for some thousand positions at once take under a microsecond each.
    """
    if rows < 1:
        raise ValueError(f"rows must be at least 1, not {rows}")
    if chunk_rows < 1:
        raise ValueError(f"chunk_rows must be at least 1, not {chunk_rows}")
    positions = np.asarray(positions, dtype=np.int64)
    if positions.size and int(positions.min()) < 0:
        raise ValueError("positions must not be negative")
    epochs, places = np.divmod(positions.reshape(-1), rows)
    if shuffle == "rows":
        found = _permuted(places, epochs, rows, seed, manifest_hash)
    elif shuffle == "chunks":
        found = _in_permuted_chunks(places, epochs, rows, chunk_rows, seed, manifest_hash)
    else:
        found = places
    return found.reshape(positions.shape)


def _in_permuted_chunks(
    places: np.ndarray, epochs: np.ndarray, rows: int, chunk_rows: int, seed: int, manifest_hash: str
) -> np.ndarray:
    chunks = -(-rows // chunk_rows)
    missing = chunks * chunk_rows - rows  # rows that the last chunk is short of a whole one
    if missing:
        # What stands behind the short chunk would stand that much further back, were all chunks whole.
        several, which = np.unique(epochs, return_inverse=True)
        last = np.full(len(several), chunks - 1, dtype=np.int64)
        short = _permuted(last, several, chunks, seed, manifest_hash, inverse=True)[which]
        places = np.where(places >= (short + 1) * chunk_rows - missing, places + missing, places)
    chunk, row = np.divmod(places, chunk_rows)
    return _permuted(chunk, epochs, chunks, seed, manifest_hash) * chunk_rows + row


def _permuted(
    places: np.ndarray, epochs: np.ndarray, size: int, seed: int, manifest_hash: str, inverse: bool = False
) -> np.ndarray:
    """What stands at `places` (int64, below `size`) of each epoch's permutation of `size` things, or the way back."""
    digest = hashlib.sha256(f"{seed}:{manifest_hash}".encode()).digest()
    base_key = np.frombuffer(digest[:8], dtype=np.uint64)
    keys = _mix(base_key ^ _mix(epochs.astype(np.uint64)))
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    network = _feistel_back if inverse else _feistel
    found = network(places.astype(np.uint64), keys, half_bits)
    # A value beyond the last is walked on until it falls below it; the domain is under four times the size.
    outside = np.flatnonzero(found >= size)
    while outside.size:
        found[outside] = network(found[outside], keys[outside], half_bits)
        outside = outside[found[outside] >= size]
    return found.astype(np.int64)


def accumulation_steps(micro_batch: int, global_batch: int, world_size: int) -> int:
    """Micro-batches a rank runs in a step; `UserError` where the global batch does not divide among the ranks."""
    if global_batch % (micro_batch * world_size):
        raise UserError(
            f"train.global_batch {global_batch} is not divisible by {world_size} ranks x train.micro_batch "
            f"{micro_batch}: change one of the three"
        )
    return global_batch // (micro_batch * world_size)


def micro_batch_positions(
    step: int, accumulation_index: int, rank: int, world_size: int, micro_batch: int, global_batch: int
) -> np.ndarray:
    """Positions of one micro-batch of one rank: int64 [micro_batch].

    Global batch t covers the positions [t * global_batch, (t + 1) * global_batch), cut into contiguous micro-batches.
    Micro-batch j is rank j % world_size's, as its accumulation step j // world_size: the set of micro-batches is the
    same for every number of ranks that divides it.
    """
    if not 0 <= accumulation_index < accumulation_steps(micro_batch, global_batch, world_size):
        raise ValueError(f"accumulation step {accumulation_index} is beyond the global batch")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is none of {world_size}")
    start = step * global_batch + (accumulation_index * world_size + rank) * micro_batch
    return np.arange(start, start + micro_batch, dtype=np.int64)


def _feistel(values: np.ndarray, keys: np.ndarray, half_bits: int) -> np.ndarray:
    """A bijection of [0, 4 ** half_bits) for each key; `values` and `keys` uint64 of one shape."""
    shift = np.uint64(half_bits)
    mask = np.uint64((1 << half_bits) - 1)
    left, right = values >> shift, values & mask
    for number in range(ROUNDS):
        round_keys = _mix(keys + np.uint64(number))
        left, right = right, left ^ (_mix(right ^ round_keys) & mask)
    return left << shift | right


def _feistel_back(values: np.ndarray, keys: np.ndarray, half_bits: int) -> np.ndarray:
    """The inverse of `_feistel`."""
    shift = np.uint64(half_bits)
    mask = np.uint64((1 << half_bits) - 1)
    left, right = values >> shift, values & mask
    for number in reversed(range(ROUNDS)):
        round_keys = _mix(keys + np.uint64(number))
        left, right = right ^ (_mix(left ^ round_keys) & mask), left
    return left << shift | right


def _mix(values: np.ndarray) -> np.ndarray:
    """splitmix64's finalizer (Steele, Lea and Flood 2014) on uint64 arrays: every bit depends on every bit."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
