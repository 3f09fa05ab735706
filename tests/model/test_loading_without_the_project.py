"""A folder of weights and this folder's files loads where the project is not installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pipeline.model
from pipeline.model import AdaPonderForCausalLM
from tests.model.tiny_adaponder import halting_config, random_model, random_tokens

ELSEWHERE = """
import sys
sys.modules["pipeline"] = None  # as if it were not installed: importing it raises
import torch
from transformers import AutoConfig, AutoModelForCausalLM
folder, given, result = sys.argv[1:]
given = torch.load(given)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
output = model(given["tokens"])
text = model.generate(given["tokens"], attention_mask=torch.ones_like(given["tokens"]), max_new_tokens=4,
                      do_sample=False, eos_token_id=None, pad_token_id=0)
torch.manual_seed(9)
scratch = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, trust_remote_code=True),
                                           trust_remote_code=True)
torch.save({"module": type(model).__module__, "logits": output.logits, "depths": output.depths, "text": text,
            "weights": model.state_dict(), "scratch": scratch.state_dict()}, result)
"""


@pytest.mark.slow
def test_auto_model_loads_it(tmp_path: Path) -> None:
    model = random_model(halting_config(), seed=61, dtype=torch.float32)
    folder = tmp_path / "release"
    model.save_pretrained(folder)
    described = json.loads((folder / "config.json").read_text())
    described["auto_map"] = {
        "AutoConfig": "configuration_adaponder.AdaPonderConfig",
        "AutoModelForCausalLM": "modeling_adaponder.AdaPonderForCausalLM",
    }
    (folder / "config.json").write_text(json.dumps(described))
    for source in Path(pipeline.model.__file__).parent.glob("*.py"):
        shutil.copy(source, folder)
    tokens = random_tokens(2, 9, seed=61)
    torch.save({"tokens": tokens}, tmp_path / "given.pt")

    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    arguments = [str(folder), str(tmp_path / "given.pt"), str(tmp_path / "result.pt")]
    done = subprocess.run(
        [sys.executable, "-I", "-c", ELSEWHERE, *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    result = torch.load(tmp_path / "result.pt")
    assert result["module"].startswith("transformers_modules.")
    assert all(torch.equal(value, result["weights"][name]) for name, value in model.state_dict().items())
    output = model(tokens)
    torch.testing.assert_close(result["logits"], output.logits)
    assert torch.equal(result["depths"], output.depths)
    mask = torch.ones_like(tokens)
    expected = model.generate(
        tokens, attention_mask=mask, max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert torch.equal(result["text"], expected)
    torch.manual_seed(9)
    scratch = AdaPonderForCausalLM(model.config).state_dict()
    assert all(torch.equal(value, result["scratch"][name]) for name, value in scratch.items())
