"""Runs on a real Slurm of two nodes: all stages by one command, and trainings that are stopped, requeued and broken.

What a training computes must not show any of it: losses are those of the unbroken run, bit for bit.

On a lost node: SlurmdTimeout is 20 s here (`slurm_cluster.SLURMD_TIMEOUT_SECONDS`) where sites have 300, so that the
job ends within `NODE_LOST_SECONDS`. Slurm lets a requeued job wait for two minutes; the tests let it go before that, as
an operator may (`SlurmRuns.let_go`).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.slurm_cluster import NODES, SLURMD_TIMEOUT_SECONDS, SlurmCluster
from tests.conftest import Runs, make_text_folder, tiny_recipe

pytestmark = pytest.mark.cluster

STEPS, SAVED_EVERY = 160, 40
NODE_LOST_SECONDS = 3 * SLURMD_TIMEOUT_SECONDS
"""From a node's death to the end of its job: SlurmdTimeout, and slurmctld's next look at its nodes."""
ENDS = ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT")
_NOT_THE_SAME_SECOND = 2.0


class SlurmRuns(Runs):
    """Runs whose stages are Slurm jobs."""

    def __init__(self, root: Path, cluster: SlurmCluster) -> None:
        super().__init__(root)
        self.cluster = cluster
        self.text = make_text_folder(root / "text", documents=60)

    def environment(self) -> dict[str, str]:
        project = str(Path(__file__).parents[2])
        return {**super().environment(), "SLURM_CONF": self.cluster.environment["SLURM_CONF"], "PYTHONPATH": project}

    def recipe(self, name: str, shards: Path | None = None, **train: object) -> dict:
        """Two nodes of a rank each, without GPUs; steps of some 30 ms, enough of them for something to happen."""
        recipe = tiny_recipe(name, self.text)
        del recipe["train"]["ranks"]
        pondering, halting = recipe["train"]["phases"]
        recipe["train"] |= {
            "checkpoint_every_steps": SAVED_EVERY,
            "phases": [pondering | {"steps": STEPS // 2}, halting | {"steps": STEPS - STEPS // 2}],
            **train,
        }
        recipe["cluster"] = {
            "nodes": len(NODES),
            "gpus_per_node": 0,
            "ranks_per_node": 1,
            "tokenize_jobs": 2,
            "tokenize_cpus": 1,
            # Once is enough here; both nodes are this machine, which other things may slow down.
            "preflight": {"before_training": name == "unbroken", "slow_rank_factor": 20},
            # Both nodes are this machine: a rank that takes all cores waits for the other one's threads.
            # Processes of a killed node leave temporary folders, which go with the cluster's own.
            "commands_before": ["export OMP_NUM_THREADS=1", f"export TMPDIR={self.cluster.temporary}"],
        }
        return recipe if shards is None else {**recipe, "data": {"shards": str(shards)}}

    def submit(self, recipe: dict, stage: str) -> dict[str, str]:
        """Launch by the command line; the jobs' numbers by their names."""
        # `adaponder launch slurm RECIPE`: the target stands before the recipe.
        command = self.command("launch", recipe, "--stage", stage, "--submit")
        command.insert(command.index("launch") + 1, "slurm")
        done = subprocess.run(command, env=self.environment(), capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        lines = (self.root / recipe["name"] / "launch" / "slurm-jobs.tsv").read_text().splitlines()
        return dict(line.split("\t")[1:] for line in lines)

    def output(self, name: str, job: str) -> str:
        """What Slurm has of the training's output."""
        path = self.root / name / "logs" / f"slurm-train-{job}.out"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def everything(self, name: str) -> str:
        """All of Slurm's output files and the cluster's logs, for a failed assertion."""
        files = sorted((self.root / name / "logs").glob("slurm-*.out"))
        told = "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')}" for path in files)
        return f"\n{told}\n{self.cluster.logs()}"

    def losses(self, name: str) -> list[tuple[int, float]]:
        return [(line["step"], line["train/loss"]) for line in self.metrics(name)]

    def wait_for_step(self, name: str, step: int, seconds: float = 90) -> int:
        """Wait until the run has logged `step`, and return what it has logged: training is between two steps."""
        path = self.root / name / "metrics.jsonl"
        deadline = time.monotonic() + seconds
        taken = 0
        while taken < step:
            assert time.monotonic() < deadline, f"step {taken} after {seconds:.0f} s{self.everything(name)}"
            time.sleep(0.05)
            # The last line may be half written.
            whole = path.read_text().rpartition("\n")[0].splitlines() if path.exists() else []
            taken = json.loads(whole[-1])["step"] if whole else 0
        assert taken < STEPS, "the training was too fast to be stopped in its middle: give it more steps"
        return taken

    def let_go(self, job: str, restarts: int, seconds: float = 90) -> None:
        """Wait until the job is queued again after `restarts` starts too many, and let it begin at once."""
        deadline = time.monotonic() + seconds
        while (now := self.cluster.job(job))["JobState"] != "PENDING" or int(now["Restarts"]) != restarts:
            assert time.monotonic() < deadline, f"{now}{self.cluster.logs()}"
            time.sleep(0.2)
        # slurmd refuses the job in the second in which it has ended it: "Job credential revoked".
        time.sleep(_NOT_THE_SAME_SECOND)
        self.cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now")

    def status(self, name: str) -> dict:
        """What `adaponder status --json` says."""
        command = [*self.command("status", {"name": name})[:3], "status", str(self.root / name), "--json"]
        done = subprocess.run(command, env=self.environment(), capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def runs(cluster: SlurmCluster, tmp_path_factory) -> SlurmRuns:
    return SlurmRuns(tmp_path_factory.mktemp("slurm"), cluster)


@pytest.fixture(scope="module")
def unbroken(runs: SlurmRuns) -> dict[str, dict[str, str]]:
    """All stages of a run by one command; its jobs once the last one has ended."""
    queued = runs.submit(runs.recipe("unbroken"), "all")
    runs.cluster.wait_for_job(queued["release"], *ENDS, seconds=300)
    return {f"{job['JobName']} {job.get('ArrayTaskId', '')}".strip(): job for job in runs.cluster.jobs()}


def test_all_stages_by_one_command(runs, unbroken):
    states = {name: (job["JobState"], job["ExitCode"]) for name, job in unbroken.items()}
    names = ["tokenize 1", "tokenize 2", "tokenize-finish", "train", "evaluate", "release"]
    done = ("COMPLETED", "0:0")
    assert states == {f"adaponder-unbroken-{name}": done for name in names}, runs.everything("unbroken")
    assert unbroken["adaponder-unbroken-train"]["NodeList"] == "n[1-2]"
    folder = runs.root / "unbroken"
    preflight = json.loads((folder / "launch" / "preflight.json").read_text())
    assert preflight["passed"] and sorted(rank["host"] for rank in preflight["ranks"]) == list(NODES)
    last = folder / "checkpoints" / f"step-{STEPS:08d}"
    (measured,) = folder.glob(f"evaluation/{last.name}/*/metrics.json")
    for path in (folder / "shards" / "manifest.json", last / "COMPLETE", measured, folder / "release" / "config.json"):
        assert path.is_file(), path
    losses = runs.losses("unbroken")
    assert [step for step, _ in losses] == list(range(1, STEPS + 1))
    assert losses[-1][1] < losses[0][1] - 1.0
    (started,) = [event for event in runs.events("unbroken") if event["kind"] == "training_started"]
    # torchrun gives the first rank to whichever node comes first where both have one address.
    assert sorted(started["hosts"].items()) in ([("n1", [0]), ("n2", [1])], [("n1", [1]), ("n2", [0])])


@pytest.fixture
def shards(runs, unbroken) -> Path:
    return runs.root / "unbroken" / "shards"


def test_a_signal_and_a_requeue(runs, shards):
    """USR1 saves and has the job requeued by itself; `scontrol requeue` saves too."""
    recipe = runs.recipe("requeued", shards)
    job = runs.submit(recipe, "train")["train"]
    taken = runs.wait_for_step("requeued", 10)
    runs.cluster.run("scancel", "--signal=USR1", job)
    runs.let_go(job, 1)
    first = [event for event in runs.events("requeued") if event["kind"] == "training_stopped"]
    assert len(first) == 1 and first[0]["requeue"] and taken <= first[0]["step"] < STEPS, first
    assert (runs.checkpoints("requeued") / f"step-{first[0]['step']:08d}" / "COMPLETE").is_file()
    assert "stopped, everything is saved: requeued" in runs.output("requeued", job)

    taken = runs.wait_for_step("requeued", first[0]["step"] + 10)
    runs.cluster.run("scontrol", "requeue", job)
    runs.let_go(job, 2)
    second = [event for event in runs.events("requeued") if event["kind"] == "training_stopped"][1:]
    assert len(second) == 1 and second[0]["step"] >= taken, runs.everything("requeued")

    ended = runs.cluster.wait_for_job(job, *ENDS)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "2"), runs.everything("requeued")
    begun = [event["step"] for event in runs.events("requeued") if event["kind"] == "training_started"]
    assert begun == [0, first[0]["step"], second[0]["step"]]
    assert runs.losses("requeued") == runs.losses("unbroken")


@pytest.fixture
def second_node(cluster) -> Iterator[str]:
    """Its name; it runs again afterwards, for the other tests."""
    yield NODES[1]
    cluster.start_node(NODES[1])


def test_a_lost_node(runs, shards, second_node):
    """`adaponder status` names it at once, Slurm names it and requeues the job, which goes on once the node is back."""
    job = runs.submit(runs.recipe("lost", shards), "train")["train"]
    runs.wait_for_step("lost", SAVED_EVERY + 10)
    (started,) = [event for event in runs.events("lost") if event["kind"] == "training_started"]
    began = time.monotonic()
    runs.cluster.kill_node(second_node)

    def wait_for(is_so: Callable[[], bool]) -> float:
        while not is_so():
            assert time.monotonic() - began < NODE_LOST_SECONDS, runs.everything("lost")
            time.sleep(0.2)
        return time.monotonic() - began

    left_alone = wait_for(lambda: any((runs.root / "lost" / "logs").glob("*.error.json")))
    assert runs.cluster.job(job)["JobState"] == "RUNNING", "Slurm knows nothing yet"
    status = runs.status("lost")
    # With rank 0 on the lost node nobody could note that the attempt has failed.
    assert status["state"] == ("killed" if started["hosts"][second_node] == [0] else "failed"), status
    failure = status["failure"]
    assert ([failure["rank"]], failure["host"]) == (started["hosts"][second_node], second_node), status
    named = wait_for(lambda: f"Node failure on {second_node}" in runs.output("lost", job))
    ended = wait_for(lambda: runs.cluster.job(job)["JobState"] not in ("RUNNING", "COMPLETING"))
    print(
        f"\nafter the death: the other rank ended in {left_alone:.1f} s, Slurm named it in {named:.1f} s, {ended:.1f} s"
    )
    assert runs.cluster.job(job)["JobState"] == "PENDING", runs.everything("lost")
    saved = [path.parent.name for path in runs.checkpoints("lost").glob("step-*/COMPLETE")]

    runs.cluster.start_node(second_node)
    runs.let_go(job, 1)
    assert runs.cluster.wait_for_job(job, *ENDS)["JobState"] == "COMPLETED", runs.everything("lost")
    begun = [event["step"] for event in runs.events("lost") if event["kind"] == "training_started"]
    assert [f"step-{step:08d}" for step in begun] == [f"step-{0:08d}", max(saved)] and begun[1] >= SAVED_EVERY
    assert runs.losses("lost") == runs.losses("unbroken")


def test_a_failure_is_one_line_with_host_and_rank(runs, shards):
    """Shards that are cut short while the ranks read them."""
    own = runs.root / "cut-shards"
    shutil.copytree(shards, own)
    job = runs.submit(runs.recipe("cut", own), "train")["train"]
    runs.wait_for_step("cut", 5)
    for shard in own.glob("train-*.tar"):
        os.truncate(shard, 0)
    ended = runs.cluster.wait_for_job(job, *ENDS)
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "1:0"), runs.everything("cut")
    output = runs.output("cut", job)
    print(output)
    told = [line for line in output.splitlines() if f"{own}/train-" in line]
    assert len(told) == 2, output
    assert sorted(re.sub("rank [01]", "rank", line).partition(":")[0] for line in told) == ["rank on n1", "rank on n2"]
    assert "Root Cause" not in output and "Traceback" not in output
    failure = runs.status("cut")["failure"]
    assert f"{own}/train-" in failure["message"] and failure["host"] in NODES


def test_a_mistake_ends_with_2(runs, shards):
    """What only the ranks find out keeps its exit code."""
    recipe = runs.recipe("mistaken", runs.root / "no-such-shards")
    job = runs.submit(recipe, "train")["train"]
    ended = runs.cluster.wait_for_job(job, *ENDS)
    output = runs.output("mistaken", job)
    print(output)
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "2:0"), output
    told = [line for line in output.splitlines() if "no-such-shards" in line]
    assert told and all(line.startswith("rank ") and " on n" in line for line in told), output
    assert "Traceback" not in output
