"""`adaponder status` and `adaponder logs`, on real runs and on what is left of broken ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.events import append_event
from pipeline.recipe_reader import parse_recipe
from pipeline.run_folder import RunFolder
from pipeline.run_status import last_lines, log_file, run_of, status_of
from pipeline.run_status_table import duration
from pipeline.training.attempt import hold_run, report_failure
from tests.conftest import tiny_recipe


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path, parse_recipe(tiny_recipe("run", tmp_path), "test"))
    folder.write_recipe()
    return folder


def begin(folder: RunFolder, attempt: int, step: int, ranks: int = 2) -> None:
    folder.logs.mkdir(exist_ok=True)
    for rank in range(ranks):
        (folder.logs / f"attempt-{attempt:03d}-rank-{rank:04d}.log").write_text(f"rank {rank}\nline 2\n")
    (folder.logs / f"attempt-{attempt:03d}-launcher.log").write_text("launcher\n")
    append_event(folder, "training_started", attempt=attempt, step=step, world_size=ranks, recipe_hash="0")


def log_steps(folder: RunFolder, first: int, last: int, seconds: float = 2.0) -> None:
    with open(folder.metrics_file, "a") as file:
        for step in range(first, last + 1):
            line = {"step": step, "time": time.time(), "train/loss": 3.0, "depth/mean": 2.5}
            file.write(json.dumps(line | {"speed/step_seconds": seconds}) + "\n")


def test_a_run_that_has_not_begun(folder):
    status = status_of(folder)
    assert (status.state, status.step, status.steps, status.total_tokens) == ("not started", 0, 20, 20 * 8 * 32)
    assert status.checkpoint is None and status.failure is None and not status.attempts


def test_a_run_in_progress_tells_what_is_left(folder):
    begin(folder, 1, 0)
    log_steps(folder, 1, 5)
    with hold_run(folder.path):
        status = status_of(folder)
    assert status.state == "training"
    assert (status.step, status.tokens) == (5, 5 * 8 * 32)
    assert status.seconds_left == 15 * 2.0
    assert status.tokens_per_second == 8 * 32 / 2.0
    assert (status.loss, status.mean_depth) == (3.0, 2.5)
    assert status_of(folder).state == "killed", "nobody holds it and nothing was noted"


def test_ends_are_told_with_their_attempts(folder):
    begin(folder, 1, 0)
    append_event(folder, "training_stopped", attempt=1, step=4, requeue=True, message="stopped at step 4 because")
    begin(folder, 2, 4, ranks=3)
    append_event(folder, "training_finished", attempt=2, step=20)
    status = status_of(folder)
    assert [(one.number, one.first_step, one.ranks, one.ended) for one in status.attempts] == [
        (1, 0, 2, "stopped"),
        (2, 4, 3, "finished"),
    ]
    assert status.attempts[0].message == "stopped at step 4 because"
    assert status.state == "finished"


def test_the_last_error_names_rank_and_host(folder):
    begin(folder, 1, 0)
    report_failure(folder.logs, 1, 1, OSError(28, "No space left on device", "/run/step-00000005"))
    report_failure(folder.logs, 1, 0, RuntimeError("[gloo] Connection closed by peer"))
    append_event(folder, "training_failed", attempt=1, error="Connection closed by peer")
    failure = status_of(folder).failure
    assert failure is not None
    assert (failure.attempt, failure.rank, failure.host) == (1, 1, os.uname().nodename)
    assert failure.message == "/run/step-00000005: No space left on device"
    begin(folder, 2, 0)
    assert status_of(folder).failure == failure, "the last one there was"


def test_a_host_without_a_word_is_named_and_not_those_that_lost_it(folder):
    folder.logs.mkdir()
    hosts = {"n1": [0, 1], "n2": [2, 3]}
    append_event(folder, "training_started", attempt=1, step=0, world_size=4, recipe_hash="0", hosts=hosts)
    with hold_run(folder.path):
        report_failure(folder.logs, 1, 0, RuntimeError("[gloo] Connection closed by peer"))
        assert status_of(folder).failure is None, "the others may still say something"
    # Rank 1 was ended by torchrun, without a word; its host is not the one that is gone.
    failure = status_of(folder).failure
    assert failure is not None
    assert (failure.attempt, failure.rank, failure.host) == (1, 2, "n2")
    assert failure.message == (
        "no word from n2 (ranks 2 to 3): killed from outside, out of memory, or the host is gone"
    )
    report_failure(folder.logs, 1, 3, RuntimeError("[gloo] Connection closed by peer"))
    failure = status_of(folder).failure
    assert failure is not None and (failure.rank, failure.host) == (1, "n1"), "both hosts live: what is not heard of"
    for rank in (1, 2):
        report_failure(folder.logs, 1, rank, RuntimeError("[gloo] Connection closed by peer"))
    assert status_of(folder).failure is None, "nobody knows anything"


def test_half_a_line_of_a_killed_process_is_left_out(folder):
    begin(folder, 1, 0)
    log_steps(folder, 1, 2)
    for path in (folder.events_file, folder.metrics_file):
        with open(path, "a") as file:
            file.write('{"kind": "train')
    assert (status_of(folder).step, len(status_of(folder).attempts)) == (2, 1)


def test_logs_are_found_by_rank_and_attempt(folder):
    with pytest.raises(UserError, match="holds no log: nothing was trained yet"):
        log_file(folder, 0, None)
    begin(folder, 1, 0, ranks=3)
    begin(folder, 2, 0, ranks=2)
    assert log_file(folder, 0, None).name == "attempt-002-rank-0000.log"
    assert log_file(folder, 2, None).name == "attempt-001-rank-0002.log", "the newest attempt that had it"
    assert log_file(folder, None, 1).name == "attempt-001-launcher.log"
    with pytest.raises(
        UserError, match=r"no log of rank 7 in attempt 2: there are attempts 1 to 2, and ranks 0, 1$"
    ) as error:
        log_file(folder, 7, 2)
    assert "\n" not in str(error.value)
    assert last_lines(log_file(folder, 1, 2), 1) == ["line 2"]


def test_a_run_is_found_by_folder_and_by_name(folder):
    assert run_of(str(folder.path), None).path == folder.path
    assert run_of("run", folder.root).path == folder.path
    with pytest.raises(UserError, match="neither a run's folder with recipe.yaml"):
        run_of("other", folder.root)


def test_what_the_last_preflight_found(folder):
    assert status_of(folder).preflight is None
    findings = [{"verdict": "ok", "message": "fine"}, {"verdict": "failed", "message": "n2 has no GPU"}]
    found = {
        "time": "2026-01-02T03:04:05+00:00",
        "passed": False,
        "checks": [{"name": "devices", "findings": findings}],
    }
    folder.preflight_file.parent.mkdir()
    folder.preflight_file.write_text(json.dumps(found))
    assert status_of(folder).preflight == "2026-01-02T03:04:05+00:00, devices: n2 has no GPU"
    folder.preflight_file.write_text(json.dumps({**found, "passed": True, "checks": []}))
    assert status_of(folder).preflight == "2026-01-02T03:04:05+00:00, passed"


def test_a_run_that_was_only_launched_is_found(folder):
    launched = folder.path / "launch" / "slurm"
    launched.mkdir(parents=True)
    folder.recipe_file.rename(launched / "recipe.yaml")
    assert run_of(str(folder.path), None).path == folder.path


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.2, "0 s"), (75, "1 min 15 s"), (7260, "2 h 1 min"), (90000, "1 d 1 h"), (86400, "1 d")],
)
def test_durations(seconds, told):
    assert duration(seconds) == told


@pytest.mark.slow
def test_on_a_real_run(runs, recipe):
    recipe["train"]["phases"] = [{"name": "short", "steps": 5, "halting": False}]
    runs.train(recipe)
    done = runs.adaponder("status", recipe, "--verify", "--json")
    assert done.returncode == 2, "status takes a run, not a recipe's file"
    name = recipe["name"]
    status = json.loads(command(runs, "status", name, "--json", "--verify"))
    assert (status["state"], status["step"], status["steps"]) == ("finished", 5, 5)
    assert (status["checkpoint"], status["checkpoint_state"]) == ("step-00000005", "whole")
    assert status["tokens_per_second"] > 0 and status["failure"] is None
    text = command(runs, "status", name)
    assert "5 of 5 (100.0%)" in text and "step-00000005, whole by its files' sizes" in text
    file = next((runs.checkpoints(name) / "step-00000005").glob("*optim_states.pt"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert (
        f"{file} is damaged: its sha256"
        in json.loads(command(runs, "status", name, "--json", "--verify"))["checkpoint_state"]
    )
    assert command(runs, "logs", name, "--rank", "1", "--lines", "3").count("\n") <= 3
    assert command(runs, "logs", name, "--launcher").count("\n") <= 40


def command(runs, *arguments: str) -> str:
    line = [sys.executable, "-c", "from pipeline.cli import main; main()", *arguments, "--runs", str(runs.root)]
    done = subprocess.run(line, env=runs.environment(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
