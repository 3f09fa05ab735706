"""Which checkpoints stay: as arithmetic, on a folder, and in a real training. While one is killed: test_chaos.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.checkpoint import checkpoint_name, complete_folders, step_of
from pipeline.checkpoint_lock import Removal, reading, remove_unless_read
from pipeline.checkpoint_marker import measured, write_marker
from pipeline.errors import WorldError
from pipeline.kept_checkpoints import saves_at, superfluous
from pipeline.recipe_reader import parse_recipe
from pipeline.recipe_train import TrainSection
from pipeline.run_folder import RunFolder
from pipeline.training.retention import Retention
from tests.conftest import Runs, tiny_recipe
from tests.training.test_training import KEYS, largest_difference


def section(**fields) -> TrainSection:
    """Phases end at 10 and 20."""
    return TrainSection.model_validate({**tiny_recipe("retention", Path("unused"))["train"], **fields})


def make_checkpoint(folder: Path, step: int) -> Path:
    path = folder / checkpoint_name(step)
    path.mkdir(parents=True)
    (path / "states.pt").write_bytes(bytes(step))
    write_marker(path, {"states.pt": measured(path / "states.pt")})
    return path


STEPS = st.sets(st.integers(0, 60), max_size=40)


@given(STEPS, st.integers(2, 6), st.integers(0, 7), st.booleans())
def test_what_stays(steps, last, every, log_spaced):
    train = section(keep_last=last, keep_every_steps=every, checkpoint_log_spaced=log_spaced)
    gone = superfluous(train, list(steps))
    assert gone == sorted(set(gone)) and set(gone) <= steps
    stays = sorted(steps - set(gone))
    assert stays[-last:] == sorted(steps)[-last:]
    assert len(stays) >= min(2, len(steps))
    assert not {0, 10, 20} & set(gone)
    assert not (every and [step for step in gone if step % every == 0])
    assert not (log_spaced and {1, 2, 4, 8, 16, 32} & set(gone))
    for step in stays[:-last]:
        assert step in (0, 10, 20) or (every and step % every == 0) or (log_spaced and step in (1, 2, 4, 8, 16, 32))
    assert superfluous(train, stays) == []


@given(STEPS)
def test_nothing_goes_unless_the_recipe_says_so(steps):
    assert superfluous(section(keep_every_steps=3), list(steps)) == []


def test_one_checkpoint_alone_is_refused():
    with pytest.raises(ValueError, match="greater than or equal to 2"):
        section(keep_last=1)


def test_steps_that_are_saved():
    train = section(checkpoint_every_steps=100)
    assert [step for step in range(1, 1100) if saves_at(train, step)] == list(range(100, 1100, 100))
    train = section(checkpoint_every_steps=500, checkpoint_log_spaced=True)
    powers = [1, 2, 4, 8, 16, 32, 64, 128, 256]
    assert [step for step in range(1, 1100) if saves_at(train, step)] == [*powers, 500, 512, 1000]


HOLD = """
import sys
from pathlib import Path
from pipeline.checkpoint_lock import reading
with reading(Path(sys.argv[1])):
    print("reading", flush=True)
    sys.stdin.readline()
"""


def test_a_checkpoint_that_another_process_reads_stays_until_it_is_done(tmp_path):
    recipe = parse_recipe(tiny_recipe("run", Path("unused")), "test")
    recipe = recipe.model_copy(update={"train": section(keep_last=2)})
    folder = RunFolder(tmp_path, recipe)
    paths = [make_checkpoint(folder.checkpoints, step) for step in (0, 3, 6, 12, 15)]
    reader = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(paths[1])], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert reader.stdout is not None and reader.stdout.readline() == "reading\n"
        assert remove_unless_read(paths[1]) is Removal.READ
        retention = Retention(folder)
        retention()
        retention()
        assert [step_of(path) for path in complete_folders(folder.checkpoints)] == [0, 3, 12, 15]
        assert (paths[1] / "states.pt").read_bytes() == bytes(3)
    finally:
        reader.communicate("\n", timeout=60)
    retention()
    assert [step_of(path) for path in complete_folders(folder.checkpoints)] == [0, 12, 15]
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == [paths[0].name, paths[3].name, paths[4].name]
    events = [json.loads(line) for line in folder.events_file.read_text().splitlines()]
    told = [(event["kind"], event.get("checkpoints", event.get("checkpoint"))) for event in events]
    assert told == [
        ("checkpoint_not_removed", "step-00000003"),
        ("checkpoints_removed", ["step-00000006"]),
        ("checkpoints_removed", ["step-00000003"]),
    ]
    with (
        pytest.raises(WorldError, match="step-00000003 was removed before it could be read"),
        reading(paths[1]),
    ):
        pass


def test_a_removal_that_was_cut_short_stands_in_nobody_s_way(tmp_path):
    path = make_checkpoint(tmp_path, 3)
    left = tmp_path / "step-00000003.removed"
    left.mkdir()
    (left / "states.pt").write_bytes(b"of an earlier one")
    assert remove_unless_read(path) is Removal.DONE
    assert list(tmp_path.iterdir()) == []


def retained(runs: Runs, text_folder, shards, name: str) -> dict:
    recipe = {**tiny_recipe(name, text_folder), "data": {"shards": str(shards)}}
    recipe["train"] |= {
        "checkpoint_every_steps": 1,
        "keep_last": 2,
        "keep_every_steps": 8,
        "verify_on_resume": "hashes",
    }
    return recipe


@pytest.fixture(scope="module")
def unbroken(runs: Runs, text_folder, shards) -> list[dict]:
    """Saved after every step, with retention."""
    return runs.train(retained(runs, text_folder, shards, "retained"))


@pytest.mark.slow
def test_a_flipped_byte_in_the_newest_falls_back_and_ends_with_the_same_numbers(unbroken, runs, text_folder, shards):
    recipe = retained(runs, text_folder, shards, "retained-and-damaged")
    folder = runs.root / recipe["name"]
    subprocess.run(["cp", "-r", str(runs.root / "retained"), str(folder)], check=True)
    states = next((runs.checkpoints(recipe["name"]) / "step-00000020").glob("*rank_1*optim_states.pt"))
    content = bytearray(states.read_bytes())
    content[len(content) // 2] ^= 1
    states.write_bytes(content)
    done = runs.adaponder("train", recipe)
    assert done.returncode == 0, done.stdout + done.stderr
    told = f"{states} is damaged: its sha256 is "
    assert f"step-00000020 does not verify: {told}" in done.stdout
    assert "it is now step-00000020.damaged, and training continues from step-00000019" in done.stdout
    assert largest_difference(unbroken, runs.metrics(recipe["name"]), KEYS) < 1e-6
    names = {path.name for path in runs.checkpoints(recipe["name"]).iterdir()}
    assert {"step-00000020", "step-00000020.damaged"} < names
    (event,) = [
        event
        for event in map(json.loads, (folder / "events.jsonl").read_text().splitlines())
        if event["kind"] == "checkpoint_damaged"
    ]
    assert event["checkpoint"] == "step-00000020" and event["reason"].startswith(told)
    again = runs.adaponder("train", recipe)
    assert again.returncode == 0 and "nothing to do" in again.stdout
