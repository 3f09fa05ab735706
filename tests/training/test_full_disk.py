"""Somebody else fills the disk of a run's folder: no rank can write down why it fails, and yet it is told. A disk that
a checkpoint fills: test_saving.py."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pipeline.durable import append_line
from tests.training.test_stopping import Command


def fill(path: Path) -> None:
    """Take all the room there is."""
    with open(path, "wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError:
                return


def test_a_line_that_does_not_fit_names_its_file():
    with (
        open("/dev/full", "ab", buffering=0) as file,
        pytest.raises(OSError, match="No space left on device") as raised,
    ):
        append_line(file, "{}\n")
    assert raised.value.filename == "/dev/full"


@pytest.mark.slow
def test_a_disk_that_somebody_else_fills_is_named_and_the_same_command_continues(runs, recipe):
    steps = 300
    recipe["train"]["phases"] = [{"name": "only", "steps": steps, "halting": False}]
    recipe["train"]["checkpoint_every_steps"] = 1000
    folder = runs.root / recipe["name"]
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        command = Command(runs, recipe).until_step(3)
        fill(folder / "of somebody else")
        code, output, errors = command.end()
        assert code == 1, output + errors
        assert errors.count("\n") == 1, errors
        assert f"{folder}/" in errors and "No space left on device" in errors and "the same command continues" in errors
        assert command.steps() == [0]
        (folder / "of somebody else").unlink()
        lines = runs.train(recipe)
        assert [line["step"] for line in lines] == list(range(1, steps + 1))
        assert command.steps() == [0, steps]
        assert not list(folder.rglob("*.partial"))
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
