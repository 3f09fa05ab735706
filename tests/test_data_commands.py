"""`adaponder data` through the real command line: what is printed, and the exit codes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pipeline.cli import app


def adaponder(*arguments: str) -> Result:
    """The command in this process; a bug's traceback goes on."""
    return CliRunner().invoke(app, ["data", *arguments], env={"COLUMNS": "100"}, catch_exceptions=False)


@pytest.fixture
def damaged(shards: Path, tmp_path: Path) -> Path:
    shutil.copytree(shards, tmp_path / "shards")
    tar = tmp_path / "shards" / "train-000000.tar"
    content = bytearray(tar.read_bytes())
    content[5000] ^= 1
    tar.write_bytes(content)
    return tmp_path / "shards"


def test_what_the_stage_wrote_is_sound(shards: Path) -> None:
    done = adaponder("verify", str(shards), "--workers", "2")
    assert (done.exit_code, done.stderr) == (0, "")
    number = len(list(shards.glob("*.tar")))
    assert done.stdout.startswith(f"{shards} is sound: {number} shards, ")
    assert done.stdout.count("\n") == 1


def test_damage_is_listed_and_ends_the_process_with_exit_code_1(damaged: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from pipeline.cli import main; main()", "data", "verify", str(damaged)],
        env={**os.environ, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "train-000000.tar: its sha256 is not the manifest's\n" in done.stdout
    assert f"adaponder: {damaged}: " in done.stderr and "as listed" in done.stderr
    assert done.stderr.count("\n") == 1


def test_figures_as_tables_and_as_json(shards: Path, tmp_path: Path) -> None:
    shutil.copytree(shards, tmp_path / "shards")
    done = adaponder("show", str(tmp_path / "shards"), "--png", str(tmp_path / "lengths.png"))
    assert (done.exit_code, done.stderr) == (0, "")
    assert f"picture: {tmp_path / 'lengths.png'}\n" in done.stdout
    assert (tmp_path / "lengths.png").read_bytes().startswith(b"\x89PNG")
    done = adaponder("show", str(tmp_path / "shards"), "--json")
    figures = json.loads(done.stdout)
    assert sum(one["documents"] for one in figures["sources"]) == figures["lengths"]["words"]["documents"] == 60


def test_a_row(shards: Path) -> None:
    done = adaponder("peek", str(shards), "--row", "0")
    assert (done.exit_code, done.stderr) == (0, "")
    assert "── words · tokens 0 to 32 of 33" in done.stdout
    done = adaponder("peek", str(shards), "--row", "0", "--split", "validation-words", "--tokens")
    assert (done.exit_code, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["verify"], "manifest.json is missing"),
        (["show"], "manifest.json is missing"),
        (["peek", "--row", "0"], "manifest.json is missing"),
        (["verify", "nowhere"], "nowhere: no such folder"),
        (["show", "nowhere"], "nowhere: no such folder"),
        (["peek", "nowhere", "--row", "0"], "nowhere: no such folder"),
    ],
)
def test_a_folder_that_holds_no_shards(tmp_path: Path, arguments: list[str], told: str) -> None:
    command, *rest = arguments
    folder = [] if "nowhere" in rest else [str(tmp_path)]
    done = adaponder(command, *folder, *rest)
    assert (done.exit_code, done.stdout) == (2, "")
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("number", ["-1", "1000000"])
def test_a_row_out_of_range_is_one_line_and_exit_code_2(shards: Path, number: str) -> None:
    done = adaponder("peek", str(shards), "--row", number)
    assert (done.exit_code, done.stdout) == (2, "")
    assert f"--row {number}: train has " in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_manifest_that_is_none(damaged: Path) -> None:
    (damaged / "manifest.json").write_text('{"schema_version": 1}')
    done = adaponder("verify", str(damaged))
    assert done.exit_code == 2
    assert "is not a manifest of schema 1" in done.stderr


@pytest.mark.parametrize(
    ("command", "told"), [("verify", "Exit code"), ("show", "Refused records"), ("peek", "End-of-document marks")]
)
def test_each_command_says_what_it_does(command: str, told: str) -> None:
    done = adaponder(command, "--help")
    assert done.exit_code == 0
    assert told in done.stdout
