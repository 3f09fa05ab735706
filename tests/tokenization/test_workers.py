"""Workers are there before their work is, do it whoever of them gets it, and are gone when it is done."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from pipeline.errors import WorldError
from tests.tokenization.generated_records import MakeRun, generated_texts, record_lines
from tests.tokenization.test_stage import shard_hashes
from tokenization.stage import finish, tokenize
from tokenization.work import Work
from tokenization.workers import Workers


@pytest.fixture
def source(tmp_path: Path) -> dict:
    path = tmp_path / "x.jsonl"
    texts = generated_texts(120)
    path.write_bytes(record_lines([*texts, texts[7]], ("A", "B")))
    return {"kind": "jsonl", "train": [str(path)], "validation_share": 0.1}


def started() -> list[psutil.Process]:
    """Workers of this process."""
    own = psutil.Process()
    while any(one.cmdline() == own.cmdline() for one in own.children()):
        time.sleep(0.01)  # a child that was just made is a copy of its parent until it begins
    return [one for one in own.children() if "spawn_main" in " ".join(one.cmdline())]


def test_no_more_are_started_than_have_something_to_do() -> None:
    with Workers(1) as alone:
        alone.start(9)
        assert not started()
    with Workers(3) as workers:
        workers.start(1)
        assert not started()
        workers.start(2)
        first = started()
        assert len(first) == 2
        workers.start(5)
        assert len(started()) == 3
        assert set(first) < set(started())
        began = time.monotonic()
    assert time.monotonic() - began < 5
    assert not started()


@pytest.mark.slow
def test_the_same_workers_scan_and_make_and_the_bytes_are_those_of_one_process(make_run: MakeRun, source: dict) -> None:
    settings = {"part_bytes": 2_000, "clean": {"remove_duplicates": True}}
    recipe, alone = make_run([source], name="alone", **settings)
    tokenize(recipe, alone, "test", workers=1)
    recipe, shared = make_run([source], name="shared", **settings)
    with Work.open(recipe, shared.shards, workers=2) as work:
        before = started()
        assert len(before) == 2
        work.scan(work.parts)
        assert started() == before
        work.make(work.parts)
        assert started() == before
    assert not started()
    assert finish(recipe, shared, "test").rejected == {"duplicate": 1}
    assert shard_hashes(shared.shards) == shard_hashes(alone.shards)


@pytest.mark.slow
def test_a_worker_that_dies_before_it_has_work_is_told(make_run: MakeRun, source: dict) -> None:
    recipe, folder = make_run([source], part_bytes=2_000)
    with Work.open(recipe, folder.shards, workers=2) as work:
        killed = started()[1].pid
        os.kill(killed, signal.SIGKILL)
        with pytest.raises(
            WorldError, match=rf"\(process {killed}\) was killed by signal 9.*the same command continues"
        ):
            work.make(work.parts)
    assert not started()
    assert tokenize(recipe, folder, "test").train.documents > 90


@pytest.mark.slow
def test_a_tokenizer_that_was_exchanged_meanwhile_stops_the_work(make_run: MakeRun, source: dict) -> None:
    recipe, folder = make_run([source], part_bytes=2_000)
    for workers in (1, 2):
        with Work.open(recipe, folder.shards, workers) as work:
            path = folder.shards / "tokenizer" / "tokenizer.json"
            content = path.read_bytes()
            path.write_bytes(content + b"\n")
            with pytest.raises(WorldError, match=r"tokenizer\.json was replaced while its shards were being made"):
                work.make(work.parts)
            path.write_bytes(content)
