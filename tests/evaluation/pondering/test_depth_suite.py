"""The suite on a real checkpoint, against the suite `validation` and the network itself."""

from __future__ import annotations

import html.parser
import re

import numpy as np
import pytest

from pipeline.data.manifest import read_manifest
from pipeline.evaluation.pondering.page import depth_page
from pipeline.evaluation.pondering.tokens import Tokens, look_at_tokens
from pipeline.evaluation.stage import evaluate, evaluate_suites
from pipeline.evaluation.subject import Subject
from pipeline.model.flops import inference_work, mean_keys


@pytest.fixture(scope="module")
def looked(run, checkpoint):
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        return evaluate_suites(run.recipe, run, checkpoint.name, ["depth"])["depth"]


@pytest.fixture(scope="module")
def tokens(run, checkpoint, model) -> Tokens:
    subject = Subject(run.recipe, run, checkpoint, read_manifest(run.shards), model)
    return look_at_tokens(subject, subject.validation_rows(16), 5)


def test_its_numbers_are_those_of_the_validation(looked, run, checkpoint):
    whole = evaluate(run.recipe, run, checkpoint.name)
    # Both take every row of the small sets.
    if looked.tokens == whole.overall.tokens:
        assert looked.mean_depth == pytest.approx(whole.overall.mean_depth)
        assert [group.tokens for group in looked.by_depth] == [entry.tokens for entry in whole.overall.by_depth]
    assert {group.name for group in looked.by_source} == set(whole.sources)


def test_what_is_spent_is_counted_by_depth(looked, model):
    counts = [group.tokens for group in looked.by_depth]
    work = inference_work(model.config, mean_keys(32), counts)
    assert looked.multiply_accumulates["total"] == pytest.approx(work.total)
    assert looked.multiply_accumulates["total"] < looked.full_depth_multiply_accumulates["total"]
    assert looked.active_shares[0] == 1
    assert sum(looked.active_shares) == pytest.approx(looked.mean_depth)


def test_gates_are_those_of_active_tokens(looked, tokens):
    for number, gate in enumerate(looked.gates):
        assert gate.tokens == sum(group.tokens for group in looked.by_depth if int(group.name) > number)
        assert sum(gate.counts) == gate.tokens
    halted = tokens.depths < tokens.max_passes
    last = tokens.gates[np.arange(len(tokens)), tokens.depths.clip(max=2) - 1]
    assert (last[halted] < looked.halt_threshold).all()
    went_on = tokens.depths > 1
    assert (tokens.gates[went_on, 0] >= looked.halt_threshold).all()


def test_figures_and_page_are_written(looked, run, checkpoint):
    output = run.evaluation(checkpoint.name, "depth")
    names = {"source", "position", "frequency", "kind"}
    assert {f"depth_by_{name}.png" for name in names} | {"gates.png"} == {path.name for path in output.glob("*.png")}
    page = (output / "depth.html").read_text(encoding="utf-8")
    assert "Most pondered" in page
    assert "Least pondered" in page
    assert not re.search(r"(src|href)=", page), "nothing from elsewhere"


class Balance(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.found.append(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_a_document_cannot_break_out_of_the_page(tokens):
    class Hostile:
        def batch_decode(self, ids, **_):
            return ["</p><script>alert(1)</script>" for _ in ids]

        def decode(self, ids, **_):
            return "<img src=x onerror=alert(1)>"

    page = depth_page(tokens, Hostile(), "<b>title</b>")
    parser = Balance()
    parser.feed(page)
    assert not parser.open
    assert "script" not in parser.found
    assert "img" not in parser.found


def test_extremes_come_first(tokens):
    from pipeline.evaluation.pondering.page import least_pondered, most_pondered

    most, least = most_pondered(tokens), least_pondered(tokens)
    assert tokens.depths[most[0].place] == tokens.depths.max()
    assert tokens.depths[least[0].place] == tokens.depths.min()
    pairs = [(tokens.ids[each.place], tokens.next_ids[each.place]) for each in most]
    assert len(set(pairs)) == len(pairs)
