"""Judging as jobs of a cluster: what is asked for, and how its end is found; the programs are stand-ins on PATH."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from launch.targets.launching import Launch
from pipeline.errors import WorldError
from pipeline.recipe_reader import parse_recipe
from pipeline.run_folder import RunFolder
from pipeline.watching.attempt import Try
from pipeline.watching.cluster import KubernetesPlace, SlurmPlace
from tests.conftest import tiny_recipe
from tests.launch.targets.launched import programs

NASTY = 'it\'s "$one" `two`'
ATTEMPT = Try("step-00000020", ["validation", "depth"], 3)

SBATCH = """
echo "$PWD $*" >>"$HOME/asked"
[[ ! -e $HOME/refuses ]] || { echo "sbatch: error: invalid partition" >&2; exit 1; }
echo 41 >"$HOME/queued"; echo 41
"""
SQUEUE = """
echo "$*" >>"$HOME/looked"
[[ ! -e $HOME/away ]] || { echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1; }
cat "$HOME/queued" 2>/dev/null || true
"""
KUBECTL = """
echo "$*" >>"$HOME/asked"
case "$*" in
    *apply*) echo created ;;
    *logs*) echo "adaponder: no such suite" ;;
    *get*) cat "$HOME/state" 2>/dev/null || true ;;
esac
"""


def launch_of(where: str, root: Path, **cluster) -> Launch:
    content = tiny_recipe("tiny", Path("/text"))
    content["evaluate"]["jobs"] = {"where": where}
    content["cluster"] = {
        "gpus_per_node": 0,
        "ranks_per_node": 1,
        "kubernetes": {"image": "registry.example/adaponder:1", "volume_claim": "runs"},
        **cluster,
    }
    recipe = parse_recipe(content, "test")
    return Launch(where, recipe, RunFolder(root, recipe), "evaluate")


@pytest.fixture
def home(tmp_path, monkeypatch):
    for name, value in programs(tmp_path / "bin", sbatch=SBATCH, squeue=SQUEUE, kubectl=KUBECTL).items():
        monkeypatch.setenv(name, value)
    return tmp_path / "bin"


@pytest.mark.parametrize("name", ["plain", NASTY])
def test_the_script_that_is_submitted_judges_what_is_owed_and_shellcheck_finds_nothing(home, tmp_path, name):
    root = tmp_path / name
    launch = launch_of("slurm", root, slurm={"partition": "main", "time_limit": "1-00:00:00"})
    recipe_file = launch.folder.evaluation_jobs / "recipe-0.yaml"
    running = SlurmPlace(launch, recipe_file, 5.0).begin(ATTEMPT)
    script = launch.folder.evaluation_jobs / "step-00000020" / "eval-00000020-3.sbatch"
    assert (home / "asked").read_text() == f"{launch.folder.logs} --parsable {script}\n"
    text = script.read_text()
    assert "#SBATCH --job-name=adaponder-tiny-eval-00000020-3\n" in text
    assert "#SBATCH --partition=main\n" in text and "--gpus-per-node" not in text
    assert "written by `adaponder watch`" in text
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", str(script)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
    # srun without a cluster: what would be run, word by word
    environment = programs(home, srun='while [[ "$1" == --* ]]; do shift; done; printf "%s\\0" "${@:2}"')
    done = subprocess.run(["bash", str(script)], env=environment, capture_output=True, text=True, check=True)
    suites = ["--suite", "validation", "--suite", "depth"]
    assert done.stdout.split("\0")[:-1] == [
        *("-m", "pipeline", "evaluate", str(recipe_file), "--runs", str(root), "--checkpoint", "step-00000020"),
        *suites,
    ]
    assert running.ended() is None


def test_the_end_of_a_slurm_job_is_seen_with_its_error_line(home, tmp_path):
    launch = launch_of("slurm", tmp_path)
    running = SlurmPlace(launch, tmp_path / "recipe.yaml", 5.0).begin(ATTEMPT)
    (home / "away").touch()
    (home / "queued").unlink()
    assert running.ended() is None, "a controller that is away says nothing of the job"
    (home / "away").unlink()
    log = launch.folder.logs / "slurm-eval-00000020-3-41.out"
    log.write_text("some words\nadaponder: the disk is full\nsrun: error: task 0 exited\n")
    ended = running.ended()
    assert ended is not None and (ended.error, ended.stopped) == ("the disk is full", False)
    assert "--name=adaponder-tiny-eval-00000020-3" in (home / "looked").read_text()


def test_a_job_of_an_earlier_watcher_is_found_by_its_name(home, tmp_path):
    place = SlurmPlace(launch_of("slurm", tmp_path), tmp_path / "recipe.yaml", 5.0)
    (home / "queued").write_text("41\n")
    running = place.again("eval-00000020-3")
    assert running is not None and running.ended() is None
    (home / "queued").unlink()
    ended = running.ended()
    assert ended is not None and ended.stopped, "it may never have been asked for, and has not failed"


def test_what_slurm_refuses_is_told(home, tmp_path):
    (home / "refuses").touch()
    with pytest.raises(WorldError, match="sbatch: .*invalid partition"):
        SlurmPlace(launch_of("slurm", tmp_path), tmp_path / "recipe.yaml", 5.0).begin(ATTEMPT)


def test_the_manifest_that_is_applied_and_the_end_of_its_job(home, tmp_path):
    launch = launch_of("kubernetes", tmp_path)
    recipe_file = launch.folder.evaluation_jobs / "recipe-0.yaml"
    running = KubernetesPlace(launch, recipe_file, 5.0).begin(ATTEMPT)
    path = launch.folder.evaluation_jobs / "step-00000020" / "eval-00000020-3.yaml"
    job = yaml.safe_load(path.read_text())
    assert job["metadata"]["name"] == "tiny-eval-00000020-3"
    assert job["spec"]["backoffLimit"] == 0
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"][-6:] == ["--checkpoint", "step-00000020", "--suite", "validation", "--suite", "depth"]
    assert container["command"][4:7] == ["/data/runs/tiny/evaluation/jobs/recipe-0.yaml", "--runs", "/data/runs"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert "recipe" not in {volume["name"] for volume in pod["volumes"]}
    assert (home / "asked").read_text() == f"--namespace default apply -f {path}\n"
    (home / "state").write_text("tiny-eval-00000020-3 ")
    assert running.ended() is None
    (home / "state").write_text("tiny-eval-00000020-3 FailureTarget Failed ")
    ended = running.ended()
    assert ended is not None and ended.error == "no such suite"


def test_names_of_jobs_in_kubernetes_are_labels_however_long_the_run_s(home, tmp_path):
    launch = launch_of("kubernetes", tmp_path)
    long = launch.recipe.model_copy(update={"name": "a" * 80})
    launch = Launch("kubernetes", long, RunFolder(tmp_path, long), "evaluate")
    KubernetesPlace(launch, launch.folder.evaluation_jobs / "recipe-0.yaml", 5.0).begin(
        Try("step-00143000", ["validation"], 12)
    )
    (path,) = (launch.folder.evaluation_jobs / "step-00143000").glob("*.yaml")
    assert len(yaml.safe_load(path.read_text())["metadata"]["name"]) <= 63


def test_a_program_that_is_not_there_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    with pytest.raises(WorldError, match="sbatch: No such file"):
        SlurmPlace(launch_of("slurm", tmp_path), tmp_path / "recipe.yaml", 5.0).begin(ATTEMPT)
