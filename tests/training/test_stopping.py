"""Asking a training to stop, by every way there is, and starting it again."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.checkpoint import complete_checkpoints
from pipeline.training.stopping import (
    EXIT_REQUEUE,
    STOP_FILE,
    Stopped,
    StopReason,
    StopRequests,
    StopSignals,
    ends_on_signals,
    stopped,
)
from tests.conftest import Runs
from tests.training.test_training import ranks_of, wait_for

LISTENER = """
import sys, time
from pipeline.training.stopping import StopSignals
signals = StopSignals(same_request_seconds=0.3)
print("listening", flush=True)
while True:
    time.sleep(0.02)
    print(signals.caught, flush=True)
"""


@pytest.fixture
def listener():
    process = subprocess.Popen(
        [sys.executable, "-c", LISTENER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "listening\n"
    yield process
    process.kill()
    process.wait()


def said(process: subprocess.Popen, wanted: str) -> None:
    assert process.stdout is not None
    for _ in range(500):
        if process.stdout.readline().strip() == wanted:
            return
    raise AssertionError(f"{wanted} was never said")


class NoSignals(StopSignals):
    """Of a process that must keep its own handlers."""

    def __init__(self) -> None:
        self.caught = None


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGUSR1])
def test_the_first_signal_is_a_request_and_a_late_sigterm_an_end(listener, first):
    said(listener, "None")
    listener.send_signal(first)
    said(listener, first.name)
    listener.send_signal(signal.SIGTERM)  # the same request, passed on by somebody else
    time.sleep(0.4)
    listener.send_signal(signal.SIGUSR1)
    said(listener, first.name)
    listener.send_signal(signal.SIGTERM)
    assert listener.wait(timeout=10) == 128 + signal.SIGTERM


def test_only_rank_0_looks_for_the_file_and_once_a_second(tmp_path):
    requests = {rank: StopRequests(NoSignals(), tmp_path, rank, 0, 0.0) for rank in (0, 1)}
    assert requests[0].wish() is None
    (tmp_path / STOP_FILE).touch()
    assert requests[0].wish() is None
    time.sleep(1.05)
    wish = requests[0].wish()
    assert wish is not None and not wish.requeue and str(tmp_path / STOP_FILE) in wish.text
    assert requests[1].wish() is None
    requests[0].clear()
    requests[0].clear()
    assert not (tmp_path / STOP_FILE).exists()


def test_the_limit_keeps_time_back_for_a_step_and_a_save(tmp_path):
    now = time.time()

    def wishes(passed: float, save: float | None, step: float) -> bool:
        requests = StopRequests(NoSignals(), tmp_path, 1, 1000, began=now - passed)
        if save is not None:
            requests.saved(save)
            requests.saved(save / 2)
        return requests.wish(step) is not None

    assert not wishes(900, save=None, step=10)
    assert wishes(960, save=None, step=10)
    assert not wishes(960, save=10, step=10)
    assert wishes(980, save=10, step=10)
    assert wishes(700, save=200, step=1)
    assert StopRequests(NoSignals(), tmp_path, 1, 0, began=now - 1e9).wish() is None


def test_a_signal_names_itself(tmp_path):
    signals = NoSignals()
    requests = StopRequests(signals, tmp_path, 3, 0, 0.0)
    signals.caught = "SIGUSR1"
    assert requests.wish() == StopReason("SIGUSR1", requeue=True)


def test_an_operators_wish_counts_more_than_a_schedulers():
    preempted = (StopReason("SIGTERM", requeue=True), "rank 1 on a")
    wanted = (StopReason("the file x/STOP", requeue=False), "rank 0 on b")
    stop = stopped(7, [preempted], "saved")
    assert str(stop) == "stopped at step 7 because of SIGTERM on rank 1 on a: saved; the same command continues"
    assert (stop.exit_code, stop.step) == (EXIT_REQUEUE, 7)
    stop = stopped(7, [preempted, wanted], "saved")
    assert str(stop) == "stopped at step 7 because of the file x/STOP: saved; the same command continues"
    assert stop.exit_code == 0


def test_a_stage_of_one_process_ends_cleanly_and_handlers_come_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    left = []

    @ends_on_signals("evaluate")
    def stage(number: int) -> int:
        try:
            os.kill(os.getpid(), number)
            time.sleep(5 if number else 0)
        finally:
            left.append(number)
        return number

    for number in (signal.SIGTERM, signal.SIGUSR1):
        with pytest.raises(Stopped, match=f"evaluate stopped because of {signal.Signals(number).name}") as caught:
            stage(number)
        assert caught.value.exit_code == EXIT_REQUEUE
    assert left == [signal.SIGTERM, signal.SIGUSR1]
    assert stage(0) == 0
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_is_not_lost_where_a_stage_goes_on_after_any_error():
    @ends_on_signals("evaluate")
    def stage() -> str:
        with suppress(Exception):  # as where MLflow is told
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        return "done"

    with pytest.raises(Stopped, match="evaluate stopped because of SIGTERM"):
        stage()


class Command:
    """`adaponder train` of a recipe, in the background."""

    def __init__(self, runs: Runs, recipe: dict, *arguments: str) -> None:
        self.runs, self.recipe = runs, recipe
        self.folder = runs.root / recipe["name"]
        self.process = subprocess.Popen(
            runs.command("train", recipe, *arguments),
            env=runs.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def until_step(self, step: int) -> Command:
        file = self.folder / "metrics.jsonl"
        wait_for(lambda: file.is_file() and f'{{"step": {step},' in file.read_text(), self.process)
        return self

    def signal_rank(self, rank: int, number: int) -> None:
        found = [one for one in ranks_of(self.runs, self.recipe) if one.environ().get("RANK") == str(rank)]
        found[0].send_signal(number)

    def end(self) -> tuple[int, str, str]:
        try:
            output, errors = self.process.communicate(timeout=60)
        except BaseException:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise
        assert not ranks_of(self.runs, self.recipe)
        return self.process.returncode, output, errors

    def events(self, kind: str) -> list[dict]:
        lines = [json.loads(line) for line in (self.folder / "events.jsonl").read_text().splitlines()]
        return [line for line in lines if line["kind"] == kind]

    def steps(self) -> list[int]:
        return [found.step for found in complete_checkpoints(self.folder / "checkpoints")]


def long(recipe: dict, steps: int = 5000) -> dict:
    recipe["train"]["phases"][0]["steps"] = steps
    recipe["train"]["checkpoint_every_steps"] = 100_000
    return recipe


@pytest.mark.slow
def test_sigterm_on_one_rank_in_a_step_and_while_loading_and_then_the_stop_file(runs, recipe):
    command = Command(runs, long(recipe)).until_step(3)
    command.signal_rank(1, signal.SIGTERM)
    code, output, errors = command.end()
    assert code == EXIT_REQUEUE, output + errors
    stop = command.events("training_stopped")[-1]
    assert stop["requeue"] and stop["step"] >= 3
    assert errors == f"adaponder: {stop['message']}\n"
    assert "because of SIGTERM on rank 1 on " in errors and ": saved; the same command continues" in errors
    assert command.steps() == [0, stop["step"]]
    assert '"status": "KILLED"' in (command.folder / "mlflow.json").read_text()

    loading = Command(runs, recipe)
    wait_for(lambda: len(loading.events("training_started")) == 2, loading.process)  # engine and states come next
    loading.signal_rank(0, signal.SIGTERM)
    code, output, errors = loading.end()
    assert code == EXIT_REQUEUE, output + errors
    assert f"stopped at step {stop['step']} because of SIGTERM on rank 0 on " in errors
    assert "no step was taken since" in errors
    assert loading.steps() == [0, stop["step"]]

    again = Command(runs, recipe).until_step(stop["step"] + 2)
    (again.folder / STOP_FILE).touch()
    code, output, errors = again.end()
    assert code == 0, output + errors
    assert f"because of the file {again.folder / STOP_FILE}: saved" in errors
    assert not (again.folder / STOP_FILE).exists()
    second = again.events("training_stopped")[-1]
    assert not second["requeue"]
    assert again.steps() == [0, stop["step"], second["step"]]
    assert [line["step"] for line in runs.metrics(recipe["name"])] == list(range(1, second["step"] + 1))


@pytest.mark.slow
def test_a_signal_to_the_command_before_the_first_step(runs, recipe):
    command = Command(runs, long(recipe))
    logs = command.folder / "logs"
    wait_for(lambda: len(list(logs.glob("attempt-001-rank-*.log"))) == 2, command.process)
    command.process.send_signal(signal.SIGUSR1)  # the ranks are still importing
    code, output, errors = command.end()
    assert code == EXIT_REQUEUE, output + errors
    assert "stopped at step 0 because of SIGUSR1 on rank " in errors and "no step was taken since" in errors
    assert command.steps() in ([], [0])


@pytest.mark.slow
def test_the_time_limit(runs, recipe):
    limited = Command(runs, long(recipe), "--set", "train.stop_after_seconds=25")
    code, output, errors = limited.end()
    assert code == EXIT_REQUEUE, output + errors
    step = limited.events("training_stopped")[-1]["step"]
    assert f"stopped at step {step} because of train.stop_after_seconds 25 on rank " in errors
    assert not limited.steps() or limited.steps()[-1] == step


@pytest.mark.slow
def test_sigterm_in_a_save_finishes_it_first(runs, recipe):
    recipe["train"]["checkpoint_every_steps"] = 1
    recipe["train"]["phases"][0]["steps"] = 5000
    command = Command(runs, recipe).until_step(2)
    checkpoints = command.folder / "checkpoints"
    wait_for(lambda: list(checkpoints.glob("*.partial")), command.process)
    command.signal_rank(random.Random(os.getpid()).randrange(2), signal.SIGTERM)
    code, output, errors = command.end()
    assert code == EXIT_REQUEUE, output + errors
    assert not list(checkpoints.glob("*.partial"))
    step = command.events("training_stopped")[-1]["step"]
    assert command.steps() == list(range(step + 1))


@pytest.mark.slow
def test_sigterm_in_an_evaluation_leaves_nothing_half_done(runs, recipe):
    recipe["train"]["phases"] = [{"name": "only", "steps": 1, "halting": False}]
    recipe["train"]["ranks"] = 1
    runs.train(recipe)
    process = subprocess.Popen(
        runs.command("evaluate", recipe),
        env=runs.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    status = Path(f"/proc/{process.pid}/status")
    wait_for(lambda: catches(status, signal.SIGUSR1), process)
    process.terminate()
    output, errors = process.communicate(timeout=60)
    assert process.returncode == EXIT_REQUEUE, output + errors
    assert errors == "adaponder: evaluate stopped because of SIGTERM: the same command does it again\n"
    assert not list((runs.root / recipe["name"]).glob("evaluation/*/validation"))


def catches(status: Path, number: int) -> bool:
    """Whether that process has a handler for the signal."""
    mask = next(line for line in status.read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(mask.split()[1], 16) >> (number - 1) & 1)
