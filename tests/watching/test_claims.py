"""Claims between real processes: each item is one process's at a time, and a dead one's is taken over."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.watching.claims import claim, holder_of, is_held

HOLD = """
import sys, time
from pathlib import Path
from pipeline.watching.claims import claim
assert claim(Path(sys.argv[1]), heartbeat_seconds=float(sys.argv[2])) is not None
print("held", flush=True)
time.sleep(60)
"""


def holding(folder: Path, heartbeat_seconds: float = 0.1) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), str(heartbeat_seconds)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def test_a_claim_is_one_process_s_until_it_is_given_back(tmp_path):
    mine = claim(tmp_path)
    assert mine is not None
    assert claim(tmp_path) is None
    holder = holder_of(tmp_path)
    assert holder is not None and (holder.pid, holder.released) == (os.getpid(), False)
    mine.release()
    assert not is_held(tmp_path)
    again = claim(tmp_path)
    assert again is not None and again.number == mine.number + 1
    again.release()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["claim-0001.json", "claim-0002.json"]


def test_a_holder_that_was_killed_is_followed_at_once(tmp_path):
    process = holding(tmp_path)
    try:
        assert claim(tmp_path) is None
    finally:
        end(process)
    mine = claim(tmp_path)
    assert mine is not None and mine.number == 2
    mine.release()


def test_a_holder_of_another_host_is_followed_when_it_is_silent(tmp_path):
    process = holding(tmp_path)
    path = tmp_path / "claim-0001.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"host": "far", "pid_space": "another boot"}))
    try:
        time.sleep(0.6)
        assert claim(tmp_path, stale_seconds=0.5) is None, "it is touched all the time"
    finally:
        end(process)
    assert claim(tmp_path, stale_seconds=60) is None, "nobody can tell yet that it is dead"
    time.sleep(0.6)
    mine = claim(tmp_path, stale_seconds=0.5)
    assert mine is not None
    mine.release()


def test_a_number_that_now_is_another_process_s_holds_nothing(tmp_path):
    mine = claim(tmp_path)
    assert mine is not None
    mine.release()
    path = tmp_path / "claim-0001.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"released": False, "process_began": content["process_began"] - 100}))
    assert not is_held(tmp_path)


def test_one_who_was_silent_for_too_long_hears_of_it(tmp_path):
    slow = claim(tmp_path, heartbeat_seconds=3600)
    assert slow is not None
    time.sleep(0.3)
    fast = claim(tmp_path, stale_seconds=0.1)
    assert fast is not None
    assert not slow.still_held() and slow.lost.is_set()
    slow.release()
    assert is_held(tmp_path), "what was lost cannot be given back"
    fast.release()


def test_a_claim_that_cannot_be_read_is_held_until_it_is_old(tmp_path):
    (tmp_path / "claim-0001.json").write_text("")
    assert claim(tmp_path, stale_seconds=60) is None
    os.utime(tmp_path / "claim-0001.json", (0, 0))
    mine = claim(tmp_path, stale_seconds=60)
    assert mine is not None
    mine.release()


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "kill_share"), [(6, 0.0), (8, 0.12)])
def test_many_processes_claim_many_items_each_exactly_once(tmp_path, processes, kill_share):
    """Those that kill themselves are replaced until all is done."""
    seed = int(os.environ.get("CHAOS_SEED") or random.randrange(1 << 30))
    print("CHAOS_SEED", seed)
    generator = random.Random(seed)
    items = 120
    for number in range(items):
        (tmp_path / f"item-{number:03d}").mkdir()

    def start() -> subprocess.Popen:
        arguments = [str(tmp_path), str(kill_share), str(generator.randrange(1 << 30))]
        return subprocess.Popen([sys.executable, "-m", "tests.watching.claimants", *arguments])

    running = [start() for _ in range(processes)]
    kills, deadline = 0, time.monotonic() + 120
    try:
        while running:
            assert time.monotonic() < deadline
            time.sleep(0.05)
            for process in list(running):
                code = process.poll()
                if code is None:
                    continue
                running.remove(process)
                assert code in (0, -9)
                if code == -9:
                    kills += 1
                    running.append(start())
    finally:
        for process in running:
            process.kill()
            process.wait()
    works = [(item / "work").read_text().splitlines() for item in sorted(tmp_path.iterdir())]
    assert [len(lines) for lines in works] == [1] * items
    assert not list(tmp_path.glob("*/together"))
    assert len({line for lines in works for line in lines}) > 1
    assert bool(kills) == bool(kill_share)
