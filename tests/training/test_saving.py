"""Saving and loading again: under every ZeRO stage, with the disk full, and with leftovers about."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.checkpoint import LogitsFingerprint, checkpoint_name, complete_checkpoints
from pipeline.checkpoint_marker import measured
from pipeline.errors import WorldError
from pipeline.training.fingerprint import other_network
from pipeline.training.host_copy import BLOCK, FileInMemory, HostMemory
from pipeline.training.saving import remove_leftovers
from pipeline.training.state_files import StateFiles, naming, rank_of_file
from tests.training.saved_and_loaded import SETTINGS


@pytest.fixture(scope="module")
def saved(runs, tmp_path_factory) -> dict[tuple[int, str], dict]:
    """Every setting, in one child process a rank: a hang becomes a failure."""
    folder = tmp_path_factory.mktemp("saved")
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("--module", "tests.training.saved_and_loaded", str(folder / "found.json"), str(folder)),
    ]
    done = subprocess.run(command, env=runs.environment(), capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return {(one["stage"], one["precision"]): one for one in json.loads((folder / "found.json").read_text())}


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_fingerprint_disturbs_nothing_and_tells_networks_apart(saved, setting):
    found = saved[setting]
    assert found["losses"] == found["undisturbed"]
    assert found["again_the_same"] and all(found["left_as_it_was"])
    assert "logits are off by" in found["trained_on"]
    assert "logits are off by" in found["before_loading"]


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_what_is_loaded_is_what_was_saved(saved, setting):
    found = saved[setting]
    assert not found["complete_while_training"]
    assert found["loaded"] is None
    assert found["to_the_last_digit"] or setting[0] == 3
    assert found["resumed"] == found["losses"][2:]
    assert "step-00000002 does not give back the network that was saved: logits are off by" in found["refused"]
    if setting[0] < 3:
        assert "the network's logits are not finite" in found["not_finite"]


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_the_marker_has_size_and_hash_of_every_file(saved, setting):
    found = saved[setting]
    assert found["wrong_files"] == [] and found["frozen"]
    assert all(found["marked"].values())
    assert {"config.json", "trainer_state.json", "frozen_weights.safetensors"} < found["marked"].keys()
    states = [name for name in found["marked"] if name.endswith("_states.pt")]
    assert len(states) == {0: 1, 1: 3, 2: 3, 3: 4}[setting[0]]
    assert found["size"][0] == found["size"][1] > 100_000


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_what_is_written_while_training_goes_on_is_what_would_have_been_written_at_once(saved, setting):
    files, at_once = saved[setting]["files"], saved[setting]["of_waiting"]
    # Each save has an id of its own in there.
    assert files.pop("trainer_state.json") != at_once.pop("trainer_state.json")
    assert files == at_once


@pytest.mark.slow
def test_stages_and_precisions_are_one_network_within_the_tolerance(saved):
    prints = {setting: LogitsFingerprint.model_validate(found["fingerprint"]) for setting, found in saved.items()}
    for setting, fingerprint in prints.items():
        assert other_network(prints[1, "fp32"], fingerprint) is None, setting


def fingerprint(logits: torch.Tensor, **changed: str) -> LogitsFingerprint:
    logits = logits.double()
    return LogitsFingerprint(
        last=logits[-1, :8].tolist(),
        total=logits.sum().item(),
        squares=logits.square().sum().item(),
        count=logits.numel(),
        computed_with={"zero_stage": "1", "precision": "fp32", "device": "cpu", "processor": "one", **changed},
    )


def test_a_last_digit_counts_where_rounding_is_the_same_and_only_there():
    logits = torch.randn(16, 30, generator=torch.Generator().manual_seed(0))
    other = logits * (1 + 1e-6)
    assert other_network(fingerprint(logits), fingerprint(logits)) is None
    assert "where 0 would be rounding" in str(other_network(fingerprint(logits), fingerprint(other)))
    assert other_network(fingerprint(logits), fingerprint(other, processor="another")) is None
    for elsewhere in ({"zero_stage": "3"}, {"device": "cuda"}):
        assert other_network(fingerprint(logits, **elsewhere), fingerprint(other, **elsewhere)) is None
    assert other_network(fingerprint(logits), fingerprint(logits * 1.01, processor="another"))
    assert other_network(fingerprint(logits), fingerprint(logits * 1.01, precision="bf16")) is None
    assert other_network(fingerprint(logits), fingerprint(logits.flip(0), processor="another"))
    assert other_network(fingerprint(logits), fingerprint(logits[:, 1:])) == "it has 464 logits for 480"


def test_hashes_taken_while_writing_are_those_of_the_file(tmp_path: Path):
    files = StateFiles(tmp_path)
    content = {"a": torch.randn(1000, 77), "b": [torch.arange(5), "text"], "c": torch.randn(3).bfloat16()}
    files.save(content, str(tmp_path / "states.pt"))
    assert files.written == {"states.pt": measured(tmp_path / "states.pt")}
    back = torch.load(tmp_path / "states.pt", weights_only=True)
    assert torch.equal(back["a"], content["a"]) and torch.equal(back["c"], content["c"])
    (tmp_path / "config.json").write_text("{}")
    files.measure([tmp_path / "config.json", tmp_path / "states.pt"])
    assert files.written["config.json"].size == 2


def test_what_is_kept_in_memory_is_written_to_the_last_byte_as_it_was(tmp_path: Path):
    memory = HostMemory()
    weight = torch.randn(300, 500)
    content = {"a": weight, "part of a": weight[3:5], "b": [torch.arange(5), "text"], "c": torch.randn(3).bfloat16()}
    for value in (1.0, 2.0):
        weight.fill_(value)
        StateFiles(tmp_path).save(content, str(tmp_path / "at_once.pt"))
        files = StateFiles(tmp_path, memory)
        files.save(content, str(tmp_path / "states.pt"))
        weight.zero_()
        assert files.written == {}
        files.write()
        assert files.written == {"states.pt": measured(tmp_path / "at_once.pt")}
        assert measured(tmp_path / "states.pt") == measured(tmp_path / "at_once.pt")
        assert (tmp_path / "states.pt").stat().st_size < 1.1 * weight.nbytes
    back = torch.load(tmp_path / "states.pt", weights_only=True)
    assert (back["a"] == 2).all() and back["part of a"].data_ptr() == back["a"][3].data_ptr()


def test_memory_is_taken_once_and_let_go_when_it_is_not_needed():
    memory = HostMemory()
    first, second = memory.block(), memory.block()
    first[:2], second[:2] = b"12", b"34"
    memory.begin()
    again = memory.block()
    assert bytes(again[:2]) == b"12"
    again[:2] = b"56"
    assert bytes(first[:2]) == b"56"
    memory.begin()  # the second was not needed
    assert bytes(memory.block()[:2]) == b"56"
    assert bytes(memory.block()[:2]) == bytes(2)
    assert bytes(second[:2]) == b"34"


@pytest.mark.parametrize("size", [0, 1, 4096, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 5000])
@pytest.mark.parametrize("where", ["disk", "/dev/shm"])
def test_every_size_is_written_whole(tmp_path: Path, size: int, where: str):
    path = (tmp_path if where == "disk" else Path(where)) / f"{os.getpid()}.bin"
    memory = HostMemory()
    try:
        for seed in (0, 1):
            content = random.Random(seed).randbytes(size)
            memory.begin()
            file = FileInMemory(memory)
            for start in range(0, size, 3_000_000):
                file.write(content[start : start + 3_000_000])
            assert file.write_to(path) == measured(path)
            assert path.read_bytes() == content
    finally:
        path.unlink(missing_ok=True)


@pytest.mark.parametrize("kept", [False, True])
def test_a_disk_that_is_full_is_named_and_the_file_gives_its_room_back(tmp_path: Path, kept: bool):
    (tmp_path / "states.pt").symlink_to("/dev/full")
    with pytest.raises(WorldError, match=rf"{tmp_path / 'states.pt'} cannot be written: No space left on device; the"):
        files = StateFiles(tmp_path, HostMemory() if kept else None)
        files.save({"a": torch.randn(100_000)}, str(tmp_path / "states.pt"))
        files.write()
    assert not os.path.lexists(tmp_path / "states.pt")
    with pytest.raises(WorldError, match="nowhere/x cannot be written"), naming(tmp_path / "nowhere" / "x"):
        (tmp_path / "nowhere" / "x").write_text("")


def test_what_cannot_be_pickled_is_a_bug_and_no_disk(tmp_path: Path):
    with pytest.raises(Exception, match="pickle") as raised:
        StateFiles(tmp_path).save({"a": lambda: None}, str(tmp_path / "states.pt"))
    assert not isinstance(raised.value, WorldError)


def test_each_rank_looks_at_its_own_files():
    names = {
        "mp_rank_00_model_states.pt": 0,
        "zero_pp_rank_5_mp_rank_00_optim_states.pt": 5,
        "bf16_zero_pp_rank_12_mp_rank_00_optim_states.pt": 12,
        "zero_pp_rank_3_mp_rank_00_model_states.pt": 3,
        "offloaded_tensors/rank07/states.bin": 7,
        "config.json": 0,
    }
    assert {name: rank_of_file(name, 16) for name in names} == names
    assert rank_of_file("zero_pp_rank_5_mp_rank_00_optim_states.pt", 2) == 1


def test_leftovers_of_killed_attempts_go_and_nothing_else(tmp_path: Path):
    assert remove_leftovers(tmp_path / "nowhere") == []
    stay = ["step-00000010", "step-00000020.damaged", "latest"]
    go = ["latest.partial", "step-00000005.removed", "step-00000030.partial"]
    for name in [*stay, *go]:
        if name.startswith("latest"):
            (tmp_path / name).write_text("")
        else:
            (tmp_path / name / "inner").mkdir(parents=True)
            (tmp_path / name / "inner" / "file").write_text("")
    assert remove_leftovers(tmp_path) == go
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(stay)


@pytest.mark.slow
def test_a_disk_that_fills_up_while_saving_loses_nothing(runs, recipe):
    recipe["train"]["phases"] = [{"name": "short", "steps": 15, "halting": False}]
    checkpoints = runs.checkpoints(recipe["name"])
    checkpoints.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1800k", "tmpfs", str(checkpoints)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        done = runs.adaponder("train", recipe)
        assert done.returncode == 1, done.stdout + done.stderr
        assert done.stderr.count("\n") == 1
        assert f"{checkpoints}/" in done.stderr and "No space left on device" in done.stderr
        assert "the same command continues" in done.stderr
        whole = complete_checkpoints(checkpoints)
        assert whole and whole[-1].step < 15
        subprocess.run(["mount", "-o", "remount,size=30m", str(checkpoints)], check=True)
        lines = runs.train(recipe)
        assert [line["step"] for line in lines] == list(range(1, 16))
        assert complete_checkpoints(checkpoints)[-1].name == checkpoint_name(15)
        assert not list(checkpoints.glob("*.partial"))
        saved = [event for event in runs.events(recipe["name"]) if event["kind"] == "checkpoint_saved"]
        assert all(0 < event["seconds_lost"] <= event["seconds"] and event["bytes"] for event in saved)
        assert any(line.get("time/save_seconds", 0) > 0 for line in lines)
    finally:
        subprocess.run(["umount", "--lazy", str(checkpoints)], check=True)
