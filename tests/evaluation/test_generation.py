"""`adaponder generate` on a checkpoint of a real run, through the command line."""

import html
import json
import re
import subprocess
import sys

import pytest
import torch
from transformers import AutoTokenizer

from pipeline.errors import UserError
from pipeline.evaluation.generation import Asked, generate_and_tell, generation_page
from pipeline.evaluation.sample import Sampling, generate_sample
from pipeline.evaluation.standing_network import open_network

HOSTILE = '<script>alert(1)</script> & "quoted" [red]markup'


def shown(page):
    """What a reader sees of it."""
    return html.unescape(re.sub(r"<[^>]*>", "", page.split("</style>")[1]))


def asked(prompts, **sampling):
    return Asked(prompts, 6, 3, Sampling(**sampling))


@pytest.fixture
def network(checkpoint):
    return open_network(str(checkpoint.path), None)


def test_json_tells_the_same_text_and_depths_as_the_network(run, checkpoint, network, capsys):
    generate_and_tell(str(checkpoint.path), None, "latest", asked(["token", "gate"], greedy=True), None, True)
    first, second = json.loads(capsys.readouterr().out)
    tokenizer = AutoTokenizer.from_pretrained(run.shards / "tokenizer")
    ids = tokenizer("token", add_special_tokens=False, return_tensors="pt")
    end = tokenizer.eos_token_id
    plain = network.model.generate(
        **ids, max_new_tokens=6, do_sample=False, use_cache=False, eos_token_id=end, pad_token_id=end
    )
    assert [token for piece in first["pieces"] for token in piece["tokens"]] == plain[0].tolist()
    with torch.no_grad():
        depths = network.model(plain).depths[0].tolist()
    assert [depth for piece in first["pieces"] for depth in piece["depths"]] == depths
    assert first["mean_depth"] == pytest.approx(sum(depths) / len(depths))
    assert (first["prompt"], second["prompt"]) == ("token", "gate")
    assert first["text"].startswith("token")
    assert first["prompt_tokens"] == ids["input_ids"].shape[1]


def test_sampling_is_what_was_asked_for(network):
    def text(seed=3, **sampling):
        return generate_sample(network.model, network.tokenizer, "token", 16, seed, Sampling(**sampling)).text

    assert text(greedy=True) == text(seed=4, greedy=True) == text(top_k=1) == text(temperature=1e-3)
    assert text() == text() != text(seed=4)
    assert text(top_k=0, temperature=5.0) != text(greedy=True)


def test_a_run_is_named_by_folder_and_by_name(run, checkpoint):
    by_folder = open_network(str(run.path), None)
    by_name = open_network(run.recipe.name, run.root, checkpoint.name)
    assert by_folder.path == by_name.path == checkpoint.path
    assert by_folder.name == f"{run.recipe.name}/{checkpoint.name}"


@pytest.mark.parametrize(
    ("where", "name", "told"),
    [
        ("nothing", "latest", "nothing: neither a checkpoint's folder"),
        ("tiny", "step-00000001", "no complete checkpoint step-00000001"),
        ("checkpoints/step-00000021", "latest", "is no complete checkpoint"),
    ],
)
def test_what_is_no_network_is_the_users_mistake(run, checkpoint, where, name, told):
    cut = run.checkpoints / "step-00000021"
    cut.mkdir(exist_ok=True)
    try:
        with pytest.raises(UserError, match=told):
            open_network(str(run.path / where) if "/" in where else where, run.root, name)
    finally:
        cut.rmdir()


def test_a_page_holds_every_text_and_nothing_of_it_is_markup(network):
    prompts = asked([HOSTILE, "gate\n\tnaïve 🙂"])
    page = generation_page(network, prompts, prompts.of(network))
    assert "<script" not in page and HOSTILE in shown(page) and "gate\n\tnaïve 🙂" in shown(page)
    assert "http://" not in page and "https://" not in page and "src=" not in page
    assert page.count('<div class="text">') == 2
    assert "mean depth" in page and "Prompt 2" in page


@pytest.mark.slow
def test_the_command_reads_standard_input_and_files(run, checkpoint, runs, tmp_path):
    (tmp_path / "prompt").write_text("gate halts\n")
    command = [sys.executable, "-c", "from pipeline.cli import main; main()", "generate", "tiny"]
    command += ["--runs", str(run.root), "--tokens", "4", "--html", str(tmp_path / "page.html")]

    def generate(*arguments, given=HOSTILE):
        return subprocess.run(
            [*command, *arguments], input=given, env=runs.environment(), capture_output=True, text=True, timeout=120
        )

    done = generate()
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(HOSTILE)
    assert "passes; mean" in done.stdout
    assert HOSTILE in shown((tmp_path / "page.html").read_text())
    done = generate("--prompt", "token", "--prompt-file", str(tmp_path / "prompt"), "--json")
    assert [entry["prompt"] for entry in json.loads(done.stdout)] == ["token", "gate halts"]
    done = generate("--tokens", "64")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "beyond the model's 64 positions" in done.stderr
    done = generate("--prompt-file", str(tmp_path / "none"))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--prompt-file" in done.stderr and "No such file" in done.stderr
