"""Steps that come from a store: the first does not wait for all, and one that cannot be fetched ends the reading."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline.data import shard_cache
from pipeline.data.batches import READ_TOGETHER, TrainingBatches
from pipeline.data.rows import RowReader
from pipeline.errors import WorldError
from tests.data.random_shards import DataSet
from tests.data.shard_server import Server, opened


def test_the_first_step_does_not_wait_for_the_shards_of_later_ones_nor_does_an_end_by_an_error(
    data_set: DataSet, server: Server, tmp_path: Path
) -> None:
    _, manifest, expected = data_set
    arrive, asked = threading.Event(), threading.Event()

    def held(name: str, content: bytes) -> bytes:
        if name == "train-000001.tar":
            asked.set()
            arrive.wait(60)
        return content

    server.change = held
    reader = RowReader(opened(server.url, tmp_path), manifest, "train")
    batches = TrainingBatches(reader, 0, "", 0, 1, 1, 1, "none")
    assert manifest.train.shards[0].rows < READ_TOGETHER
    with pytest.raises(KeyError, match="of the training"), batches:
        np.testing.assert_array_equal(batches.step(0)[0][0].numpy(), expected[:1, :-1])
        assert asked.wait(30)
        began = time.monotonic()
        raise KeyError("of the training")
    assert time.monotonic() - began < 10
    arrive.set()
    batches.close()  # and waits
    reader.close()


def test_a_shard_that_cannot_be_fetched_is_tried_once_and_ends_the_reading(
    data_set: DataSet, server: Server, tmp_path: Path
) -> None:
    _, manifest, expected = data_set
    shards = manifest.train.shards
    first_bad = sum(shard.rows for shard in shards[:2])
    server.change = lambda name, content: content[:-1] + b"!" if name == shards[2].name else content
    with (
        RowReader(opened(server.url, tmp_path), manifest, "train") as reader,
        TrainingBatches(reader, 0, "", 0, 1, 1, 1, "none") as batches,
    ):
        for step in range(first_bad):
            np.testing.assert_array_equal(batches.step(step)[0][0].numpy(), expected[step : step + 1, :-1])
        for step in (first_bad, first_bad + 1, first_bad, 5 * READ_TOGETHER):
            with pytest.raises(WorldError, match=f"{server.url}/{shards[2].name} has SHA-256"):
                batches.step(step)
        batches.wait()
    assert server.requests[shards[2].name] == 2  # what comes wrong is fetched once more
    assert not any(server.requests[shard.name] for shard in shards[3:])


def test_the_first_download_that_fails_is_the_last(
    data_set: DataSet, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, manifest, _ = data_set
    shards = manifest.train.shards
    assert len(shards) >= 8
    monkeypatch.setattr(shard_cache, "FETCHED_TOGETHER", 3)
    failed = threading.Event()

    def held(name: str, content: bytes) -> bytes:
        if name == shards[0].name:
            if server.requests[name] == 2:
                failed.set()
            return content[:-1] + b"!"
        if name.endswith(".tar"):
            failed.wait(30)
            time.sleep(0.5)
        return content

    server.change = held
    source = opened(server.url, tmp_path)
    with pytest.raises(WorldError, match=rf"{shards[0].name} has SHA-256"):
        source.prepare(shards)
    # Those at the same time, and the one that may have begun in the place of the failed one.
    assert sum(server.requests[shard.name] > 0 for shard in shards) <= 4
