"""Killed with -9 at any moment and started again with other numbers of workers: the same shards to the last byte."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline.data.manifest import MANIFEST_NAME
from pipeline.durable import sha256_file
from pipeline.run_folder import RunFolder
from tests.tokenization.generated_records import MakeRun, generated_texts, record_lines
from tokenization.inspection.verify import verify

KILLS = 10


def start(folder: RunFolder, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "from pipeline.cli import main; main()", "tokenize", str(folder.recipe_file)]
    return subprocess.Popen(
        [*command, "--runs", str(folder.root), *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(folder: RunFolder, *options: str) -> None:
    process = start(folder, *options)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def hashes(folder: RunFolder) -> dict[str, str]:
    return {
        path.name: sha256_file(path) for path in folder.shards.iterdir() if path.suffix in (".tar", ".idx", ".jsonl")
    }


def processes_of(folder: RunFolder) -> list[psutil.Process]:
    """Whoever works on this run, orphans too."""
    found = []
    for process in psutil.process_iter():
        try:
            files = [opened.path for opened in process.open_files()]
        except psutil.Error:
            continue
        if any(path.startswith(str(folder.shards)) for path in files):
            found.append(process)
    return found


@pytest.fixture
def source(tmp_path: Path) -> dict:
    texts = generated_texts(4000, words=200)
    lines = record_lines(texts, ("A", "B")).splitlines(keepends=True)
    lines[17] = b"no record\n"
    (tmp_path / "0.jsonl").write_bytes(b"".join(lines[:2500]))
    (tmp_path / "1.jsonl").write_bytes(b"".join(lines[2500:]))
    return {"kind": "jsonl", "train": [str(tmp_path / "*.jsonl")], "validation_share": 0.02}


@pytest.mark.slow
def test_ten_kills_at_random_moments_change_nothing(make_run: MakeRun, source: dict) -> None:
    settings = {"seq_len": 64, "rows_per_chunk": 16, "shard_bytes": 1 << 16, "part_bytes": 200_000}
    _, unbroken = make_run([source], name="unbroken", **settings)
    unbroken.write_recipe()
    began = time.monotonic()
    finish(unbroken, "--workers", "1")
    longest = time.monotonic() - began
    assert not verify(unbroken.shards).problems

    _, broken = make_run([source], name="broken", **settings)
    broken.write_recipe()
    chance = random.Random(time.time_ns())
    unfinished = 0
    for _ in range(KILLS):
        process = start(broken, "--workers", str(chance.choice((1, 2, 3))))
        time.sleep(chance.uniform(0, longest))
        if chance.random() < 0.5:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()  # the workers are left to find out
        process.communicate()
        unfinished += not (broken.shards / MANIFEST_NAME).exists()
    finish(broken, "--workers", "2")
    assert unfinished >= 2, "hardly a kill came in time"
    assert hashes(broken) == hashes(unbroken)
    assert not verify(broken.shards).problems
    assert not list(broken.shards.rglob("*.partial"))
    assert not (broken.shards / "parts").exists()
    assert not processes_of(broken)


@pytest.mark.slow
def test_a_killed_worker_is_told_and_costs_its_part_alone(make_run: MakeRun, source: dict) -> None:
    _, folder = make_run([source], seq_len=64, rows_per_chunk=16, part_bytes=300_000)
    folder.write_recipe()
    process = start(folder, "--workers", "2")
    deadline = time.monotonic() + 120
    while not any(stopped_at_a_part(child, folder) for child in psutil.Process(process.pid).children()):
        assert process.poll() is None, "it ended before a worker could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "was killed by signal 9 at part" in errors
    assert "the same command continues" in errors
    assert "Traceback" not in errors
    assert not processes_of(folder)
    finish(folder, "--workers", "2")


def stopped_at_a_part(process: psutil.Process, folder: RunFolder) -> bool:
    """Kill the process if it is at a part; stopped first, so that it is still there when it dies."""
    try:
        process.suspend()
        # Until it has a command line of its own it is a copy of its parent, with the parent's files.
        began = "spawn_main" in " ".join(process.cmdline())
        if began and any(opened.path.startswith(str(folder.shards / "parts")) for opened in process.open_files()):
            process.kill()
            return True
        process.resume()
    except psutil.Error:
        pass
    return False


@pytest.mark.slow
def test_shares_of_many_machines_are_joined_to_the_same_bytes(make_run: MakeRun, source: dict) -> None:
    duplicates = {"remove_duplicates": True}
    settings = {"seq_len": 64, "rows_per_chunk": 16, "part_bytes": 400_000, "clean": duplicates}
    _, alone = make_run([source], name="alone", **settings)
    _, shared = make_run([source], name="shared", **settings)
    for folder in (alone, shared):
        folder.write_recipe()
    finish(alone, "--workers", "2")
    too_early = start(shared, "--workers", "1", "--part", "2/2")
    assert "have not been scanned for duplicates" in too_early.communicate(timeout=120)[1]
    assert too_early.returncode == 2
    for options in (("--scan",), ()):
        both = [start(shared, "--workers", "1", "--part", f"{number}/2", *options) for number in (1, 2)]
        for process in both:
            assert not process.communicate(timeout=120)[1]
            assert process.returncode == 0
    finish(shared, "--finish")
    assert hashes(shared) == hashes(alone)
    assert not verify(shared.shards).problems
