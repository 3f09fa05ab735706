"""`adaponder train --watch` and `run --watch`: how the watcher beside a training ends, and what is told of that."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest

from pipeline.errors import UserError, WorldError
from pipeline.recipe_reader import parse_recipe
from pipeline.run_folder import RunFolder
from pipeline.watching import beside
from pipeline.watching.beside import WatcherBeside
from pipeline.watching.start import keep_recipe
from pipeline.watching.with_training import train_watched
from tests.conftest import tiny_recipe
from tests.evaluation.tiny_run import write_checkpoint
from tests.watching.watchers import environment, finish, judged, start, watchers_beside, written_recipe

pytestmark = pytest.mark.slow


def wait_until(happened, command: subprocess.Popen, seconds: float = 200):
    deadline = time.monotonic() + seconds
    while not (found := happened()):
        assert command.poll() is None, finish(command)
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def processes_of(run) -> list[str]:
    """Command lines of all processes that work on the run, this one's aside."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        words = " ".join(process.info["cmdline"] or [])
        if str(run.root) in words and process.info["pid"] != os.getpid() and process.info["status"] != "zombie":
            found.append(words)
    return found


@pytest.fixture
def quick(monkeypatch):
    """Two restarts, soon."""
    monkeypatch.setattr(beside, "RESTARTS", 2)
    monkeypatch.setattr(beside, "_FIRST_PAUSE_SECONDS", 0.1)
    for name, value in environment().items():
        monkeypatch.setenv(name, value)


def test_what_no_watcher_could_do_here_is_refused_before_anything_starts(run, tmp_path, monkeypatch):
    content = run.recipe.resolved()
    content["evaluate"]["jobs"]["where"] = "slurm"
    recipe = parse_recipe(content, "test")
    monkeypatch.setenv("PATH", str(tmp_path))
    before = sorted(run.path.rglob("*"))
    with pytest.raises(UserError, match="sbatch is not on PATH here"):
        train_watched(recipe, RunFolder(run.root, recipe))
    assert sorted(run.path.rglob("*")) == before


def test_what_was_given_up_decides_the_exit_code_of_a_training_that_went_well(run, model):
    """A finished training, whose last evaluation cannot be made: its folder cannot."""
    write_checkpoint(run, model, 20)
    blocked = run.evaluation("step-00000020", "validation.partial")
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file where a folder has to be")
    code, said = finish(start(run, "train", "--watch", "--set", "evaluate.jobs.tries=1"))
    assert code == 1, said
    assert "train: all 20 steps are taken, nothing to do" in said
    assert judged(run) == {("step-00000020", "depth")}
    (line,) = [line for line in said.splitlines() if line.startswith("adaponder: ")]
    assert line.startswith("adaponder: watch: 1 of 2 evaluations were given up, first validation of step-00000020")
    assert "started again" not in said, "it would end in the same way"


def test_a_watcher_that_dies_again_and_again_is_given_up_and_takes_nothing_down(run, model, quick, capfd):
    """On a file that it cannot read."""
    write_checkpoint(run, model, 10)
    damaged = run.evaluation_jobs / "step-00000010" / "job.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("{")
    with WatcherBeside(run.recipe, run, keep_recipe(run.recipe, run)) as watcher:
        error = watcher.finish()
    assert isinstance(error, WorldError)
    assert "ended 3 times and is not started again" in str(error)
    assert f"{damaged} is damaged" in str(error) and str(run.logs / "watch-003.log") in str(error)
    said = [line for line in capfd.readouterr().out.splitlines() if "started again" in line]
    assert [line.partition(" times")[0][-6:] for line in said] == ["1 of 2", "2 of 2"]
    assert f"{damaged} is damaged" in (run.logs / "watch-001.log").read_text()


def test_a_mistake_ends_the_watcher_at_once(run, quick, capfd):
    """A recipe that it does not understand."""
    file = keep_recipe(run.recipe, run)
    file.write_text(file.read_text() + "\nno_such_section: 1\n")
    with WatcherBeside(run.recipe, run, file) as watcher:
        watcher._thread.join()  # while the training goes on
        error = watcher.finish()
    assert isinstance(error, UserError) and "no_such_section" in str(error)
    (line,) = capfd.readouterr().out.splitlines()
    assert "no_such_section" in line and line.endswith("; the training goes on without a watcher")


def test_one_that_ended_before_the_training_looks_again(run, model, quick):
    """It took a last checkpoint for the training's that the training made anew."""
    write_checkpoint(run, model, 20)
    with WatcherBeside(run.recipe, run, keep_recipe(run.recipe, run)) as watcher:
        watcher._thread.join()
        assert len(judged(run)) == 2
        write_checkpoint(run, model, 10)
        assert watcher.finish() is None
    assert ("step-00000010", "validation") in judged(run)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_while_it_waits_for_judgements_ends_the_command_and_the_watcher(run, model, number):
    write_checkpoint(run, model, 20)
    command = start(run, "train", "--watch")
    wait_until(lambda: list((run.path / "logs").glob("eval-*.log")), command)
    command.send_signal(number)
    code, said = finish(command, timeout=60)
    assert code == (130 if number == signal.SIGINT else 75), said
    assert said.count("the same command continues") == 1, said
    assert not processes_of(run)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_command_that_ends_in_mid_training_leaves_no_watcher(run, number):
    long = ("--set", "train.phases.0.steps=100000", "--set", "train.checkpoint_every_steps=100000")
    command = start(run, "train", "--watch", *long)
    steps = run.path / "metrics.jsonl"
    wait_until(lambda: steps.exists() and steps.stat().st_size and watchers_beside(command), command)
    command.send_signal(number)
    command.wait(60)
    deadline = time.monotonic() + 60
    while processes_of(run):
        assert time.monotonic() < deadline, processes_of(run)
        time.sleep(0.1)
    code, said = finish(command)
    assert code == (75 if number == signal.SIGTERM else -9), said
    if number == signal.SIGTERM:
        assert "because of SIGTERM" in said and (run.checkpoints / "step-00000000").is_dir()


def test_on_a_terminal_no_line_of_the_watcher_breaks_the_progress_line(run):
    ours, theirs = pty.openpty()
    recipe = written_recipe(run)
    command = subprocess.Popen(
        [
            *(sys.executable, "-m", "pipeline", "train", str(recipe), "--runs", str(run.root), "--watch"),
            *("--set", "train.checkpoint_every_steps=10", "--set", "evaluate.full_suites=[]"),
        ],
        env=environment() | {"TERM": "xterm-256color"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    told = b""
    try:
        while part := _read(ours):
            told += part
    finally:
        command.kill()
    assert command.wait() == 0, told.decode()
    # As the screen shows it: of each line what stands there after it was erased for the last time.
    lines = [re.split("\x1b\\[2K", line.rstrip("\r"))[-1] for line in told.decode().split("\n")]
    plain = [re.sub("\x1b\\[[0-9;?]*[A-Za-z]", "", line).strip("\r") for line in lines]
    mixed = [line for line in plain if "watch: " in line and not line.startswith("watch: ")]
    assert not mixed, mixed
    assert [line for line in plain if line.startswith("watch: step-00000020 done")], plain
    assert [line for line in plain if line.startswith("train ") and "20/20" in line], plain


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # nobody has it open any more
        return b""


def test_a_whole_run_judges_nothing_twice(runs, text_folder):
    recipe = tiny_recipe("watched-whole", text_folder)
    recipe["train"]["checkpoint_every_steps"] = 10
    recipe["evaluate"]["jobs"] = {"poll_seconds": 0.5}
    done = runs.adaponder("run", recipe, "--watch", timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = runs.root / recipe["name"]
    for step in ("step-00000000", "step-00000020"):
        assert f"evaluate: validation of {step} stands already, nothing to do" in done.stdout
    assert len(list(folder.glob("evaluation/step-*/validation/metrics.json"))) == 3
    assert "watch: 3 evaluations stand" in done.stdout
    assert (folder / "release" / "config.json").is_file()
    assert not list((folder / "logs").glob("watch-*.log")), "nothing was said on stderr"
