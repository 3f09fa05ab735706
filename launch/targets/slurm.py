"""Slurm: a batch script for each job, and start.sh, which queues them with what each has to wait for.

Training is one task a node, each torchrun with `launch.node`, meeting on the first node. `--signal` reaches the ranks
and not the batch script; exit code 75 has the job requeued, since ranks that were stopped end with it and nothing else
does. After a SIGTERM it is not: Slurm is ending the job (scancel, the time limit) or requeues it by itself
(preemption), and a cancelled job must stay cancelled.

No path stands in an #SBATCH line, where Slurm has its own ideas of quoting: output goes to where sbatch is called,
which start.sh does in the run's folder of logs.
"""

from __future__ import annotations

from launch.targets.launching import STAGES, START, Launch, check_stage, job_name, require_program
from launch.targets.shell_script import rank_environment, script, setup, stage_choice, words
from pipeline.errors import UserError
from pipeline.recipe_cluster import seconds_of

NODE = "train-node.sh"
_STOP_TOKENIZING_SECONDS = 60
_WAIT = (
    "# Others may still be saving when the first node ends, and must not wait for ever. Where a node is lost its peers",
    "# end at once, and Slurm finds it out a third after SlurmdTimeout: a job that has failed before is not requeued.",
    "silent=$(scontrol show config | sed -n 's/^SlurmdTimeout *= *\\([0-9]*\\).*/\\1/p')",
    "wait_seconds=$((${silent:-300} * 4 / 3 + 60))",
    'export SLURM_WAIT="$((wait_seconds > 300 ? wait_seconds : 300))"',
)
_ALWAYS_FORWARDED = ("HOME", "LANG", "LD_LIBRARY_PATH", "PATH", "USER")


def check(launch: Launch, submit: bool) -> None:
    """`UserError` for what Slurm would refuse, or would do differently from what was meant."""
    check_stage(launch)
    slurm = launch.cluster.slurm
    shortest = slurm.tokenize_time_limit
    if shortest and seconds_of(shortest) <= _STOP_TOKENIZING_SECONDS:
        raise UserError(f"cluster.slurm.tokenize_time_limit {shortest}: give the tokenization more than a minute")
    if slurm.chain_jobs > 1 and not slurm.time_limit:
        raise UserError(
            f"cluster.slurm.chain_jobs {slurm.chain_jobs} without cluster.slurm.time_limit: a chain is for jobs that "
            "end by a time limit"
        )
    if submit:
        require_program("sbatch", "submit from a login node of the cluster")


def files(launch: Launch) -> dict[str, str]:
    """The batch scripts, what each node of the training runs, and start.sh."""
    written = {f"{part}.sbatch": _tokenization(launch, part) for part in launch.parts}
    written |= {"train.sbatch": _training(launch), NODE: _node(launch)}
    written |= {f"{stage}.sbatch": _single(launch, stage) for stage in ("evaluate", "release")}
    return {START: _start(launch), **written}


def _directives(launch: Launch, name: str, *options: str, cpus_only: bool = False) -> list[str]:
    slurm = launch.cluster.slurm
    partition = (cpus_only and slurm.cpu_partition) or slurm.partition
    time_limit = (cpus_only and slurm.tokenize_time_limit) or slurm.time_limit
    names = sorted({*_ALWAYS_FORWARDED, *launch.cluster.environment})
    given = [
        f"--job-name={job_name(launch, name)}",
        *options,
        *([f"--partition={partition}"] if partition else []),
        *([f"--account={slurm.account}"] if slurm.account else []),
        *([f"--qos={slurm.qos}"] if slurm.qos else []),
        *([f"--time={time_limit}"] if time_limit else []),
        f"--export={','.join(names)}",
        "--requeue",
        "--open-mode=append",
        *slurm.options,
    ]
    return [f"#SBATCH {option}" for option in given]


def _in_container(launch: Launch) -> tuple[list[str], list[str]]:
    """Options of srun, and the words before a command, that put a task into the recipe's container."""
    container, root = launch.cluster.container, str(launch.folder.root)
    mounts = [f"{root}:{root}", *container.mounts]
    if container.kind == "apptainer":
        bound = [word for mount in mounts for word in ("--bind", mount)]
        gpus = ["--nv"] if launch.cluster.gpus_per_node else []
        return [], ["apptainer", "exec", *gpus, *bound, *container.options, container.image]
    if container.kind == "pyxis":
        return [
            f"--container-image={container.image}",
            f"--container-mounts={','.join(mounts)}",
            *container.options,
        ], []
    return [], []


def _step(launch: Launch, options: list[str], command: str) -> list[str]:
    """Run `command`, shell text, by srun; its exit code in $code. The shell hears signals meanwhile."""
    srun_options, prefix = _in_container(launch)
    # srun would forward only what sbatch was told to export, and not what this script sets.
    srun = words(["srun", "--export=ALL", *options, *srun_options, *prefix])
    return [
        f"{srun} {command} &",
        "step=$!",
        # A signal interrupts `wait`; bash remembers how a child ended, so the last one always tells.
        'while kill -0 "$step" 2>/dev/null; do wait "$step" || true; done',
        "code=0",
        'wait "$step" || code=$?',
    ]


def _requeue(launch: Launch, condition: str) -> list[str]:
    most = launch.cluster.slurm.requeues
    return [
        f"if {condition}; then",
        f"    if ((${{SLURM_RESTART_COUNT:-0}} < {most})); then",
        '        echo "stopped, everything is saved: requeued"',
        '        scontrol requeue "$SLURM_JOB_ID"',
        "    else",
        f'        echo "stopped, everything is saved: not requeued after {most} times, see cluster.slurm.requeues"',
        "    fi",
        "fi",
        'exit "$code"',
    ]


def _training(launch: Launch) -> str:
    cluster, slurm = launch.cluster, launch.cluster.slurm
    chained = slurm.chain_jobs > 1
    directives = _directives(
        launch,
        "train",
        f"--nodes={cluster.nodes}",
        "--ntasks-per-node=1",
        *([f"--gpus-per-node={cluster.gpus_per_node}"] if cluster.gpus_per_node else []),
        *([f"--cpus-per-task={slurm.cpus_per_node}"] if slurm.cpus_per_node else []),
        *([f"--mem={slurm.memory_per_node}"] if slurm.memory_per_node else []),
        f"--signal=USR1@{cluster.signal_seconds}",
        "--output=slurm-train-%j.out",
    )
    port = str(cluster.port) if cluster.port else "$((20000 + SLURM_JOB_ID % 20000))"
    finished = words([str(launch.folder.checkpoints / launch.last_checkpoint / "COMPLETE")])
    skip = f'if [[ -e {finished} ]]; then echo "all steps are taken, nothing to do"; exit 0; fi'
    options = [
        *(f"--nodes={cluster.nodes}", f"--ntasks={cluster.nodes}", "--ntasks-per-node=1"),
        *([f"--cpus-per-task={slurm.cpus_per_node}"] if slurm.cpus_per_node else []),
        "--kill-on-bad-exit=0",
    ]
    lines = [
        *setup(launch),
        *([skip] if chained else []),
        'first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        """address=$(scontrol show node "$first" | sed -n 's/.*NodeAddr=\\([^ ]*\\).*/\\1/p')""",
        f'export ADAPONDER_RENDEZVOUS="${{address:-$first}}:{port}"',
        *_WAIT,
        'echo "job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)), nodes $SLURM_JOB_NODELIST"',
        *([] if chained else ["terminated="]),
        # Whoever signals the batch script means the ranks.
        "step=",
        """trap 'if [[ -n "$step" ]]; then kill -s USR1 "$step"; fi' USR1""",
        "trap : TERM" if chained else "trap 'terminated=yes' TERM",
        *_step(launch, options, f"bash {words([str(launch.path / NODE)])}"),
        "if ((code != 0 && code != 75)); then",
        '    echo "the training failed with exit code $code; what its ranks left is told by: adaponder status" '
        f"{words([str(launch.folder.path)])} >&2",
        "fi",
    ]
    if chained:
        lines.append('exit "$code"')
    else:
        lines += _requeue(launch, '((code == 75)) && [[ -z "$terminated" ]]')
    return script(launch, "Training.", lines, directives)


def _node(launch: Launch) -> str:
    cluster = launch.cluster
    command = [
        *(launch.python, "-m", "launch.node", "--nnodes", str(cluster.nodes), "--nproc-per-node", str(cluster.ranks)),
        *("--rdzv-backend", "c10d"),
    ]
    lines = [
        "set -u",
        # Until the ranks listen themselves, a signal to all processes of the job ends none of them.
        "trap '' TERM USR1",
        *rank_environment(launch),
        f"exec {words(command)} \\",
        '    --rdzv-endpoint "$ADAPONDER_RENDEZVOUS" --rdzv-id "$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" \\',
        '    --rdzv-conf "is_host=$((SLURM_NODEID == 0))" \\',
        f"    --module {words(launch.worker())}",
    ]
    return script(launch, "The ranks of one node; srun starts it once on each.", lines)


def _tokenization(launch: Launch, part: str) -> str:
    cluster = launch.cluster
    jobs, cpus = cluster.tokenize_jobs, cluster.tokenize_cpus
    array = part != "tokenize-finish"
    directives = _directives(
        launch,
        part,
        *([f"--array=1-{jobs}"] if array else []),
        *("--nodes=1", "--ntasks=1", f"--cpus-per-task={cpus}"),
        # B: this one is for the script below, which ends the step and asks for another turn.
        f"--signal=B:USR1@{_STOP_TOKENIZING_SECONDS}",
        f"--output=slurm-{part}-{'%A_%a' if array else '%j'}.out",
        cpus_only=True,
    )
    command = words(launch.arguments("tokenize"))
    if array:
        command += f' --part "$SLURM_ARRAY_TASK_ID/{jobs}" --workers {cpus}'
    command += {"tokenize-scan": " --scan", "tokenize-finish": " --finish"}.get(part, "")
    lines = [
        *setup(launch),
        "stopped=",
        "step=",
        # What is finished stays finished, so it may be ended anywhere.
        """trap 'stopped=yes; if [[ -n "$step" ]]; then kill -s TERM "$step"; fi' USR1""",
        *_step(launch, ["--nodes=1", "--ntasks=1", f"--cpus-per-task={cpus}"], command),
        *_requeue(launch, '((code != 0)) && [[ -n "$stopped" ]]'),
    ]
    purpose = {
        "tokenize-scan": "Looks for duplicates, before any part is made.",
        "tokenize": "Documents become parts of the shards.",
        "tokenize-finish": "Parts become the shards.",
    }[part]
    return script(launch, purpose, lines, directives)


def _single(launch: Launch, stage: str) -> str:
    ranks = launch.cluster.evaluation_ranks if stage == "evaluate" else 1
    return _one_task(launch, stage, launch.arguments(stage), ranks, f"Stage {stage} of {launch.last_checkpoint}.")


def evaluation(launch: Launch, name: str, command: list[str]) -> str:
    """The batch script of one evaluation that `adaponder watch` queues as the job `name`."""
    ranks = launch.cluster.evaluation_ranks
    return _one_task(launch, name, command, ranks, "Judges a checkpoint.", written_by="adaponder watch")


def _one_task(launch: Launch, name: str, command: list[str], ranks: int, purpose: str, written_by: str = "") -> str:
    """A job of one command, which starts `ranks` ranks if they are several."""
    cluster = launch.cluster
    # Sites give a task one core, and each rank needs one.
    cores = [f"--cpus-per-task={ranks}"] if ranks > 1 else []
    directives = _directives(
        launch,
        name,
        *("--nodes=1", "--ntasks=1", *cores),
        *([f"--gpus-per-node={ranks}"] if cluster.gpus_per_node else []),
        f"--output=slurm-{name}-%j.out",
    )
    lines = [
        *setup(launch),
        *([] if cluster.gpus_per_node else ["export CUDA_VISIBLE_DEVICES='' DS_ACCELERATOR=cpu"]),
        *_step(launch, ["--nodes=1", "--ntasks=1", *cores], words(command)),
        'exit "$code"',
    ]
    return script(launch, purpose, lines, directives, written_by)


def _start(launch: Launch) -> str:
    chain = launch.cluster.slurm.chain_jobs
    logs, path = words([str(launch.folder.logs)]), words([str(launch.path)])
    lines = [
        "set -u",
        *stage_choice(),
        f"launch={path}",
        f"mkdir -p {logs}",
        f"cd {logs}",
        "queued=()",
        "# All jobs are queued, or none.",
        """trap 'if (($? && ${#queued[@]})); then scancel "${queued[@]}"; fi' EXIT""",
        "after=",
        "submit() { # NAME [DEPENDENCY]: queue it after what was queued last; its job in $after",
        '    local waits="${after:+afterok:$after}${2:+${after:+,}$2}"',
        "    local options=(--parsable)",
        '    if [[ -n "$waits" ]]; then options+=(--dependency="$waits" --kill-on-invalid-dep=yes); fi',
        '    after=$(sbatch "${options[@]}" "$launch/$1.sbatch")',
        '    after="${after%%;*}"',
        '    queued+=("$after")',
        '    echo "$1: job $after${waits:+, waits for $waits}"',
        '    printf \'%s\\t%s\\t%s\\n\' "$(date --iso-8601=seconds)" "$1" "$after" >>"$launch/../slurm-jobs.tsv"',
        "}",
    ]
    for stage in STAGES:
        jobs = launch.parts if stage == "tokenize" else [stage]
        if stage == "train" and chain > 1:
            lines += [
                "if wanted train; then",
                "    before=$after",
                f"    for ((job = 0; job < {chain}; job++)); do",
                "        after=$before",
                "        submit train singleton",
                "    done",
                "fi",
            ]
        elif jobs:
            lines += [f"if wanted {stage}; then", *(f"    submit {job}" for job in jobs), "fi"]
    return script(launch, "Queues one stage, or all of them, each after the one before: start.sh [STAGE].", lines)
