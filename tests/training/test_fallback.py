"""Which checkpoint the ranks settle on, on a folder of small checkpoints. With a real training: test_retention.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from pipeline.checkpoint import POINTER, STATE_FILE, newest_whole
from pipeline.checkpoint_marker import MARKER, measured, write_marker
from pipeline.errors import WorldError
from pipeline.recipe import Recipe
from pipeline.recipe_reader import parse_recipe
from pipeline.run_folder import RunFolder
from pipeline.training.fallback import first_damage, settle_checkpoint
from tests.conftest import tiny_recipe
from tests.training.saved_and_loaded import state_of

CPU = torch.device("cpu")


@pytest.fixture
def alone(tmp_path: Path):
    """This process as the only rank."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def run_folder(tmp_path: Path, steps: tuple[int, ...] = (0, 5, 10), **train: str) -> RunFolder:
    content = tiny_recipe("run", Path("unused"))
    content["train"] |= train
    folder = RunFolder(tmp_path, parse_recipe(content, "test"))
    for step in steps:
        write_checkpoint(folder.recipe, folder.checkpoints / f"step-{step:08d}")
    return folder


def write_checkpoint(recipe: Recipe, path: Path) -> None:
    path.mkdir(parents=True)
    for rank in range(3):
        (path / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").write_bytes(bytes(range(50 + rank)))
    state = state_of(recipe, 1, fingerprint=None).model_copy(update={"step": int(path.name[-8:])})
    (path / STATE_FILE).write_text(state.model_dump_json())
    write_marker(path, {file.name: measured(file) for file in path.iterdir()})


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[7] ^= 64
    path.write_bytes(content)


def test_the_newest_where_all_is_well(alone, tmp_path):
    folder = run_folder(tmp_path)
    assert settle_checkpoint(folder, CPU) == "step-00000010"
    assert not folder.events_file.exists()


def test_nothing_to_continue_from(alone, tmp_path):
    assert settle_checkpoint(run_folder(tmp_path, steps=()), CPU) is None


def test_every_kind_of_damage_is_named_and_set_aside(alone, tmp_path, capsys):
    folder = run_folder(tmp_path, steps=(0, 5, 10, 15, 20, 25, 30))
    paths = {step: folder.checkpoints / f"step-{step:08d}" for step in (10, 15, 20, 25, 30)}
    states = "zero_pp_rank_2_mp_rank_00_optim_states.pt"
    flip(paths[10] / states)
    (paths[15] / states).unlink()
    (paths[20] / states).write_bytes(b"short")
    (paths[25] / STATE_FILE).write_text("{}")
    (paths[30] / MARKER).write_text("half of")
    (folder.checkpoints / "step-00000030.damaged").mkdir()
    assert settle_checkpoint(folder, CPU) == "step-00000005"
    events = [json.loads(line) for line in folder.events_file.read_text().splitlines()]
    told = {event["checkpoint"]: event["reason"] for event in events}
    assert told.keys() == {path.name for path in paths.values()}
    assert told["step-00000010"].startswith(f"{paths[10] / states} is damaged: its sha256 is")
    assert told["step-00000015"] == f"{paths[15] / states} is missing: the marker says 52 bytes"
    assert told["step-00000020"] == f"{paths[20] / states} is damaged: it has 5 bytes, the marker says 52"
    assert told["step-00000025"].startswith(f"{paths[25] / STATE_FILE} is damaged: it has 2 bytes")
    assert told["step-00000030"].startswith(f"{paths[30]} is marked complete but cannot be read")
    assert events[0]["renamed_to"] == "step-00000030.damaged-2"
    assert (folder.checkpoints / "step-00000010.damaged" / states).is_file()
    assert (folder.checkpoints / POINTER).read_text() == "step-00000005\n"
    shown = capsys.readouterr().out
    assert shown.count("training continues from step-00000005") == 5
    assert settle_checkpoint(folder, CPU) == "step-00000005"


def test_sizes_alone_where_the_recipe_says_so(alone, tmp_path):
    folder = run_folder(tmp_path, verify_on_resume="sizes")
    newest = folder.checkpoints / "step-00000010"
    flip(newest / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    assert settle_checkpoint(folder, CPU) == "step-00000010"
    checkpoint = newest_whole(folder.checkpoints)
    assert first_damage(checkpoint, "sizes") is None
    assert "its sha256 is" in str(first_damage(checkpoint, "hashes"))
    (newest / "zero_pp_rank_0_mp_rank_00_optim_states.pt").unlink()
    assert newest_whole(folder.checkpoints).name == "step-00000005"
    assert settle_checkpoint(folder, CPU) == "step-00000005"


def test_where_none_verifies_nothing_is_renamed_and_nothing_starts_anew(alone, tmp_path):
    folder = run_folder(tmp_path, steps=(0, 5))
    for path in folder.checkpoints.glob("step-*"):
        flip(path / "zero_pp_rank_1_mp_rank_00_optim_states.pt")
    told = r"no checkpoint in .*checkpoints verifies: .*step-00000005/zero_pp.*; .*step-00000000/zero_pp.*; bring one"
    with pytest.raises(WorldError, match=told):
        settle_checkpoint(folder, CPU)
    assert {path.name for path in folder.checkpoints.iterdir()} == {"step-00000000", "step-00000005"}
