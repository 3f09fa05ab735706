"""Manifests against the published schemas: Kubernetes 1.31 (kubernetes-validate) and Kubeflow Trainer 2.3."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from launch.targets.kubernetes import check, evaluation
from launch.targets.launching import dns_label
from pipeline.errors import UserError
from tests.launch.targets.launched import bash, files_of, launch_of, programs

EVERYTHING = {
    "image": "registry.example/a/b@sha256:abc",
    "volume_claim": "runs",
    "image_pull_secrets": ["registry"],
    "tolerations": [{"key": "nvidia.com/gpu", "effect": "NoSchedule"}, {"key": "a", "operator": "Equal", "value": "b"}],
    "node_selector": {"pool": "gpu"},
    "service_account": "trainer",
    "environment_secret": "tokens",
}


def manifests(launch) -> list[dict]:
    return [
        document
        for name, text in files_of(launch).items()
        if name.endswith(".yaml")
        for document in yaml.safe_load_all(text)
    ]


@pytest.mark.parametrize("section", [{}, EVERYTHING], ids=["least", "everything"])
@pytest.mark.parametrize("kind", ["job", "trainjob"])
def test_manifests_fit_the_published_schemas(kind, section):
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    models = pytest.importorskip("kubeflow_trainer_api.models")
    kubernetes = {"image": "a/b:1", "volume_claim": "runs", **section, "kind": kind}
    launch = launch_of("kubernetes", Path("/runs $x"), gpus_per_node=8, ranks_per_node=8, kubernetes=kubernetes)
    found = manifests(launch)
    kinds = [document["kind"] for document in found]
    assert sorted(set(kinds)) == (
        ["ConfigMap", "Job", "Service"] if kind == "job" else ["ConfigMap", "Job", "TrainJob"]
    )
    for document in found:
        if document["kind"] == "TrainJob":
            model = models.TrainerV1alpha1TrainJob.from_dict(document)
            # The models pass over what they do not know: nothing may get lost.
            assert json.loads(model.to_json()) == document
        else:
            kubernetes_validate.validate(document, "1.31", strict=True)
    command = launch.evaluation("step-00000020", ["validation"], "/data/runs", "/data/runs/tiny/recipe.yaml")
    judging = yaml.safe_load(evaluation(launch, "eval-00000020-1", command))
    kubernetes_validate.validate(judging, "1.31", strict=True)


@pytest.mark.parametrize(("gpus", "asked"), [(8, "4"), (0, None)])
def test_an_evaluation_of_several_ranks_gets_a_gpu_for_each(gpus, asked):
    launch = launch_of("kubernetes", Path("/runs"), gpus_per_node=gpus, evaluation_ranks=4)
    command = launch.evaluation("step-00000020", ["validation"], "/data/runs", "/data/runs/tiny/recipe.yaml")
    judging = yaml.safe_load(evaluation(launch, "eval-00000020-1", command))
    [stage] = list(yaml.safe_load_all(files_of(launch)["evaluate.yaml"]))
    for job in (judging, stage):
        [container] = job["spec"]["template"]["spec"]["containers"]
        assert container["command"][1:3] == ["-m", "launch.node"]
        assert container["resources"]["limits"].get("nvidia.com/gpu") == asked


def test_more_ranks_than_gpus_are_refused():
    with pytest.raises(UserError, match="evaluation_ranks 4 with gpus_per_node 2"):
        launch_of("kubernetes", Path("/runs"), gpus_per_node=2, evaluation_ranks=4)


def test_secrets_are_named_and_never_written(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "a-secret-value")
    launch = launch_of("kubernetes", Path("/runs"), kubernetes=EVERYTHING)
    files = files_of(launch)
    assert all("a-secret-value" not in text for text in files.values())
    [job] = list(yaml.safe_load_all(files["evaluate.yaml"]))
    [container] = job["spec"]["template"]["spec"]["containers"]
    reference = {"secretKeyRef": {"name": "tokens", "key": "HF_TOKEN", "optional": True}}
    assert {"name": "HF_TOKEN", "valueFrom": reference} in container["env"]


def test_pods_meet_at_the_first_one():
    service, job = yaml.safe_load_all(files_of(launch_of("kubernetes", Path("/runs"), "A_run.1"))["train.yaml"])
    name = service["metadata"]["name"]
    pod = job["spec"]["template"]["spec"]
    assert (service["spec"]["clusterIP"], pod["subdomain"], job["metadata"]["name"]) == ("None", name, name)
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    assert (job["spec"]["completionMode"], job["spec"]["completions"], job["spec"]["parallelism"]) == ("Indexed", 2, 2)
    # What Kubernetes leaves of the command, run by a real shell in pod 1.
    command = pod["containers"][0]["command"][2].replace("$$", "$").replace("exec python3", "printf '%s\\n'")
    done = bash(command, environment={"JOB_COMPLETION_INDEX": "1"})
    assert f"{name}-0.{name}:29500" in done.stdout
    assert "is_host=0\n" in done.stdout


def test_a_part_for_each_pod():
    [job] = yaml.safe_load_all(files_of(launch_of("kubernetes", Path("/runs")))["tokenize.yaml"])
    command = job["spec"]["template"]["spec"]["containers"][0]["command"][2].replace("$$", "$")
    done = bash(command.replace("exec python3", "printf '%s '"), environment={"JOB_COMPLETION_INDEX": "2"})
    assert done.stdout.endswith("--part 3/3 --workers 8 ")
    assert job["spec"]["completions"] == 3


def test_stages_wait_for_each_other_and_a_failed_one_ends_it(tmp_path):
    kubectl = """
case "$*" in
    *"apply"*train.yaml*) touch "$HOME/failed" ;;
    *"get"*) if [[ -e "$HOME/failed" ]]; then echo "FailureTarget Failed "; else echo "Complete "; fi ;;
esac
echo "$*" >>"$HOME/asked"
"""
    launch = launch_of("kubernetes", tmp_path)
    (tmp_path / "start.sh").write_text(files_of(launch)["start.sh"])
    done = bash(tmp_path / "start.sh", environment=programs(tmp_path / "programs", kubectl=kubectl))
    assert done.returncode == 1
    assert "job/tiny-train failed" in done.stderr
    asked = (tmp_path / "programs" / "asked").read_text()
    assert asked.index("tokenize.yaml") < asked.index("tokenize-finish.yaml") < asked.index("train.yaml")
    assert "evaluate" not in asked


@pytest.mark.parametrize("name", ["a", "A", "a.b", "a_b", "x" * 60, "-".join("ab" * 30)])
def test_names_become_labels(name):
    label = dns_label(name)
    assert len(label) <= 40
    assert label == label.lower() and label[0].isalnum() and label[-1].isalnum()
    assert (label == name) == (name in ("a",))


@pytest.mark.parametrize(
    ("cluster", "told"),
    [
        ({"kubernetes": {"volume_claim": "runs"}}, "image is empty"),
        ({"kubernetes": {"image": "a"}}, "volume_claim is empty"),
        ({"kubernetes": {**EVERYTHING, "runs": "/other"}}, "is not below mount_path /data"),
        ({"kubernetes": EVERYTHING, "modules": ["cuda"]}, "build what they do into the image"),
    ],
)
def test_what_is_refused(cluster, told):
    with pytest.raises(UserError, match=told):
        check(launch_of("kubernetes", Path("/runs"), **cluster), submit=False)
