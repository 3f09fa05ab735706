from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.manifest import read_manifest
from pipeline.data.rows import IGNORED_LABEL, RowReader
from pipeline.errors import UserError
from pipeline.evaluation.stage import evaluate, evaluate_suites
from pipeline.evaluation.windows import WindowSuite, windows_of
from tests.evaluation.test_stage import with_recipe


@given(st.integers(0, 200), st.integers(2, 20), st.data())
def test_every_token_but_the_first_is_predicted_once_with_enough_before_it(size, window, data):
    overlap = data.draw(st.integers(0, window - 1))
    text = np.arange(size)
    seen = []
    for inputs, labels in windows_of(text, window, overlap):
        assert inputs.shape == labels.shape == (window,)
        counted = (labels != IGNORED_LABEL).nonzero().flatten().tolist()
        for place in counted:
            token = int(labels[place])
            assert inputs[place] == token - 1, "the token before it is the last that is read"
            assert place + 1 >= min(overlap, token), "what stands before it in the window"
            seen.append(token)
    assert seen == list(range(1, size))


@pytest.fixture(scope="module")
def windows(run, checkpoint):
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        return evaluate_suites(run.recipe, run, checkpoint.name, ["windows"])["windows"]


def test_its_loss_is_that_of_a_plain_loop(run, model, windows):
    manifest = read_manifest(run.shards)
    total, count = 0.0, 0
    for key, split in manifest.splits.items():
        if split.source is None:
            continue
        with RowReader(run.shards, manifest, key) as reader:
            text = torch.from_numpy(reader.read(range(reader.rows)).reshape(-1))
        text = text[: len(text) - split.padding_tokens]
        place = 1
        while place < len(text):
            first = max(0, min(place - 1 - windows.overlap, len(text) - 1 - windows.window)) if place > 1 else 0
            last = min(first + windows.window, len(text) - 1)
            with torch.no_grad():
                logits = model(text[first:last].unsqueeze(0)).logits[0].double().log_softmax(-1)
            for target in range(place, last + 1):
                total -= logits[target - 1 - first, text[target]].item()
                count += 1
            place = last + 1
        assert windows.sources[split.source].tokens == len(text) - 1
    assert windows.overall.tokens == count
    assert windows.overall.loss == pytest.approx(total / count, abs=1e-5)
    assert windows.overall.perplexity == pytest.approx(math.exp(total / count), rel=1e-4)


def test_it_predicts_more_than_rows_do(run, checkpoint, windows):
    rows = evaluate(with_recipe(run, rows_per_source="all").recipe, run, checkpoint.name)
    try:
        assert windows.overall.tokens > rows.overall.tokens
        assert set(windows.sources) == set(rows.sources)
        assert windows.overall.standard_error == pytest.approx(rows.overall.standard_error, rel=0.5)
    finally:
        evaluate(run.recipe, run, checkpoint.name)


def test_an_overlap_that_leaves_nothing_new_is_the_users_mistake(run):
    changed = with_recipe(run, windows={"overlap": 32})
    with pytest.raises(UserError, match="overlap 32: windows have 32 tokens"):
        WindowSuite().settings(changed.recipe)
