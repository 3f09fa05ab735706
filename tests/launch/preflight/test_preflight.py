"""Each thing that a preflight has to find, really there; and a sound cluster, in which it finds nothing."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.conftest import tiny_recipe
from tests.launch.preflight.two_nodes import Node, other_version, run_nodes
from tests.test_launch_commands import CPU, launch

IS_RANK = {("-m", "pipeline.preflight_rank")}
COLLECTIVE = ("all_reduce", "slow_ranks", "mock_step")


def can_mount() -> bool:
    """Whether this process may mount something that only one process sees."""
    if shutil.which("unshare") is None:
        return False
    return not subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode


def resolved(runs, recipe, **preflight) -> list[str]:
    """The module of a rank with its recipe and runs."""
    recipe = {**recipe, "cluster": {"gpus_per_node": 0, "ranks_per_node": 1, "preflight": preflight}}
    return ["pipeline.preflight_rank", str(runs.write(recipe)), "--runs", str(runs.root)]


@pytest.fixture(scope="module")
def faulty(runs, text_folder, shards, tmp_path_factory):
    """Everything wrong at once that does not keep the ranks from telling each other."""
    folder = tmp_path_factory.mktemp("faulty")
    broken = shutil.copytree(shards, folder / "shards")
    shard = broken / "train-000000.tar"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    recipe = {**tiny_recipe("faulty", text_folder), "data": {"shards": str(broken)}}
    around = []
    if can_mount():
        # The second node has something else under the name of the folder of runs.
        (folder / "other").mkdir()
        around = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" "$1" && shift && exec "$@"']
        around += [str(folder / "other"), str(runs.root)]
    module = resolved(runs, recipe, shards="all", timeout_seconds=60)
    visible = shutil.copy(module[1], folder / "recipe.yaml")
    module[1] = str(visible)
    (runs.root / "faulty").mkdir()
    away = {"MLFLOW_TRACKING_URI": "http://someone:secret@127.0.0.1:9"}
    version = {"PYTHONPATH": other_version(folder / "packages", "webdataset", "0.0.1")}
    nodes = [
        Node(away, arguments=("--gpus-per-node", "2")),
        Node({**away, **version}, around, arguments=("--gpus-per-node", "2")),
    ]
    report = runs.root / "faulty" / "launch" / "preflight.json"
    ended = run_nodes(module, nodes, report, runs.environment())
    assert ended.codes == [1, 1], ended.output
    assert ended.report["passed"] is False
    return ended


@pytest.mark.slow
def test_another_version_on_one_node_is_found(faulty):
    assert faulty.verdict("versions") == "failed"
    assert "webdataset: 1." in faulty.messages("versions")
    assert "(node 0), 0.0.1 on" in faulty.messages("versions")
    assert "(node 1): install the same" in faulty.messages("versions")


@pytest.mark.slow
def test_missing_gpus_are_found(faulty):
    assert faulty.verdict("devices") == "failed"
    assert faulty.messages("devices").count("has no GPU, 2 are asked for") == 2


@pytest.mark.slow
def test_a_folder_that_is_not_shared_is_found(faulty):
    if not can_mount():
        pytest.skip("mounting for one process alone is not allowed here")
    assert faulty.verdict("shared_folder") == "failed"
    assert "(node 1) is not the folder" in faulty.messages("shared_folder")
    assert "(node 0) is not" not in faulty.messages("shared_folder")


@pytest.mark.slow
def test_a_corrupt_shard_is_found(faulty):
    assert faulty.verdict("shards") == "failed"
    assert "train-000000.tar is corrupt" in faulty.messages("shards")
    assert faulty.messages("shards").count("corrupt") == 1


@pytest.mark.slow
def test_an_mlflow_server_that_is_away_is_found_and_its_password_is_not_told(faulty):
    assert faulty.verdict("tracking") == "failed"
    assert "http://***@127.0.0.1:9 does not answer" in faulty.messages("tracking")
    assert "secret" not in faulty.output + json.dumps(faulty.report)


@pytest.mark.slow
def test_nothing_is_computed_together_on_different_ground(faulty):
    assert [faulty.verdict(name) for name in COLLECTIVE] == ["skipped"] * 3
    assert "needs versions, devices" in faulty.messages("mock_step")
    assert [faulty.verdict(name) for name in ("memory", "clocks", "network")] == ["ok"] * 3


def hold_up_rank_below(node: psutil.Process, said: Path, over: threading.Event) -> None:
    """Let the node's rank stand still for most of its time, from the check of slow ranks on until `over`."""
    rank = None
    while "slow_ranks" not in said.read_text() and not over.wait(0.05):
        pass
    while not over.wait(0.02):
        with suppress(psutil.Error, ProcessLookupError):
            if rank is None:
                # torchrun's own command line names the module, too, behind --module.
                below = [(process, process.cmdline()) for process in node.children(recursive=True)]
                rank = next((process for process, words in below if set(itertools.pairwise(words)) >= IS_RANK), None)
            else:
                os.kill(rank.pid, signal.SIGSTOP)
                time.sleep(0.3)
                os.kill(rank.pid, signal.SIGCONT)


@pytest.mark.slow
def test_a_rank_that_is_held_up_is_named_and_no_other(runs, recipe):
    module = resolved(runs, recipe, skip=["memory", "disk", "shards", "tracking", "mock_step"], slow_rank_factor=2.5)
    over = threading.Event()

    def hold_up(started: list[psutil.Process], said: Path) -> None:
        threading.Thread(target=hold_up_rank_below, args=(started[1], said, over), daemon=True).start()

    report = runs.root / recipe["name"] / "launch" / "preflight.json"
    try:
        ended = run_nodes(module, [Node(), Node()], report, runs.environment(), hold_up)
    finally:
        over.set()
    assert ended.codes == [1, 1], ended.output
    assert ended.verdict("slow_ranks") == "failed", ended.output
    assert "rank 1 on" in ended.messages("slow_ranks")
    assert "rank 0 on" not in ended.messages("slow_ranks")
    assert ended.verdict("all_reduce") == "ok"


@pytest.mark.slow
def test_a_sound_machine_passes_and_says_so_in_json(runs, recipe):
    slow = "cluster.preflight.slow_rank_factor=20"  # other tests may run beside this one
    done = runs.adaponder("preflight", recipe, "--json", "--tokenized", "--set", slow)
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout)
    assert said == json.loads((runs.root / recipe["name"] / "launch" / "preflight.json").read_text())
    assert said["passed"]
    assert [rank["rank"] for rank in said["ranks"]] == [0, 1]
    assert {check["name"]: check["verdict"] for check in said["checks"]} == dict.fromkeys(
        (
            *("versions", "devices", "memory", "disk", "shared_folder", "clocks", "shards", "tracking", "network"),
            *COLLECTIVE,
        ),
        "ok",
    )
    left = [path.name for path in (runs.root / recipe["name"]).iterdir() if path.name.startswith(".")]
    assert left == []


@pytest.mark.slow
def test_a_full_disk_is_refused_before_anything_is_submitted(runs, recipe):
    folder = runs.root / recipe["name"]
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    # Checkpoints of 2.6 MB, every second step, and none is removed.
    recipe["train"]["keep_last"] = "all"
    recipe["train"]["checkpoint_every_steps"] = 1
    recipe["model"]["backbone"]["hidden_size"] = 128
    try:
        done = launch(runs, recipe, "local", "--submit", "--stage", "train", *CPU)
        assert not (folder / "launch" / "local").exists()
    finally:
        subprocess.run(["umount", str(folder)], check=True)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"disk: {folder} has" in done.stderr
    assert "make room" in done.stderr


@pytest.mark.slow
def test_a_training_does_not_start_on_nodes_that_are_not_sound(runs, recipe):
    module = resolved(runs, recipe, skip=["memory", "disk", "shards", "tracking"])
    module = ["pipeline.training.worker", *module[1:], "--preflight", "2"]
    report = runs.root / recipe["name"] / "launch" / "preflight.json"
    ended = run_nodes(module, [Node(), Node()], report, runs.environment())
    assert ended.codes == [1, 1], ended.output
    assert "has no GPU, 2 are asked for" in ended.messages("devices")
    assert not (runs.root / recipe["name"] / "checkpoints").exists()
    assert not (runs.root / recipe["name"] / "events.jsonl").exists()
