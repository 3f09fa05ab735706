"""A release in a new virtual environment with only torch, transformers and safetensors; made from the package index.

`make test-release-env` runs it: it installs torch for the CPU, 1.2 GB in a minute and a half on two cores.
"""

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata

import pytest
import torch

from pipeline.release.stage import release
from pipeline.release.verification import TOLERANCE

pytestmark = pytest.mark.release_env
INSTALL_SECONDS = 900

LOAD = """
import importlib.util, json, sys
for package in ("pipeline", "tokenization", "launch", "ds_configs", "deepspeed", "mlflow"):
    assert importlib.util.find_spec(package) is None, package
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
path = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True).eval()
inputs = tokenizer("token passes gate halt depth", add_special_tokens=False, return_tensors="pt")
with torch.inference_mode():
    output = model(inputs["input_ids"])
options = dict(max_new_tokens=12, do_sample=False, pad_token_id=model.config.eos_token_id)
cached = model.generate(**inputs, **options, use_cache=True)
whole = model.generate(**inputs, **options, use_cache=False)
print(json.dumps({"ids": inputs["input_ids"].tolist(), "logits": output.logits.tolist(),
                  "depths": output.depths.tolist(), "cached": cached.tolist(), "whole": whole.tolist(),
                  "where": torch.__file__}))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The interpreter of the new environment."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=120)
    interpreter = folder / "bin" / "python"
    versions = {name: metadata.version(name) for name in ("torch", "transformers", "safetensors")}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def install(pins):
        command = [str(interpreter), "-m", "pip", "install", "--quiet", *pins]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
        )

    # The build that is installed here (CPU, CUDA) where the index has it, else the version as the index has it.
    done = install([f"{name}=={version}" for name, version in versions.items()])
    if done.returncode:
        done = install([f"{name}=={version.partition('+')[0]}" for name, version in versions.items()])
    assert done.returncode == 0, done.stderr
    yield interpreter
    shutil.rmtree(folder)  # over a gigabyte


def test_it_loads_generates_with_a_cache_and_gives_the_trained_logits(run, model, checkpoint, python, tmp_path):
    released = release(run.recipe, run, command="adaponder release tiny")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    own = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [str(python), "-c", LOAD, str(released)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=kept | own,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["where"].startswith(str(python.parent.parent))
    with torch.inference_mode():
        expected = model(torch.tensor(found["ids"]))
    assert (torch.tensor(found["logits"]) - expected.logits).abs().max().item() <= TOLERANCE
    assert found["depths"] == expected.depths.tolist()
    assert len(set(found["depths"][0])) > 1, "some tokens halt"
    assert found["cached"] == found["whole"]
