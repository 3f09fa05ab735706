"""The recipe's cluster section: on what the stages run when `adaponder launch` starts them (`launch.targets`).

Only names stand here, never a secret: variables are forwarded by name, what they hold stays in the environment.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from pipeline.recipe_preflight import PreflightSection
from pipeline.recipe_section import NonNegativeInt, PositiveInt, Section


def _matching(pattern: str) -> StringConstraints:
    return StringConstraints(pattern=pattern)


VariableName = Annotated[str, _matching(r"^[A-Za-z_][A-Za-z0-9_]*$")]
Word = Annotated[str, _matching(r"^[A-Za-z0-9][A-Za-z0-9_.,:@/+=-]*$")]
"""One word of letters, digits and a few marks: it can neither begin an option nor end a line."""
WordOrNone = Annotated[str, _matching(r"^([A-Za-z0-9][A-Za-z0-9_.,:@/+=-]*)?$")]
Line = Annotated[str, _matching(r"^[^\r\n\x00]+$")]
LineOrNone = Annotated[str, _matching(r"^[^\r\n\x00]*$")]
TimeLimit = Annotated[str, _matching(r"^((\d+-)?\d{1,2}:\d{2}:\d{2})?$")]
Quantity = Annotated[str, _matching(r"^\d+(\.\d+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$")]
KubernetesName = Annotated[str, _matching(r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")]
KubernetesNameOrNone = Annotated[str, _matching(r"^([a-z0-9]([a-z0-9.-]*[a-z0-9])?)?$")]
AbsolutePath = Annotated[str, _matching(r"^/[^\r\n\x00]*$")]

_SLURM_OWN = (
    *("array", "chdir", "dependency", "export", "export-file", "gpus-per-node", "job-name", "nodes", "ntasks"),
    *("ntasks-per-node", "open-mode", "output", "error", "parsable", "requeue", "no-requeue", "signal", "wrap", "time"),
    *("partition", "account", "qos", "cpus-per-task", "mem", "kill-on-invalid-dep"),
)


def seconds_of(time_limit: str) -> int:
    """Seconds of a Slurm time limit, [DAYS-]HOURS:MINUTES:SECONDS."""
    days, _, clock = time_limit.rpartition("-")
    hours, minutes, seconds = (int(part) for part in clock.split(":"))
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


class ContainerSection(Section):
    """The image that the stages run in under Slurm; the folder of runs and the project have to be visible inside."""

    kind: Literal["none", "apptainer", "pyxis"] = "none"
    """apptainer: `apptainer exec`; pyxis: srun's --container-image."""
    image: LineOrNone = ""
    """A .sif or .sqsh file, or a registry's name."""
    mounts: list[Line] = []
    """HOST:CONTAINER or HOST:CONTAINER:ro, each; the folder of runs is always mounted under its own path."""
    options: list[Line] = []
    """Further options of `apptainer exec`, or of srun for pyxis, one an item: --writable-tmpfs."""

    @model_validator(mode="after")
    def _image_and_kind(self) -> ContainerSection:
        if (self.kind == "none") != (not self.image):
            raise ValueError("kind and image go together: give both, or neither")
        if any(not option.startswith("--") for option in self.options):
            raise ValueError("options begin with --, their values joined by =")
        if any(mount.startswith("-") or mount.count(":") not in (1, 2) or "," in mount for mount in self.mounts):
            raise ValueError("mounts are HOST:CONTAINER or HOST:CONTAINER:ro, without commas")
        return self


class SlurmSection(Section):
    """What sbatch is asked for."""

    partition: WordOrNone = ""
    """Empty, here and below: Slurm's own default."""
    cpu_partition: WordOrNone = ""
    """For tokenization; empty: the same as for training."""
    account: WordOrNone = ""
    qos: WordOrNone = ""
    time_limit: TimeLimit = ""
    """[DAYS-]HOURS:MINUTES:SECONDS, of training, evaluation and release."""
    tokenize_time_limit: TimeLimit = ""
    """The same for each job of the tokenization; empty: time_limit."""
    cpus_per_node: NonNegativeInt = 0
    """Cores for the training's ranks on a node; 0: what the site gives."""
    memory_per_node: WordOrNone = ""
    """--mem of the training, 0 for all of a node; empty: what the site gives."""
    requeues: NonNegativeInt = 100
    """How often a job that was stopped (exit code 75) asks to be started again."""
    chain_jobs: PositiveInt = 1
    """Over 1: so many training jobs of one name are queued, of which Slurm runs one at a time (singleton), for queues
    with a time limit and without requeueing; a job that finds all steps taken ends at once."""
    options: list[Annotated[str, _matching(r"^--[a-z][a-z0-9-]*(=[^\r\n\x00]*)?$")]] = []
    """Further options of sbatch for every job, one an item: --exclusive, --constraint=a100."""

    @field_validator("options")
    @classmethod
    def _nothing_of_ours(cls, options: list[str]) -> list[str]:
        given = [option.partition("=")[0].removeprefix("--") for option in options]
        if taken := [name for name in given if name in _SLURM_OWN]:
            raise ValueError(f"--{taken[0]} is decided by other fields of the cluster section: leave it out")
        return options


class HostsSection(Section):
    """What DeepSpeed's launcher is given."""

    hostfile: LineOrNone = ""
    """A file of lines `HOST slots=N`, N ranks each; relative to where `adaponder launch` is called."""
    include: WordOrNone = ""
    """Hosts and slots to take: worker-1@worker-2:0,2. Not with exclude, --nodes or openmpi."""
    exclude: WordOrNone = ""
    """Hosts and slots to leave out, in the same form."""
    launcher: Literal["pdsh", "openmpi"] = "pdsh"
    ssh_port: NonNegativeInt = 0
    """0: ssh's own default. For openmpi set it in ~/.ssh/config."""
    master_address: WordOrNone = ""
    """Address of the first host as all hosts reach it; empty: its name in the hostfile."""
    launcher_options: list[Line] = []
    """Further words for pdsh or mpirun."""

    @model_validator(mode="after")
    def _what_goes_together(self) -> HostsSection:
        if self.include and self.exclude:
            raise ValueError("include and exclude: give one of the two")
        if self.launcher == "openmpi" and (self.include or self.exclude):
            raise ValueError("include and exclude: DeepSpeed knows them with pdsh only; edit the hostfile")
        if self.launcher == "openmpi" and self.ssh_port:
            raise ValueError("ssh_port: DeepSpeed passes it to pdsh only; set Port in ~/.ssh/config")
        return self


class Toleration(Section):
    """A taint of nodes that the pods bear."""

    key: Word
    operator: Literal["Exists", "Equal"] = "Exists"
    value: WordOrNone = ""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""
    """Empty: all effects."""


class KubernetesSection(Section):
    """What the manifests say."""

    kind: Literal["job", "trainjob"] = "job"
    """The training as an Indexed Job with a headless service, or as a TrainJob of Kubeflow Trainer 2."""
    namespace: KubernetesName = "default"
    image: WordOrNone = ""
    """Has this project installed."""
    image_pull_secrets: list[KubernetesName] = []
    volume_claim: KubernetesNameOrNone = ""
    """Name of a PersistentVolumeClaim that all pods may write (ReadWriteMany); it holds the folder of runs."""
    mount_path: AbsolutePath = "/data"
    """Where it is mounted."""
    runs: AbsolutePath = "/data/runs"
    """The folder of runs inside the pods."""
    cpus: Quantity = "8"
    """Requested for each pod of the training; evaluation and release get the same, whatever evaluation_ranks is."""
    memory: Quantity = "64Gi"
    """Requested, and the most it may take."""
    tokenize_memory: Quantity = "16Gi"
    """For each pod of the tokenization; its cores are cluster.tokenize_cpus."""
    gpu_resource: Word = "nvidia.com/gpu"
    tolerations: list[Toleration] = []
    node_selector: dict[str, str] = {}
    """Labels of the nodes to run on."""
    service_account: KubernetesNameOrNone = ""
    environment_secret: KubernetesNameOrNone = ""
    """Name of a Secret whose keys are names in cluster.environment; empty: nothing is forwarded."""
    restarts: NonNegativeInt = 6
    """How many failed pods a job bears; pods that were stopped (exit code 75) do not count."""
    training_runtime: KubernetesName = "torch-distributed"
    """The ClusterTrainingRuntime of a TrainJob."""


class ClusterSection(Section):
    """Where and how `adaponder launch` starts the stages; `adaponder train` on one machine looks at none of it."""

    nodes: PositiveInt = 1
    gpus_per_node: NonNegativeInt = 8
    """0: the stages run on CPUs, and no GPU is asked for."""
    ranks_per_node: PositiveInt | Literal["gpus"] = "gpus"
    """Processes of the training on each node; gpus: one for each GPU."""
    evaluation_ranks: PositiveInt = 1
    """Processes that share the work of an evaluation that `adaponder launch` or `adaponder watch` starts, on one node;
    each gets a GPU where there are any. They change no result."""
    network_interface: WordOrNone = ""
    """The interface that nodes reach each other by, in GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME; empty: the libraries
    choose, which fails where a host's own name is 127.0.0.1 or there are several networks."""
    port: Annotated[int, Field(ge=0, lt=65536)] = 0
    """Where ranks meet on the first node; 0: 29500, and under Slurm one that follows from the job's number."""
    environment: list[VariableName] = [
        *("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"),
        *("HF_TOKEN", "HF_HOME", "HF_HUB_OFFLINE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
        *("AWS_ENDPOINT_URL", "PYTHONPATH"),
    ]
    """Names of variables that the stages get from the environment of whoever starts them; values are written
    nowhere."""
    modules: list[Word] = []
    """Environment modules to load before each stage."""
    commands_before: list[Line] = []
    """Shell commands before each stage, as they stand: source /opt/site/setup.sh. No secrets: they are written down."""
    python: LineOrNone = ""
    """The Python that has this project on the nodes; empty: the one that runs `adaponder launch`, in containers
    python3."""
    signal_seconds: PositiveInt = 300
    """How long before its time limit a training is told to save and end; in Kubernetes, how long a pod has to end."""
    tokenize_jobs: PositiveInt = 16
    """How many jobs the tokenization is shared by."""
    tokenize_cpus: PositiveInt = 8
    """Cores of each of them."""
    preflight: PreflightSection = PreflightSection()
    container: ContainerSection = ContainerSection()
    slurm: SlurmSection = SlurmSection()
    hosts: HostsSection = HostsSection()
    kubernetes: KubernetesSection = KubernetesSection()

    @property
    def ranks(self) -> int:
        """Ranks of the training on each node."""
        return self.gpus_per_node if self.ranks_per_node == "gpus" else self.ranks_per_node

    @model_validator(mode="after")
    def _consistent(self) -> ClusterSection:
        problems = []
        if self.ranks_per_node == "gpus" and not self.gpus_per_node:
            problems.append("gpus_per_node 0 needs ranks_per_node, the number of processes on each node")
        if self.gpus_per_node and self.ranks > self.gpus_per_node:
            problems.append(f"ranks_per_node {self.ranks} with gpus_per_node {self.gpus_per_node}: a rank needs a GPU")
        if self.gpus_per_node and self.evaluation_ranks > self.gpus_per_node:
            problems.append(
                f"evaluation_ranks {self.evaluation_ranks} with gpus_per_node {self.gpus_per_node}: a rank needs a GPU"
            )
        if self.container.kind != "none" and self.modules:
            problems.append("container and modules contradict each other: modules of the host are not seen inside")
        if self.slurm.time_limit and seconds_of(self.slurm.time_limit) <= self.signal_seconds:
            problems.append(
                f"slurm.time_limit {self.slurm.time_limit} is not longer than signal_seconds {self.signal_seconds}: "
                "the training would be told to end as it begins"
            )
        if secret := [line for line in self.commands_before if re.search(r"(?i)(token|password|secret|key)\w*=", line)]:
            problems.append(
                f"commands_before would be written down, and {secret[0].split('=')[0]!r} looks like a secret: put it "
                "into a file that only you read, and source that"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self
