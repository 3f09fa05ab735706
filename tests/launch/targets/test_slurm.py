"""What is queued, with what dependencies, and what a batch script does with an exit code; sbatch, srun and scontrol are
replaced by programs that note what they are asked. The real ones are for tests/cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.targets.slurm import check
from pipeline.errors import UserError
from tests.launch.targets.launched import bash, files_of, launch_of, programs

SBATCH = """
[[ "$*" != *broken* ]] || exit 1
number=$(($(cat "$HOME/number" 2>/dev/null || echo 10) + 1)); echo "$number" >"$HOME/number"
echo "$*" >>"$HOME/queued"; echo "$number;cluster"
"""


def queued(tmp_path: Path, stage: str, sbatch: str = SBATCH, **cluster) -> tuple[int, list[str]]:
    """Exit code of start.sh, and what sbatch was asked, the folder of scripts left out."""
    launch = launch_of("slurm", tmp_path / "it's $runs", **cluster)
    launch.path.mkdir(parents=True)
    for name, text in files_of(launch).items():
        (launch.path / name).write_text(text, encoding="utf-8")
    environment = programs(tmp_path / "programs", sbatch=sbatch, scancel='echo "$*" >>"$HOME/cancelled"')
    done = bash(launch.path / "start.sh", stage, environment=environment)
    asked = tmp_path / "programs" / "queued"
    lines = asked.read_text().replace(f"{launch.path}/", "").splitlines() if asked.exists() else []
    return done.returncode, lines


def test_all_stages_wait_for_each_other(tmp_path):
    code, lines = queued(tmp_path, "all")
    waits = "--parsable --dependency=afterok:{} --kill-on-invalid-dep=yes {}.sbatch"
    assert code == 0
    assert lines == [
        "--parsable tokenize.sbatch",
        waits.format(11, "tokenize-finish"),
        waits.format(12, "train"),
        waits.format(13, "evaluate"),
        waits.format(14, "release"),
    ]
    jobs = (tmp_path / "it's $runs/tiny/launch/slurm-jobs.tsv").read_text().splitlines()
    assert [line.split("\t")[1:] for line in jobs][:2] == [["tokenize", "11"], ["tokenize-finish", "12"]]


def test_a_chain_of_one_name(tmp_path):
    code, lines = queued(tmp_path, "all", slurm={"chain_jobs": 2, "time_limit": "01:00:00"})
    assert code == 0
    assert lines[2:5] == [
        "--parsable --dependency=afterok:12,singleton --kill-on-invalid-dep=yes train.sbatch",
        "--parsable --dependency=afterok:12,singleton --kill-on-invalid-dep=yes train.sbatch",
        "--parsable --dependency=afterok:14 --kill-on-invalid-dep=yes evaluate.sbatch",
    ]


def test_one_stage(tmp_path):
    assert queued(tmp_path, "train") == (0, ["--parsable train.sbatch"])


def test_all_or_none(tmp_path):
    code, lines = queued(tmp_path, "all", sbatch=SBATCH.replace("broken", "train"))
    assert code != 0
    assert len(lines) == 2
    assert (tmp_path / "programs" / "cancelled").read_text() == "11 12\n"


def test_duplicates_are_looked_for_first(tmp_path):
    launch = launch_of("slurm", tmp_path)
    clean = launch.recipe.tokenize.clean.model_copy(update={"remove_duplicates": True})
    recipe = launch.recipe.model_copy(update={"tokenize": launch.recipe.tokenize.model_copy(update={"clean": clean})})
    files = files_of(type(launch)("slurm", recipe, launch.folder))
    assert files["start.sh"].index("submit tokenize-scan") < files["start.sh"].index("submit tokenize\n")
    assert "#SBATCH --array=1-3" in files["tokenize-scan.sbatch"]
    assert '--part "$SLURM_ARRAY_TASK_ID/3" --workers 8 --scan' in files["tokenize-scan.sbatch"]


@pytest.mark.parametrize(
    ("srun", "environment", "code", "requeued"),
    [
        ("exit 0", {}, 0, False),
        ("exit 75", {}, 75, True),
        ("exit 1", {}, 1, False),
        ("exit 137", {}, 137, False),
        ("exit 75", {"SLURM_RESTART_COUNT": "100"}, 75, False),
        # Slurm ends the job: it must stay ended, though the ranks have saved.
        ('kill -TERM "$PPID"; sleep 0.3; exit 75', {}, 75, False),
        # Whoever signals the batch script means the ranks, which srun hands it on to.
        (
            """trap 'exit 75' USR1; kill -USR1 "$PPID"; for ((i = 0; i < 50; i++)); do sleep 0.1; done; exit 3""",
            {},
            75,
            True,
        ),
    ],
)
def test_the_training_is_requeued_when_it_was_stopped_and_only_then(tmp_path, srun, environment, code, requeued):
    launch = launch_of("slurm", tmp_path)
    (tmp_path / "train.sbatch").write_text(files_of(launch)["train.sbatch"], encoding="utf-8")
    scontrol = (
        'case "$2" in hostnames) echo n1;; node) echo "x NodeAddr=10.0.0.1 y";; config) ;; '
        '*) echo "$*" >>"$HOME/asked";; esac'
    )
    found = programs(tmp_path / "programs", srun=srun, scontrol=scontrol)
    job = {"SLURM_JOB_ID": "42", "SLURM_JOB_NODELIST": "n[1-2]"}
    done = bash(tmp_path / "train.sbatch", environment={**found, **job, **environment})
    assert done.returncode == code, done.stderr
    asked = tmp_path / "programs" / "asked"
    assert (asked.read_text() if asked.exists() else "") == ("requeue 42\n" if requeued else "")


@pytest.mark.parametrize(("config", "seconds"), [("300 sec", 460), ("20 sec", 300), ("0 sec", 300), (None, 460)])
def test_a_job_outlives_the_time_in_which_slurm_finds_a_lost_node(tmp_path, config, seconds):
    """Else it had failed before, and nobody would requeue it."""
    launch = launch_of("slurm", tmp_path)
    (tmp_path / "train.sbatch").write_text(files_of(launch)["train.sbatch"], encoding="utf-8")
    told = f'echo "SlurmctldTimeout = 7 sec"; echo "SlurmdTimeout           = {config}"' if config else "true"
    found = programs(
        tmp_path / "programs",
        srun='echo "$SLURM_WAIT" >"$HOME/waits"',
        scontrol=f'case "$2" in hostnames) echo n1;; node) echo "NodeAddr=n1 x";; config) {told};; esac',
    )
    done = bash(tmp_path / "train.sbatch", environment={**found, "SLURM_JOB_ID": "42", "SLURM_JOB_NODELIST": "n[1-2]"})
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "programs" / "waits").read_text() == f"{seconds}\n"


def test_what_slurm_is_asked_for():
    gpus = files_of(launch_of("slurm", Path("/runs"), gpus_per_node=8, ranks_per_node="gpus"))
    assert "#SBATCH --gpus-per-node=8" in gpus["train.sbatch"] and "--nproc-per-node 8" in gpus["train-node.sh"]
    assert "#SBATCH --gpus-per-node=1" in gpus["evaluate.sbatch"]
    assert "gpus" not in gpus["tokenize.sbatch"]
    several = files_of(launch_of("slurm", Path("/runs"), gpus_per_node=8, ranks_per_node="gpus", evaluation_ranks=4))
    asked = several["evaluate.sbatch"]
    assert "#SBATCH --gpus-per-node=4" in asked and asked.count("--cpus-per-task=4") == 2
    assert "-m launch.node --standalone --local-addr 127.0.0.1 --nproc-per-node 4 --module" in asked
    assert several["release.sbatch"] == gpus["release.sbatch"]
    cpus = files_of(launch_of("slurm", Path("/runs"), ranks_per_node=2))
    assert all("gpus-per-node" not in text for text in cpus.values())
    assert "--nnodes 2 --nproc-per-node 2" in cpus["train-node.sh"]
    assert "#SBATCH --signal=USR1@300" in cpus["train.sbatch"]  # without B: the ranks hear it, not the script


def test_containers():
    mounted = {"image": "/images/a b.sif", "mounts": ["/data:/data:ro"]}
    apptainer = files_of(launch_of("slurm", Path("/runs"), container={"kind": "apptainer", **mounted}))
    assert 'apptainer exec --bind /runs:/runs --bind /data:/data:ro "/images/a b.sif" bash' in apptainer["train.sbatch"]
    assert "exec python3 -m launch.node" in apptainer["train-node.sh"]
    pyxis = files_of(launch_of("slurm", Path("/runs"), container={"kind": "pyxis", **mounted}))
    assert '"--container-image=/images/a b.sif" --container-mounts=/runs:/runs,/data:/data:ro' in pyxis["train.sbatch"]


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"tokenize_time_limit": "00:01:00"}, "more than a minute"),
        ({"chain_jobs": 2}, "chain_jobs 2 without cluster.slurm.time_limit"),
    ],
)
def test_what_is_refused(section, told):
    with pytest.raises(UserError, match=told):
        check(launch_of("slurm", Path("/runs"), slurm=section), submit=False)


def test_no_sbatch(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    check(launch_of("slurm", Path("/runs")), submit=False)
    with pytest.raises(UserError, match="sbatch is not on PATH"):
        check(launch_of("slurm", Path("/runs")), submit=True)
