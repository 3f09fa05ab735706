"""What a checkpoint is checked against, and that its weights are read whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.checkpoint import find_checkpoint, load_model, newest_whole, open_checkpoint
from pipeline.checkpoint_marker import (
    MARKER,
    SCHEMA_VERSION,
    MarkedFile,
    Marker,
    measured,
    read_marker,
    write_marker,
    wrong_files,
    wrong_sizes,
)
from pipeline.durable import write_json
from pipeline.errors import WorldError
from tests.evaluation.tiny_run import make_model, make_run, write_checkpoint

NAMES = st.text("abcdef/-_.é ", min_size=1, max_size=20)
FILES = st.dictionaries(
    NAMES,
    st.builds(MarkedFile, size=st.integers(0, 2**50), sha256=st.none() | st.text("0123456789abcdef", min_size=64)),
    max_size=5,
)


@given(FILES)
def test_a_marker_comes_back_as_it_was_written(tmp_path_factory, files):
    folder = tmp_path_factory.mktemp("marker")
    write_marker(folder, files)
    assert read_marker(folder) == Marker(schema_version=SCHEMA_VERSION, files=files)
    assert read_marker(folder).size == sum(file.size for file in files.values())


def test_a_marker_of_sizes_alone_is_still_read(tmp_path: Path):
    (tmp_path / "states.pt").write_bytes(b"12345")
    write_json(tmp_path / MARKER, {"files": {"states.pt": 5}})
    marker = read_marker(tmp_path)
    assert marker == Marker(schema_version=1, files={"states.pt": MarkedFile(size=5)})
    assert wrong_files(tmp_path, marker) == []
    (tmp_path / "states.pt").write_bytes(b"1234")
    told = [f"{tmp_path / 'states.pt'} is damaged: it has 4 bytes, the marker says 5"]
    assert wrong_sizes(tmp_path, marker) == wrong_files(tmp_path, marker) == told


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "cannot be read"),
        ('{"files": {"a": "b"}}', "cannot be read"),
        ('{"schema_version": 3, "files": {}}', "is of schema 3, this version knows 2"),
    ],
)
def test_a_marker_that_is_none(tmp_path: Path, content: str, told: str):
    (tmp_path / MARKER).write_text(content)
    with pytest.raises(WorldError, match=told) as raised:
        read_marker(tmp_path)
    assert "\n" not in str(raised.value)


@given(st.binary(min_size=1, max_size=3000), st.data())
def test_any_flipped_bit_is_found(tmp_path_factory, content, data):
    folder = tmp_path_factory.mktemp("flipped")
    for name in ("one.pt", "two.pt"):
        (folder / name).write_bytes(content)
    files = {name: measured(folder / name) for name in ("one.pt", "two.pt")}
    write_marker(folder, files)
    marker = read_marker(folder)
    assert wrong_files(folder, marker) == []
    place, bit = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(0, 7))
    changed = bytearray(content)
    changed[place] ^= 1 << bit
    (folder / "two.pt").write_bytes(changed)
    assert wrong_sizes(folder, marker) == []
    (line,) = wrong_files(folder, marker)
    assert line.startswith(f"{folder / 'two.pt'} is damaged: its sha256 is ")
    assert wrong_files(folder, marker, ["one.pt"]) == []
    assert wrong_files(folder, marker, []) == []


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("checkpoints"))


def marked(folder: Path) -> Path:
    """Give a checkpoint of sizes alone the hashes that saving gives it."""
    write_marker(folder, {path.name: measured(path) for path in folder.iterdir() if path.name != MARKER})
    return folder


def test_weights_of_a_damaged_checkpoint_are_not_loaded(run):
    model = make_model(run)
    path = marked(write_checkpoint(run, model, step=30).path)
    loaded = load_model(open_checkpoint(path))
    assert all(torch.equal(weight, model.state_dict()[name]) for name, weight in loaded.state_dict().items())
    states = path / "mp_rank_00_model_states.pt"
    content = bytearray(states.read_bytes())
    content[len(content) // 2] ^= 4  # in the middle of a weight: torch reads it without a word
    states.write_bytes(content)
    checkpoint = find_checkpoint(run.checkpoints, path.name)
    assert not torch.equal(
        *(
            torch.nn.utils.parameters_to_vector(one.parameters())
            for one in (model, load_model(checkpoint, hashes=False))
        )
    )
    with pytest.raises(WorldError, match=rf"{states} is damaged: its sha256 is .*; --checkpoint takes another one"):
        load_model(checkpoint)


def test_the_newest_whole_one_is_found_past_those_that_are_not(run):
    model = make_model(run)
    whole, cut = (marked(write_checkpoint(run, model, step=step).path) for step in (40, 50))
    assert newest_whole(run.checkpoints).path == cut
    (cut / "mp_rank_00_model_states.pt").write_bytes(b"")
    assert newest_whole(run.checkpoints).path == whole
    with pytest.raises(WorldError, match=r"step-00000050/mp_rank_00_model_states.pt is damaged: it has 0 bytes"):
        find_checkpoint(run.checkpoints)
    state = json.loads((whole / "trainer_state.json").read_text())
    assert state["fingerprint"] is None
