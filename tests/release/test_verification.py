"""What is compared before a release stands, in real fresh processes; and what must be refused."""

import dataclasses
import json
import re
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.data.manifest import read_manifest
from pipeline.errors import WorldError
from pipeline.recipe_reader import parse_recipe
from pipeline.release.export import export
from pipeline.release.verification import DECODING_TOLERANCE, TOLERANCE, logits_of, verify
from tests.evaluation.tiny_run import make_model

pytestmark = pytest.mark.slow
INPUTS = torch.arange(48).reshape(2, 24)


@pytest.fixture
def exported(run, tmp_path):
    """A bfloat16 export of a network of its own, and that network."""
    model = make_model(run)
    trained_logits = logits_of(model, INPUTS)
    export(model, "bfloat16", run.shards, read_manifest(run.shards).tokenizer, tmp_path / "exported")
    return model, trained_logits, tmp_path / "exported"


def test_a_sharply_attending_network_is_released_in_bfloat16(run, tmp_path):
    content = run.recipe.resolved()
    content["model"]["backbone"] |= {
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
    }
    model = make_model(dataclasses.replace(run, recipe=parse_recipe(content, "sharp")))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("query_key_value.weight"):
                weight *= 4
    inputs = torch.randint(0, 300, (4, 256), generator=torch.Generator().manual_seed(0))
    trained_logits = logits_of(model, inputs)
    export(model, "bfloat16", run.shards, read_manifest(run.shards).tokenizer, tmp_path / "sharp")
    verification = verify(model, tmp_path / "sharp", inputs, trained_logits, tmp_path / "log")
    assert verification.load_difference <= TOLERANCE
    assert verification.decoding_difference <= DECODING_TOLERANCE


def test_a_network_that_may_not_skip_is_released_as_it_is(run, tmp_path):
    content = run.recipe.resolved()
    content["model"]["kv_reuse"] = False
    model = make_model(dataclasses.replace(run, recipe=parse_recipe(content, "without reuse")))
    trained_logits = logits_of(model, INPUTS)
    export(model, "float32", run.shards, read_manifest(run.shards).tokenizer, tmp_path / "exported")
    assert json.loads((tmp_path / "exported" / "config.json").read_text())["halting"] == "masked"
    verification = verify(model, tmp_path / "exported", INPUTS, trained_logits, tmp_path / "log")
    assert verification.decoding_difference <= 1e-5


def test_a_changed_weight_is_refused_with_the_difference(exported, tmp_path):
    model, trained_logits, folder = exported
    weights = load_file(folder / "model.safetensors")
    weights["gpt_neox.layers.0.attention.dense.weight"] *= 1.05
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WorldError, match="release refused: .* differ from those .* by up to") as refused:
        verify(model, folder, INPUTS, trained_logits, tmp_path / "log")
    told = re.search(r"by up to ([\d.e+-]+) \(allowed: 0.0001\)", str(refused.value))
    assert told is not None
    assert float(told[1]) > TOLERANCE


@pytest.mark.parametrize(("name", "value"), [("max_passes", 2), ("halting", "none")])
def test_a_changed_setting_is_refused(exported, tmp_path, name, value):
    model, trained_logits, folder = exported
    config = json.loads((folder / "config.json").read_text())
    assert config[name] != value
    config[name] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WorldError, match="release refused"):
        verify(model, folder, INPUTS, trained_logits, tmp_path / "log")


def test_a_cache_that_forgets_is_refused(exported, tmp_path):
    """The plain path, which has no such cache, is as it was; only decoding tells."""
    model, trained_logits, folder = exported
    code = folder / "adaponder_cache.py"
    whole = "        spans += [Span(segment, 1) for segment in self.moving[pass_index : pass_index + 1]]\n"
    assert whole in code.read_text()
    code.write_text(code.read_text().replace(whole, ""))
    with pytest.raises(WorldError, match="release refused: .* decodes with logits that differ .* by up to"):
        verify(model, folder, INPUTS, trained_logits, tmp_path / "log")


def test_code_that_leans_on_this_project_is_refused(exported, tmp_path):
    model, trained_logits, folder = exported
    code = folder / "modeling_adaponder.py"
    code.write_text(code.read_text().replace("import torch\n", "import pipeline\nimport torch\n", 1))
    with pytest.raises(WorldError, match="pipeline does not exist where a release is loaded"):
        verify(model, folder, INPUTS, trained_logits, tmp_path / "log")


def test_a_gate_that_no_token_comes_to_is_compared_too(run, tmp_path):
    """The gates halt every token after the first pass: a spoilt second pass shows at imposed depths alone."""
    model = make_model(run)
    gate: Any = model.gates[0]
    with torch.no_grad():
        gate.logit.weight.zero_()
        gate.logit.bias.fill_(-50.0)
    trained_logits = logits_of(model, INPUTS)
    export(model, "float32", run.shards, read_manifest(run.shards).tokenizer, tmp_path / "exported")
    verification = verify(model, tmp_path / "exported", INPUTS, trained_logits, tmp_path / "log")
    assert verification.depth_difference <= 1e-5
    weights = load_file(tmp_path / "exported" / "model.safetensors")
    weights["gates.1.logit.bias"] -= 10.0
    save_file(weights, tmp_path / "exported" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WorldError, match="release refused: .* with every token at depth 3, .* differ from those"):
        verify(model, tmp_path / "exported", INPUTS, trained_logits, tmp_path / "log")


def test_a_tokenizer_that_loads_as_another_is_refused(exported, tmp_path):
    """tokenizer.json is the training's, byte for byte; what stands beside it makes other tokens."""
    model, trained_logits, folder = exported
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pad_token": "def"}))
    with pytest.raises(WorldError, match=r"release refused: .* makes other tokens than the training's of .*def f"):
        verify(model, folder, INPUTS, trained_logits, tmp_path / "log")
