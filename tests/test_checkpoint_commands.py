"""`adaponder checkpoint` through the command line: what is printed, what is written, and the exit codes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from pipeline.checkpoint_marker import MARKER, measured, write_marker
from pipeline.cli import app
from pipeline.model import AdaPonderForCausalLM
from pipeline.run_folder import RunFolder
from tests.evaluation.tiny_run import make_model, make_run, write_checkpoint

STATES = "mp_rank_00_model_states.pt"


def adaponder(*arguments: str) -> Result:
    """The command in this process; a bug's traceback goes on."""
    return CliRunner().invoke(app, ["checkpoint", *arguments], env={"COLUMNS": "200"}, catch_exceptions=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> RunFolder:
    folder = make_run(tmp_path_factory.mktemp("commands"))
    for step in (0, 10, 20):
        path = write_checkpoint(folder, make_model(folder), step).path
        if step:  # the first stays one of sizes alone
            write_marker(path, {file.name: measured(file) for file in path.iterdir() if file.name != MARKER})
    return folder


@pytest.fixture
def run(made: RunFolder, tmp_path: Path) -> Path:
    """A run's folder of the test's own."""
    shutil.copytree(made.path / "checkpoints", tmp_path / "runs" / "tiny" / "checkpoints")
    return tmp_path / "runs" / "tiny"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_the_list_as_a_table_and_as_json(run: Path):
    checkpoints = run / "checkpoints"
    (checkpoints / "step-00000020" / STATES).write_bytes(b"cut")
    (checkpoints / "step-00000030.partial").mkdir()
    (checkpoints / "step-00000015.damaged").mkdir()
    (checkpoints / "step-00000025").mkdir()
    done = adaponder("list", str(run))
    assert (done.exit_code, done.stderr) == (0, "")
    for told in (
        "step-00000010",
        "halting",
        "2,560",
        "fp32",
        "complete",
        "it has 3 bytes",
        "half written",
        "set aside",
    ):
        assert told in done.stdout
    done = adaponder("list", "tiny", "--runs", str(run.parent), "--json")
    found = {one["name"]: one for one in json.loads(done.stdout)}
    assert [name for name, one in found.items() if one["complete"]] == ["step-00000000", "step-00000010"]
    ten = found["step-00000010"]
    assert (ten["step"], ten["tokens"], ten["world_size"], ten["zero_stage"]) == (10, 2560, 1, 0)
    assert ten["bytes"] == sum(file.stat().st_size for file in (checkpoints / "step-00000010").iterdir())
    assert 0 <= ten["age_seconds"] < 3600
    assert found["step-00000025"]["state"] == "not complete"


def test_what_is_whole_is_said_to_be(run: Path):
    done = adaponder("verify", str(run))
    assert (done.exit_code, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["step-00000000", "step-00000010", "step-00000020"]
    assert "by size alone" in lines[0] and "by size alone" not in lines[1]


def test_each_wrong_file_is_named_and_the_exit_code_is_1(run: Path):
    ten, twenty = (run / "checkpoints" / name for name in ("step-00000010", "step-00000020"))
    flip(ten / STATES)
    flip(twenty / "config.json")
    flip(twenty / STATES)
    done = adaponder("verify", str(run))
    assert done.exit_code == 1
    assert done.stdout.count("is damaged: its sha256 is") == 3
    for path in (ten / STATES, twenty / "config.json", twenty / STATES):
        assert f"{path} is damaged" in done.stdout
    assert "2 of 3 checkpoints damaged, as listed" in done.stderr
    assert done.stderr.count("\n") == 1
    assert adaponder("verify", str(run), "--checkpoint", "latest").exit_code == 1
    assert adaponder("verify", str(run), "--checkpoint", "step-00000000").exit_code == 0


def test_an_export_is_the_network(run: Path, made: RunFolder):
    done = adaponder("export", str(run), "--checkpoint", "step-00000010")
    assert (done.exit_code, done.stderr) == (0, "")
    output = run / "export" / "step-00000010"
    assert {"config.json", "model.safetensors"} <= {path.name for path in output.iterdir()}
    assert not list(output.glob("*.pt"))
    loaded = AdaPonderForCausalLM.from_pretrained(output)
    saved = torch.load(made.checkpoints / "step-00000010" / STATES, weights_only=False)["module"]
    assert all(torch.equal(weight, saved[name]) for name, weight in loaded.state_dict().items())
    assert all(weight.dtype is torch.float32 for weight in loaded.state_dict().values())
    again = adaponder("export", str(run), "--checkpoint", "step-00000010")
    assert again.exit_code == 2 and "is there already" in again.stderr
    elsewhere = adaponder("export", str(run), "--output", str(run / "mine"))
    assert elsewhere.exit_code == 0 and (run / "mine" / "model.safetensors").is_file()


def test_a_damaged_checkpoint_is_not_exported(run: Path):
    flip(run / "checkpoints" / "step-00000020" / STATES)
    done = adaponder("export", str(run))
    assert done.exit_code == 1 and f"{STATES} is damaged" in done.stderr
    assert not (run / "export").exists()


@pytest.mark.parametrize("command", ["list", "verify", "export"])
def test_a_run_that_is_not_there(tmp_path: Path, command: str):
    done = adaponder(command, "nowhere", "--runs", str(tmp_path))
    assert (done.exit_code, done.stdout) == (2, "")
    assert "nowhere: neither a run's folder with checkpoints/ in it nor the name of one" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["verify", "export"])
def test_a_checkpoint_that_is_not_there(run: Path, command: str):
    done = adaponder(command, str(run), "--checkpoint", "step-00000011")
    assert done.exit_code == 2
    assert "holds no complete checkpoint step-00000011: there are step-00000000, step-00000010" in done.stderr
