"""One command trains with a watcher beside it, which is killed with -9 at random moments; a real MLflow server has it.

Prints its seed; CHAOS_SEED=... gives the same moments again. The server is asked through its REST API alone.
"""

from __future__ import annotations

import os
import random

import pytest

from pipeline.run_status import status_of
from tests.tracking.mlflow_server import free_port, mlflow_server
from tests.watching.mlflow_rest import MlflowRest, metrics, tags
from tests.watching.watchers import finish, judged, leftovers, note_results, start, watchers_beside

pytestmark = pytest.mark.slow

KILLS = 4
LONGEST_SECONDS = 6.0
"""Between two kills; a watcher needs some three to begin its first judgement."""
OWED = [(0, "validation"), (10, "validation"), (20, "depth"), (20, "validation")]


def test_training_and_evaluations_are_under_one_run_of_the_server(run, tmp_path):
    seed = int(os.environ.get("CHAOS_SEED") or random.randrange(1 << 30))
    print("CHAOS_SEED", seed)
    generator = random.Random(seed)
    address = f"http://127.0.0.1:{(port := free_port())}"
    with mlflow_server(port, tmp_path / "served.db", tmp_path / "artifacts"):
        every = ("--set", "train.checkpoint_every_steps=10")
        command = start(run, "train", "--watch", *every, MLFLOW_TRACKING_URI=address)
        written: dict = {}
        killed: set[int] = set()
        try:
            while len(killed) < KILLS and command.poll() is None:
                note_results(run, written, generator.uniform(0.1, LONGEST_SECONDS))
                for watcher in watchers_beside(command):
                    watcher.kill()
                    killed.add(watcher.pid)
            while command.poll() is None:
                note_results(run, written, 0.2)
        finally:
            code, said = finish(command)
        assert code == 0, said
        assert len(killed) > 1, "it was over too soon"
        assert said.count("watch: the watcher ended, started again") == len(killed), said
        assert judged(run) == {(f"step-{step:08d}", suite) for step, suite in OWED}
        assert {path: len(times) for path, times in written.items()} == dict.fromkeys(written, 1), "written once each"
        assert len(written) == len(OWED) and not leftovers(run)
        assert status_of(run).state == "finished"

        rest = MlflowRest(address)
        found = rest.runs("adaponder")
        (parent,) = [one for one in found if "mlflow.parentRunId" not in tags(one)]
        children = [one for one in found if one is not parent]
        assert {tags(one)["mlflow.parentRunId"] for one in children} == {parent["info"]["run_id"]}
        assert parent["info"]["status"] == "FINISHED"
        assert [step for step, _ in rest.history(parent, "train/loss")] == list(range(1, 21))
        about = [(int(tags(one)["adaponder.step"]), tags(one)["adaponder.suite"], one) for one in children]
        assert sorted((step, suite) for step, suite, _ in about) == OWED, "one child each"
        for step, suite, child in about:
            assert child["info"]["status"] == "FINISHED"
            values = metrics(child)
            assert values and all(name.startswith(f"eval/{suite}/") for name in values)
            for name, (at, value) in values.items():
                assert rest.history(child, name) == [(step, value)] and at == step, "sent once"
            folder = run.evaluation(f"step-{step:08d}", suite)
            here = {f"{suite}/{path.name}": path.read_bytes() for path in folder.iterdir() if path.is_file()}
            assert rest.artifacts(child, suite) == here
        losses = {step: metrics(child)["eval/validation/loss"][1] for step, suite, child in about if suite != "depth"}
        assert losses[20] < losses[10] < losses[0]
