"""`adaponder compare`: two checkpoints of a real run on the same rows and prompts."""

import copy
import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from pipeline.data.manifest import read_manifest
from pipeline.data.rows import IGNORED_LABEL, RowReader
from pipeline.errors import UserError
from pipeline.evaluation.comparison import Judged, compare_and_tell, require_comparable
from pipeline.evaluation.generation import Asked
from pipeline.evaluation.sample import Sampling
from pipeline.evaluation.standing_network import open_network
from tests.evaluation.tiny_run import write_checkpoint

ASKED = Asked(["token <passes>"], 4, 3, Sampling())
JUDGED = Judged(rows_per_source=24, batch_rows=3, draws=200, seed=1, shards=None)


@pytest.fixture(scope="module")
def pair(run, checkpoint, model):
    """The checkpoint, and one of a network that was changed a little and never halts early."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.lm_head.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
        for gate in other.gates:
            gate.logit.bias += 50
    written = write_checkpoint(run, other, step=19)
    yield (checkpoint, model), (written, other)
    shutil.rmtree(written.path)


def places(pair):
    (a, _), (b, _) = pair
    return str(a.path), str(b.path)


def told(pair, capsys, judged=JUDGED):
    where = places(pair)
    compare_and_tell(where, None, ASKED, judged, None, True)
    return json.loads(capsys.readouterr().out)


def test_losses_and_depths_are_those_of_a_plain_loop_over_documents(run, pair, capsys):
    found = told(pair, capsys)
    manifest = read_manifest(run.shards)
    documents: dict[tuple[str, int], np.ndarray] = {}
    for key, split in manifest.splits.items():
        if split.split != "validation":
            continue
        document = 0
        with RowReader(run.shards, manifest, key) as reader:
            inputs, labels = reader.batch(range(split.rows))
        with torch.no_grad():
            outputs = [model(inputs, shift_labels=labels) for _, model in pair]
        for row in range(len(inputs)):
            for place in range(inputs.shape[1]):
                if labels[row, place] != IGNORED_LABEL:
                    sums = documents.setdefault((key, document), np.zeros(5))
                    losses = [float(output.nll[row, place]) for output in outputs]
                    sums += [1, *losses, *(float(output.depths[row, place]) for output in outputs)]
                document += int(inputs[row, place] == manifest.tokenizer.end_of_document_id)
    total = np.sum(list(documents.values()), axis=0)
    overall = found["overall"]
    assert (overall["documents"], overall["tokens"]) == (len(documents), total[0])
    assert overall["documents"] > 3
    for number, name in enumerate(("loss_a", "loss_b", "depth_a", "depth_b"), start=1):
        assert overall[name]["value"] == pytest.approx(total[number] / total[0], rel=1e-5)
    difference = overall["loss_difference"]
    assert difference["value"] == pytest.approx((total[2] - total[1]) / total[0], rel=1e-4)
    low, high = difference["interval"]
    assert low < difference["value"] < high
    assert set(found["sources"]) == {"words", "more words"}
    # The difference is surer than either loss: the same documents are drawn for both.
    spread = overall["loss_a"]["interval"]
    assert high - low < spread[1] - spread[0]
    assert overall["depth_b"]["value"] == 3.0 > overall["depth_a"]["value"]


def test_a_network_beside_itself_is_surely_the_same_and_numbers_are_the_seeds(pair, capsys):
    found = told((pair[0], pair[0]), capsys)
    assert found["overall"]["loss_difference"] == {"value": 0.0, "interval": [0.0, 0.0]}
    assert found["texts"][0]["a"]["pieces"] == found["texts"][0]["b"]["pieces"]
    first, again = told(pair, capsys), told(pair, capsys)
    assert first == again
    assert told(pair, capsys, dataclasses.replace(JUDGED, seed=2))["overall"] != first["overall"]


def test_the_size_of_a_batch_changes_nothing(pair, capsys):
    first = told(pair, capsys)["overall"]
    other = told(pair, capsys, dataclasses.replace(JUDGED, batch_rows=8))["overall"]
    assert other["loss_difference"]["value"] == pytest.approx(first["loss_difference"]["value"], abs=1e-6)
    assert other["documents"] == first["documents"]


def test_the_terminal_and_the_page_show_both(pair, capsys, tmp_path):
    where = places(pair)
    compare_and_tell(where, None, ASKED, JUDGED, tmp_path / "page.html", False)
    shown = capsys.readouterr().out
    page = (tmp_path / "page.html").read_text()
    for text in (shown, page):
        assert "tiny/step-00000020" in text and "tiny/step-00000019" in text
        assert "all, loss (nats)" in text and "words, mean depth" in text
        assert "B - A" in text
    assert "token &lt;" in page or "token</b>" in page
    assert "<passes>" not in page
    assert page.count('<div class="text">') == 2


@pytest.mark.parametrize(("what", "field"), [("tokenizer", "tokenizer_sha256"), ("shards", "manifest_hash")])
def test_what_was_trained_on_other_tokens_is_refused(pair, what, field):
    a, b = (open_network(str(checkpoint.path), None) for checkpoint, _ in pair)
    require_comparable(a, b)
    with pytest.raises(UserError, match=f"have different {what} .* cannot be compared"):
        require_comparable(a, dataclasses.replace(b, **{field: "0" * 64}))


def test_shards_given_must_be_the_networks_own(run, pair, tmp_path):
    where = places(pair)
    with pytest.raises(UserError, match="holds no manifest.json"):
        compare_and_tell(where, None, ASKED, dataclasses.replace(JUDGED, shards=tmp_path), None, False)
    shutil.copytree(run.shards, tmp_path / "shards")
    content = json.loads((tmp_path / "shards" / "manifest.json").read_text())
    (tmp_path / "shards" / "manifest.json").write_text(json.dumps({**content, "rejected": {"empty": 1}}))
    with pytest.raises(UserError, match="but the networks were trained on manifest"):
        compare_and_tell(where, None, ASKED, dataclasses.replace(JUDGED, shards=tmp_path / "shards"), None, False)
