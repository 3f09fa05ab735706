"""A file of hosts, by DeepSpeed's own launcher over pdsh or OpenMPI; the run's folder is shared by all of them.

DeepSpeed puts what it forwards on command lines: everything in a `.deepspeed_env`, and by itself each variable that
begins with MLFLOW, PYTHON, NCCL or UCX. So that no secret stands there, variables travel under names of their own
(ADAPONDER_FORWARD_...), by ssh's SendEnv or mpirun's -x, which take names only; `rank.sh` gives them back their names,
and the `.deepspeed_env` says which ones have to arrive.

DeepSpeed does not quote what it sends to a shell on the other side, so the one word that needs it, the path of
rank.sh, is quoted beforehand, and the ranks' arguments stand inside that script.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from launch.hostfile import chosen_slots, read_hostfile
from launch.ssh_session import SESSION_VARIABLE
from launch.targets.launching import STAGES, START, Launch, check_stage, require_program
from launch.targets.shell_script import rank_environment, script, setup, stages_in_turn, words
from pipeline.errors import UserError

HOSTFILE = "hostfile"
RANK = "rank.sh"
ENVIRONMENT = "deepspeed_env"
_PORT = 29500
_SSH = "-o BatchMode=yes -o ServerAliveInterval=10 -o ServerAliveCountMax=6 -o SendEnv=ADAPONDER_FORWARD_*"
"""Nothing is asked for, and a host that does not answer for a minute is given up. What PDSH_SSH_ARGS_APPEND says stands
before it, and counts."""


def chosen(launch: Launch, nodes: int | None = None, slots_per_host: int | None = None) -> dict[str, list[int]]:
    """The slots of each host that the training runs on; `nodes` takes the first hosts, `slots_per_host` their first
    slots. `UserError` for a hostfile that is not there or holds too little."""
    hosts = launch.cluster.hosts
    if not hosts.hostfile:
        raise UserError(
            "launch hosts: cluster.hosts.hostfile names no file: it has a line `HOST slots=N` for each host"
        )
    given = read_hostfile(Path(hosts.hostfile))
    if nodes is None and slots_per_host is None:
        return chosen_slots(given, hosts.include, hosts.exclude)
    if hosts.include or hosts.exclude:
        raise UserError("--nodes and --gpus-per-node go without cluster.hosts.include and exclude")
    if nodes is not None and nodes > len(given):
        raise UserError(f"--nodes {nodes}: {hosts.hostfile} names {len(given)} hosts")
    left = {}
    for host, slots in list(given.items())[:nodes]:
        if slots_per_host is not None and slots_per_host > slots:
            raise UserError(f"--gpus-per-node {slots_per_host}: {host} has {slots} slots in {hosts.hostfile}")
        left[host] = list(range(slots if slots_per_host is None else slots_per_host))
    return left


def check(launch: Launch, submit: bool) -> None:
    """`UserError` for what DeepSpeed's launcher cannot do."""
    check_stage(launch)
    hosts = launch.cluster.hosts
    if launch.cluster.container.kind != "none":
        raise UserError(f"launch hosts: cluster.container {launch.cluster.container.kind} is for slurm")
    if submit and hosts.launcher == "pdsh":
        require_program("pdsh", "install it (Debian: pdsh), or take cluster.hosts.launcher openmpi")
    if submit and hosts.launcher == "openmpi":
        require_program("ompi_info", "install Open MPI (Debian: openmpi-bin), or take cluster.hosts.launcher pdsh")


def files(launch: Launch, slots: dict[str, list[int]]) -> dict[str, str]:
    """The hostfile, what a rank runs, a script for each stage, and start.sh.

    slots: as `chosen` gives them. The hostfile holds exactly these, so that the folder can be used by itself.
    """
    written = {START: stages_in_turn(launch), HOSTFILE: _hostfile(slots), RANK: _rank(launch, slots)}
    for stage in STAGES:
        lines = [*setup(launch), f"exec {words(launch.arguments(stage))}"]
        written[f"{stage}.sh"] = script(launch, f"Stage {stage} on this machine.", lines)
    written["train.sh"] = _training(launch, slots)
    return written


def _hostfile(slots: dict[str, list[int]]) -> str:
    # A host of which slots are left out keeps those before the last one it has; --include says which.
    return "".join(f"{host} slots={max(taken) + 1}\n" for host, taken in slots.items())


def _include(slots: dict[str, list[int]]) -> str:
    """DeepSpeed's filter for slots that are not simply the first ones; empty where it is not needed."""
    if all(taken == list(range(len(taken))) for taken in slots.values()):
        return ""
    return "@".join(f"{host}:{','.join(str(slot) for slot in taken)}" for host, taken in slots.items())


def _address(launch: Launch, slots: dict[str, list[int]]) -> str:
    return launch.cluster.hosts.master_address or next(iter(slots))


def _training(launch: Launch, slots: dict[str, list[int]]) -> str:
    hosts = launch.cluster.hosts
    path = str(launch.path)
    pdsh = hosts.launcher == "pdsh"
    options = ["--hostfile", f"{path}/{HOSTFILE}", "--launcher", hosts.launcher]
    if include := _include(slots):
        options += ["--include", include]
    if pdsh:
        options += ["--force_multi", "--no_ssh_check"]
        if hosts.ssh_port:
            options += ["--ssh_port", str(hosts.ssh_port)]
    options += ["--master_addr", _address(launch, slots), "--master_port", str(launch.cluster.port or _PORT)]
    options += ["--no_python", "--no_local_rank"]
    own = list(hosts.launcher_options)
    if not pdsh and launch.cluster.network_interface:
        own += ["--mca", "btl_tcp_if_include", launch.cluster.network_interface]
    # PYTHON... DeepSpeed passes on by itself.
    names = [name for name in launch.cluster.environment if not name.startswith("PYTHON")]
    rank = f"{path}/{RANK}"
    if pdsh:  # a shell on the other side reads it once more, and pdsh replaces % before
        rank = words([rank]).replace("%", "%%")
    lines = [
        *setup(launch),
        f"launch={words([path])}",
        f"launcher_options={words([shlex.join(own)])}",
        "forwarded=",
        *([f"for name in {words(names)}; do"] if names else ["for name in; do"]),
        '    if [[ -n "${!name-}" ]]; then',
        '        export "ADAPONDER_FORWARD_$name=${!name}"',
        '        forwarded+="${forwarded:+,}$name"',
        *([] if pdsh else ['        launcher_options+=" -x ADAPONDER_FORWARD_$name"']),
        "    fi",
        "done",
        "# DeepSpeed would write these on a command line.",
        'for name in "${!MLFLOW@}"; do unset "$name"; done',
        """printf 'ADAPONDER_FORWARDED=%s\\n' "$forwarded" >"$launch/deepspeed_env\"""",
        'export DS_ENV_FILE="$launch/deepspeed_env"',
        *(['export PDSH_SSH_ARGS_APPEND="${PDSH_SSH_ARGS_APPEND-} ' + _SSH + '"'] if pdsh else []),
        "cd /  # DeepSpeed changes to the same folder on every host, without quoting it",
        "stopped=",
        "# The ranks look for the file at every step; all save and end.",
        "trap 'stopped=now' TERM USR1",
        f"{words([launch.python, '-m', 'launch.over_hosts', *launch.run_arguments(), '--', *options])} \\",
        f'    --launcher_args="$launcher_options" {words([rank])} &',
        "step=$!",
        'while kill -0 "$step" 2>/dev/null; do',
        '    wait "$step" || true',
        '    if [[ "$stopped" == now ]] && kill -0 "$step" 2>/dev/null; then',
        "        stopped=yes",
        f"        touch {words([str(launch.folder.path / 'STOP')])}",
        "    fi",
        "done",
        "code=0",
        'wait "$step" || code=$?',
        'if ((code == 0)) && [[ "$stopped" == yes ]]; then code=75; fi',
        'exit "$code"',
    ]
    return script(launch, f"Training on {len(slots)} hosts; SIGTERM and SIGUSR1 have it save and end.", lines)


def _rank(launch: Launch, slots: dict[str, list[int]]) -> str:
    port = launch.cluster.port or _PORT
    lines = [
        'for name in "${!ADAPONDER_FORWARD_@}"; do',
        '    export "${name#ADAPONDER_FORWARD_}=${!name}"',
        '    unset "$name"',
        "done",
        'IFS=, read -r -a names <<<"${ADAPONDER_FORWARDED-}"',
        'for name in "${names[@]}"; do',
        '    if [[ -z "${!name-}" ]]; then',
        "        echo \"$(hostname): $name did not arrive: add 'AcceptEnv ADAPONDER_FORWARD_*' to sshd_config\" \\",
        '            "there, or take $name out of cluster.environment" >&2',
        "        exit 2",
        "    fi",
        "done",
        *setup(launch),
        *rank_environment(launch),
        *([f"export {SESSION_VARIABLE}=1"] if launch.cluster.hosts.launcher == "pdsh" else []),
        "# Open MPI has its own names for what DeepSpeed's pdsh launcher sets.",
        'if [[ -n "${OMPI_COMM_WORLD_RANK-}" ]]; then',
        '    export RANK="$OMPI_COMM_WORLD_RANK" WORLD_SIZE="$OMPI_COMM_WORLD_SIZE"',
        '    export LOCAL_RANK="$OMPI_COMM_WORLD_LOCAL_RANK" LOCAL_WORLD_SIZE="$OMPI_COMM_WORLD_LOCAL_SIZE"',
        f"    export MASTER_ADDR={words([_address(launch, slots)])} MASTER_PORT={port}",
        "fi",
        'ranks="${LOCAL_WORLD_SIZE:-${LOCAL_SIZE:-1}}"',
        "cores=$(($(nproc) / ranks))",
        'export LOCAL_WORLD_SIZE="$ranks"',
        'export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores > 0 ? cores : 1))}"',
        f"exec {words([launch.python, '-m', *launch.worker()])}",
    ]
    return script(launch, "One rank; DeepSpeed's launcher starts it on every host.", lines)
