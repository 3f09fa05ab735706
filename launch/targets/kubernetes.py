"""Kubernetes: a manifest for each job, and start.sh, which applies them in turn with kubectl.

Training is an Indexed Job whose pods find each other through a headless service, or a TrainJob of Kubeflow Trainer 2;
tokenization is an Indexed Job and a job that joins its parts. The recipe comes as a ConfigMap, everything else lies on
a volume that all pods share. Secrets are named, never written: variables come from a Secret by their names.
"""

from __future__ import annotations

from typing import Any

import yaml

from launch.targets.launching import ALL, RECIPE, STAGES, START, Launch, check_stage, dns_label, require_program
from launch.targets.shell_script import script, stage_choice, words
from pipeline.errors import UserError

CONFIG = "recipe-configmap.yaml"
_PORT = 29500
_RECIPE_FOLDER = "/etc/adaponder"
_STOPPED, _USER_ERROR = 75, 2
_FIELD_OWNER = "adaponder.io/launch"


class _WrittenOut(yaml.SafeDumper):
    """YAML without anchors: what stands twice is written twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def check(launch: Launch, submit: bool) -> None:
    """`UserError` for what the manifests would lack."""
    check_stage(launch)
    cluster, section = launch.cluster, launch.cluster.kubernetes
    problems = []
    if not section.image:
        problems.append("cluster.kubernetes.image is empty: name an image that has this project")
    if not section.volume_claim:
        problems.append("cluster.kubernetes.volume_claim is empty: name a claim that all pods may write")
    if not f"{section.runs}/".startswith(f"{section.mount_path.rstrip('/')}/"):
        problems.append(
            f"cluster.kubernetes.runs {section.runs} is not below mount_path {section.mount_path}: the runs would end "
            "with their pod"
        )
    if cluster.container.kind != "none":
        problems.append(f"cluster.container {cluster.container.kind} is for slurm: the image is kubernetes.image")
    if cluster.modules or cluster.commands_before:
        problems.append("cluster.modules and commands_before are for hosts: build what they do into the image")
    if problems:
        raise UserError("launch kubernetes: " + "; ".join(problems))
    if submit:
        require_program("kubectl", "install it and give it the cluster's context")


def files(launch: Launch) -> dict[str, str]:
    """The manifests, and start.sh."""
    written = {START: _start(launch), CONFIG: _yaml(_config_map(launch))}
    for part in launch.parts:
        written[f"{part}.yaml"] = _yaml(_tokenization(launch, part))
    if launch.cluster.kubernetes.kind == "trainjob":
        written["train.yaml"] = _yaml(_train_job(launch))
    else:
        written["train.yaml"] = _yaml(_service(launch), _indexed_training(launch))
    for stage in ("evaluate", "release"):
        written[f"{stage}.yaml"] = _yaml(_single(launch, stage))
    return written


def _yaml(*documents: dict[str, Any], written_by: str = "adaponder launch kubernetes") -> str:
    head = f"# Written by `{written_by}`.\n"
    return head + yaml.dump_all(documents, Dumper=_WrittenOut, sort_keys=False, allow_unicode=True, width=1000)


def _name(launch: Launch, part: str) -> str:
    return f"{dns_label(launch.recipe.name)}-{part}"


def _metadata(launch: Launch, part: str) -> dict[str, Any]:
    labels = {"app.kubernetes.io/name": "adaponder", "app.kubernetes.io/instance": dns_label(launch.recipe.name)}
    return {"name": _name(launch, part), "namespace": launch.cluster.kubernetes.namespace, "labels": labels}


def _config_map(launch: Launch) -> dict[str, Any]:
    text = yaml.safe_dump(launch.recipe.resolved(), sort_keys=False, allow_unicode=True)
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": _metadata(launch, "recipe"), "data": {RECIPE: text}}


def _literal(word: str) -> str:
    """Kubernetes replaces $(NAME) in commands; what is written here is meant as it stands."""
    return word.replace("$", "$$")


def _stage_command(launch: Launch, stage: str) -> list[str]:
    runs = launch.cluster.kubernetes.runs
    return [_literal(word) for word in launch.arguments(stage, runs, f"{_RECIPE_FOLDER}/{RECIPE}")]


def _environment(launch: Launch) -> list[dict[str, Any]]:
    cluster = launch.cluster
    found: list[dict[str, Any]] = []
    if secret := cluster.kubernetes.environment_secret:
        found += [
            {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": name, "optional": True}}}
            for name in cluster.environment
        ]
    if cluster.network_interface:
        names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
        found += [{"name": name, "value": cluster.network_interface} for name in names]
    if not cluster.gpus_per_node:
        found += [{"name": "CUDA_VISIBLE_DEVICES", "value": ""}, {"name": "DS_ACCELERATOR", "value": "cpu"}]
    return found


def _resources(launch: Launch, cpus: str, memory: str, gpus: int) -> dict[str, Any]:
    devices = {launch.cluster.kubernetes.gpu_resource: str(gpus)} if gpus else {}
    return {"requests": {"cpu": cpus, "memory": memory, **devices}, "limits": {"memory": memory, **devices}}


def _volumes(launch: Launch) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The pod's volumes, and where the container sees them."""
    section = launch.cluster.kubernetes
    volumes = [
        {"name": "runs", "persistentVolumeClaim": {"claimName": section.volume_claim}},
        {"name": "recipe", "configMap": {"name": _name(launch, "recipe")}},
        # NCCL and gloo use more shared memory than a container's 64 MiB.
        {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
    ]
    mounts = [
        {"name": "runs", "mountPath": section.mount_path},
        {"name": "recipe", "mountPath": _RECIPE_FOLDER, "readOnly": True},
        {"name": "shared-memory", "mountPath": "/dev/shm"},
    ]
    return volumes, mounts


def _placement(launch: Launch) -> dict[str, Any]:
    """Where pods may run, and as whom."""
    section = launch.cluster.kubernetes
    tolerations = [
        {name: value for name, value in toleration.model_dump().items() if value} for toleration in section.tolerations
    ]
    found: dict[str, Any] = {
        "nodeSelector": dict(section.node_selector),
        "tolerations": tolerations,
        "imagePullSecrets": [{"name": name} for name in section.image_pull_secrets],
        "serviceAccountName": section.service_account,
    }
    return {name: value for name, value in found.items() if value}


def _job(
    launch: Launch,
    part: str,
    command: list[str],
    resources: dict[str, Any],
    *,
    pods: int = 1,
    together: bool = False,
) -> dict[str, Any]:
    """A Job of `pods` pods; together: they find each other by name and each has its number."""
    section = launch.cluster.kubernetes
    volumes, mounts = _volumes(launch)
    container = {
        "name": "stage",
        "image": section.image,
        "command": command,
        "env": _environment(launch),
        "resources": resources,
        "volumeMounts": mounts,
    }
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": launch.cluster.signal_seconds,
        **({"subdomain": _name(launch, "train")} if together else {}),
        **_placement(launch),
        "containers": [container],
        "volumes": volumes,
    }
    indexed = {"completionMode": "Indexed"} if pods > 1 or together or part.startswith("tokenize") else {}
    rules = [
        # A pod that was stopped has saved; a mistake of the user does not mend itself.
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        *([_exit_rule("Ignore", _STOPPED)]),
        _exit_rule("FailJob", _USER_ERROR),
    ]
    metadata = _metadata(launch, part)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {
            **indexed,
            "completions": pods,
            "parallelism": pods,
            "backoffLimit": section.restarts,
            "podFailurePolicy": {"rules": rules},
            "template": {"metadata": {"labels": metadata["labels"]}, "spec": pod},
        },
    }


def _exit_rule(action: str, code: int) -> dict[str, Any]:
    return {"action": action, "onExitCodes": {"containerName": "stage", "operator": "In", "values": [code]}}


def _tokenization(launch: Launch, part: str) -> dict[str, Any]:
    cluster = launch.cluster
    resources = _resources(launch, str(cluster.tokenize_cpus), cluster.kubernetes.tokenize_memory, 0)
    own = {"tokenize-scan": " --scan", "tokenize-finish": " --finish"}.get(part, "")
    runs = cluster.kubernetes.runs
    command = f"exec {words(launch.arguments('tokenize', runs, f'{_RECIPE_FOLDER}/{RECIPE}'))}{own}"
    jobs = 1
    if part != "tokenize-finish":
        jobs = cluster.tokenize_jobs
        command += f' --part "$((JOB_COMPLETION_INDEX + 1))/{jobs}" --workers {cluster.tokenize_cpus}'
    return _job(launch, part, ["bash", "-c", _literal(command)], resources, pods=jobs)


def _single(launch: Launch, stage: str) -> dict[str, Any]:
    ranks = launch.cluster.evaluation_ranks if stage == "evaluate" else 1
    return _job(launch, stage, _stage_command(launch, stage), _resources_of_one_pod(launch, ranks))


def evaluation(launch: Launch, name: str, command: list[str]) -> str:
    """The manifest of one evaluation that `adaponder watch` applies as the Job `evaluation_name(launch, name)`.

    One try: the watcher counts them. The recipe comes from the volume, since each watcher may have another.
    """
    resources = _resources_of_one_pod(launch, launch.cluster.evaluation_ranks)
    job = _job(launch, name, [_literal(word) for word in command], resources)
    job["spec"]["backoffLimit"] = 0
    pod = job["spec"]["template"]["spec"]
    pod["volumes"] = [volume for volume in pod["volumes"] if volume["name"] != "recipe"]
    (container,) = pod["containers"]
    container["volumeMounts"] = [mount for mount in container["volumeMounts"] if mount["name"] != "recipe"]
    return _yaml(job, written_by="adaponder watch")


def _resources_of_one_pod(launch: Launch, ranks: int) -> dict[str, Any]:
    section = launch.cluster.kubernetes
    return _resources(launch, section.cpus, section.memory, min(ranks, launch.cluster.gpus_per_node))


def evaluation_name(launch: Launch, name: str) -> str:
    """What the Job is called in its namespace."""
    return _name(launch, name)


def _training_worker(launch: Launch) -> list[str]:
    return launch.worker(launch.cluster.kubernetes.runs, f"{_RECIPE_FOLDER}/{RECIPE}")


def _service(launch: Launch) -> dict[str, Any]:
    """Gives each pod of the training a name in DNS, also before it is ready."""
    spec = {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": {"batch.kubernetes.io/job-name": _name(launch, "train")},
        "ports": [{"name": "rendezvous", "port": launch.cluster.port or _PORT}],
    }
    return {"apiVersion": "v1", "kind": "Service", "metadata": _metadata(launch, "train"), "spec": spec}


def _indexed_training(launch: Launch) -> dict[str, Any]:
    cluster, section = launch.cluster, launch.cluster.kubernetes
    name = _name(launch, "train")
    command = [
        *(launch.python, "-m", "launch.node", "--nnodes", str(cluster.nodes), "--nproc-per-node", str(cluster.ranks)),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", f"{name}-0.{name}:{cluster.port or _PORT}", "--rdzv-id", name),
    ]
    text = (
        f'exec {words(command)} --rdzv-conf "is_host=$((JOB_COMPLETION_INDEX == 0))" '
        f"--module {words(_training_worker(launch))}"
    )
    resources = _resources(launch, section.cpus, section.memory, cluster.gpus_per_node)
    return _job(launch, "train", ["bash", "-c", _literal(text)], resources, pods=cluster.nodes, together=True)


def _train_job(launch: Launch) -> dict[str, Any]:
    """The runtime sets torchrun's own variables (PET_...), so the command says nothing of nodes."""
    cluster, section = launch.cluster, launch.cluster.kubernetes
    volumes, mounts = _volumes(launch)
    command = [launch.python, "-m", "launch.node", "--module", *_training_worker(launch)]
    pod = {
        "terminationGracePeriodSeconds": cluster.signal_seconds,
        **_placement(launch),
        "volumes": volumes,
        "containers": [{"name": "node", "volumeMounts": mounts}],
    }
    job = {"name": "node", "template": {"spec": {"template": {"spec": pod}}}}
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": _metadata(launch, "train"),
        "spec": {
            "runtimeRef": {"name": section.training_runtime},
            "trainer": {
                "image": section.image,
                "command": [_literal(word) for word in command],
                "env": _environment(launch),
                "numNodes": cluster.nodes,
                "numProcPerNode": cluster.ranks,
                "resourcesPerNode": _resources(launch, section.cpus, section.memory, cluster.gpus_per_node),
            },
            "runtimePatches": [
                {
                    "manager": _FIELD_OWNER,
                    "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [job]}}},
                }
            ],
        },
    }


def _start(launch: Launch) -> str:
    section = launch.cluster.kubernetes
    lines = [
        "set -u",
        *stage_choice(),
        f"launch={words([str(launch.path)])}",
        f'kubectl() {{ command kubectl --namespace {section.namespace} "$@"; }}',
        "condition() { # KIND/NAME: its conditions that are true",
        """    kubectl get "$1" --ignore-not-found \\""",
        """        -o jsonpath='{range .status.conditions[?(@.status=="True")]}{.type} {end}'""",
        "}",
        "run() { # KIND/NAME FILE: again if it has ended, all stages go on where they were; wait for its end",
        "    local ended",
        '    ended=$(condition "$1")',
        '    if [[ "$ended" == *Complete* || "$ended" == *Failed* ]]; then kubectl delete "$1" --wait; fi',
        '    kubectl apply -f "$launch/$2.yaml"',
        "    while :; do",
        '        ended=$(condition "$1")',
        '        if [[ "$ended" == *Failed* ]]; then echo "$1 failed: kubectl logs $1" >&2; return 1; fi',
        '        if [[ "$ended" == *Complete* ]]; then echo "$1 is done"; return; fi',
        "        sleep 15",
        "    done",
        "}",
        f'kubectl apply -f "$launch/{CONFIG}"',
    ]
    for stage in STAGES:
        parts = launch.parts if stage == "tokenize" else [stage]
        kind = "trainjob" if stage == "train" and section.kind == "trainjob" else "job"
        if parts:
            runs = [f"    run {kind}/{_name(launch, part)} {part}" for part in parts]
            lines += [f"if wanted {stage}; then", *runs, "fi"]
    return script(
        launch, f"Runs one stage, or all in turn, and waits: start.sh [STAGE]; {ALL} if none is given.", lines
    )
