"""A file of hosts over real ssh and pdsh: the same numbers as on one machine, and an end with a name where a host is
gone, though nothing there was killed and nobody hung up."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from launch.local import threads_per_rank
from pipeline.checkpoint import complete_checkpoints
from tests.cluster.network_namespaces import INTERFACE, Hosts, hosts_on_this_machine
from tests.conftest import Runs, tiny_recipe

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

NAMES = ("worker-1", "worker-2")
KEYS = ("train/loss", "train/ce_loss", "train/ponder_loss", "train/grad_norm", "depth/mean")
STEPS = 30
"""Of each phase."""
STARTED_SECONDS = 240.0
"""For all of a launch, on a machine that is busy with other things too."""
NAMED_SECONDS = 60.0
"""After the cable was pulled every rank's log names the host."""
ENDED_SECONDS = 120.0
"""After that nothing of the run is left anywhere."""


@pytest.fixture(scope="module")
def hosts(tmp_path_factory) -> Iterator[Hosts]:
    with hosts_on_this_machine(tmp_path_factory.mktemp("hosts"), NAMES) as hosts:
        yield hosts


@pytest.fixture(scope="module")
def plain(text_folder: Path) -> Callable[[str], dict]:
    """Recipes by name, on two ranks, as long as it takes to pull a cable; how long to wait for ranks is left to the
    defaults."""

    def recipe(name: str) -> dict:
        made = tiny_recipe(name, text_folder)
        del made["train"]["timeout_seconds"]
        for phase in made["train"]["phases"]:
            phase["steps"] = STEPS
        return made

    return recipe


@pytest.fixture(scope="module")
def unbroken(runs: Runs, plain, shards: Path) -> list[dict]:
    """Metrics on one machine."""
    return runs.train({**plain("one-machine"), "data": {"shards": str(shards)}})


class Launch:
    """`adaponder launch hosts ... --submit` on the operator's machine."""

    def __init__(self, runs: Runs, hosts: Hosts, recipe: dict, stage: str, *options: str, slots=NAMES) -> None:
        self.folder = runs.root / recipe["name"]
        hostfile = runs.root / f"{recipe['name']}.hosts"
        hostfile.write_text("".join(f"{host} slots=1\n" for host in slots))
        cluster = {
            "gpus_per_node": 0,
            "ranks_per_node": 1,
            "network_interface": INTERFACE,
            # As many as `adaponder train` gives a rank here: sums are then added up in the same order.
            "environment": ["PYTHONPATH", "OMP_NUM_THREADS"],
            # Once is enough here; both hosts are this machine, which other things may slow down.
            "preflight": {"before_training": stage == "all", "slow_rank_factor": 20},
            "hosts": {"hostfile": str(hostfile), "master_address": hosts.address("worker-1")},
        }
        command = runs.command("launch", {**recipe, "cluster": cluster}, "--stage", stage, "--submit", *options)
        command.insert(command.index("launch") + 1, "hosts")
        self.output = open(runs.root / f"{recipe['name']}.output", "w+")  # noqa: SIM115 - closed by `end`
        self.errors = open(runs.root / f"{recipe['name']}.errors", "w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            command,
            env={
                **runs.environment(),
                "OMP_NUM_THREADS": str(threads_per_rank(2)),
                "PDSH_SSH_ARGS_APPEND": f"-F {hosts.ssh_config}",
            },
            stdout=self.output,
            stderr=self.errors,
        )

    def end(self, timeout: float) -> tuple[int, str, str]:
        """Exit code, stdout and stderr, once it has ended by itself."""
        try:
            code = self.process.wait(timeout=timeout)
        finally:
            with suppress(psutil.NoSuchProcess):  # it has ended
                command = psutil.Process(self.process.pid)
                for process in [command, *command.children(recursive=True)]:
                    with suppress(psutil.NoSuchProcess):
                        process.kill()
            told = []
            for file in (self.output, self.errors):
                file.seek(0)
                told.append(file.read())
                file.close()
        return code, told[0], told[1]

    def log(self, rank: int, attempt: int = 1) -> str:
        return (self.folder / f"logs/attempt-{attempt:03d}-rank-{rank:04d}.log").read_text(errors="replace")

    def steps(self) -> int:
        metrics = self.folder / "metrics.jsonl"
        return len(metrics.read_text().splitlines()) if metrics.is_file() else 0


def largest_difference(one: list[dict], other: list[dict]) -> float:
    assert [line["step"] for line in one] == [line["step"] for line in other] == list(range(1, 2 * STEPS + 1))
    return max(abs(a[key] - b[key]) for a, b in zip(one, other, strict=True) for key in KEYS)


def wait_for(happened: Callable[[], object], within: float, what: str, pause: float = 0.1) -> float:
    """Seconds until it has."""
    began = time.monotonic()
    while not happened():
        assert time.monotonic() - began < within, what
        time.sleep(pause)
    return time.monotonic() - began


def nothing_runs(hosts: Hosts) -> bool:
    return not any(hosts.processes(host) for host in NAMES)


def test_all_stages_train_on_two_hosts_as_on_one_machine(runs, hosts, plain, unbroken):
    launch = Launch(runs, hosts, plain("two-hosts"), "all")
    code, output, errors = launch.end(timeout=STARTED_SECONDS)
    assert code == 0, output[-3000:] + errors
    assert largest_difference(unbroken, runs.metrics("two-hosts")) == 0.0
    assert nothing_runs(hosts)
    monitored = [(launch.folder / f"logs/system-node-{node:04d}.jsonl").read_text() for node in range(2)]
    assert [json.loads(lines.splitlines()[0])["host"] for lines in monitored] == list(NAMES)
    # What is not training is the starting machine's.
    events = {event["kind"]: event["host"] for event in runs.events("two-hosts")}
    assert events["training_finished"] == "worker-1"
    assert (launch.folder / "shards" / "manifest.json").is_file()
    assert list((launch.folder / "evaluation").glob("step-*/*/metrics.json"))
    assert (launch.folder / "release" / "provenance.json").is_file()


def test_a_host_that_is_cut_off_is_named_everywhere_and_the_run_goes_on_without_it(
    runs, hosts, plain, shards, unbroken
):
    recipe = {**plain("cut-off"), "data": {"shards": str(shards)}}
    launch = Launch(runs, hosts, recipe, "train")
    wait_for(lambda: launch.steps() >= STEPS // 2, STARTED_SECONDS, "no steps", pause=0.01)
    hosts.cut_off("worker-2")
    began = time.monotonic()
    try:
        for rank in range(2):
            wait_for(
                lambda rank=rank: "worker-2" in launch.log(rank),
                NAMED_SECONDS - (time.monotonic() - began),
                f"rank {rank} does not name the host",
            )
            print(f"named by rank {rank} after", round(time.monotonic() - began, 1), "s")
        wait_for(lambda: nothing_runs(hosts), ENDED_SECONDS - (time.monotonic() - began), "the run is still there")
        print("all ended after", round(time.monotonic() - began, 1), "s")
        code, output, errors = launch.end(timeout=ENDED_SECONDS - (time.monotonic() - began))
        print("launch ended after", round(time.monotonic() - began, 1), "s")
    finally:
        hosts.restore("worker-2")
    assert code == 1, output + errors
    assert errors.startswith("adaponder: ") and errors.count("\n") == 1 and "worker-2" in errors
    assert launch.steps() < 2 * STEPS
    told = "no answer from worker-2 (rank 1) for 30 s", "worker-2 is cut off, its network interface lan0 has no link"
    assert told[0] in launch.log(0) and told[1] in launch.log(1)
    command = [sys.executable, "-m", "pipeline", "status", str(launch.folder), "--json"]
    shown = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)
    assert shown["state"] == "failed" and "worker-2" in shown["failure"]["message"]
    assert shown["failure"]["host"] in NAMES and shown["failure"]["rank"] in (0, 1)

    kept = complete_checkpoints(launch.folder / "checkpoints")[-1]
    code, output, errors = Launch(runs, hosts, recipe, "train", "--nodes", "1").end(timeout=STARTED_SECONDS)
    assert code == 0, output + errors
    (continued,) = [event for event in runs.events("cut-off") if event["kind"] == "continued_elsewhere"]
    assert continued["message"].startswith(f"{kept.name} goes on with ")
    difference = largest_difference(unbroken, runs.metrics("cut-off"))
    print("largest difference", difference)
    assert difference < 1e-4


@pytest.mark.parametrize("what", ["no such host", "no sshd"])
def test_a_host_that_is_not_reached_is_named_and_leaves_nothing_on_the_other(runs, hosts, plain, shards, what):
    names = ("worker-1", "nowhere") if what == "no such host" else NAMES
    recipe = {**plain(what.replace(" ", "-")), "data": {"shards": str(shards)}}
    if what == "no sshd":
        hosts.stop_sshd("worker-2")
    try:
        code, output, errors = Launch(runs, hosts, recipe, "train", slots=names).end(timeout=STARTED_SECONDS)
    finally:
        if what == "no sshd":
            hosts.start_sshd("worker-2")
    assert code == 1, output + errors
    said = {"no such host": "Could not resolve hostname", "no sshd": "Connection refused"}
    assert errors.startswith(f"adaponder: {names[1]}: ssh: ") and said[what] in errors and errors.count("\n") == 1
    print("nothing left after", wait_for(lambda: nothing_runs(hosts), 60, "the run is still there"), "s")
