"""Sums over rows: the network skips halted tokens where it may, and the numbers are those of the plain path."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from pipeline.data.manifest import read_manifest
from pipeline.data.rows import RowReader
from pipeline.evaluation.depth import DepthSums
from pipeline.evaluation.halting import inference_halting, run_as
from pipeline.evaluation.measure import measure
from pipeline.evaluation.subject import Subject
from pipeline.model import AdaPonderForCausalLM
from tests.model.tiny_adaponder import halting_config


@pytest.fixture(scope="module")
def key(run):
    return next(key for key, split in read_manifest(run.shards).splits.items() if split.split == "validation")


@pytest.fixture(scope="module")
def reader(run, key):
    with RowReader(run.shards, read_manifest(run.shards), key) as opened:
        yield opened


def by_hand(model: Any, reader: RowReader, rows: int) -> DepthSums:
    """From the logits of a forward as the network is configured."""
    sums = DepthSums(model.config.max_passes)
    for row in range(rows):
        inputs, labels = reader.batch([row])
        with torch.no_grad():
            output = model(inputs)
        nll = F.cross_entropy(output.logits.transpose(1, 2), labels, ignore_index=-100, reduction="none")
        sums.add(nll, output.depths, labels)
    return sums


@pytest.mark.parametrize(
    ("fields", "used"),
    [
        ({}, "skip"),
        ({"kv_reuse": False}, "masked"),
        ({"freeze_halted": False}, "masked"),
        ({"halting": "none"}, "none"),
        ({"vocabulary_chunk_tokens": 5}, "skip"),
        ({"mixture_top_k": 3}, "skip"),
    ],
)
def test_the_numbers_are_the_plain_paths(run, checkpoint, key, model, reader, fields, used):
    config = copy.deepcopy(model.config)
    for name, value in fields.items():
        setattr(config, name, value)
    network: Any = AdaPonderForCausalLM(config)
    network.load_state_dict(model.state_dict())
    network.eval()
    seen = set()
    network.register_forward_pre_hook(lambda *_: seen.add(network.config.halting))
    subject = Subject(run.recipe, run, checkpoint, read_manifest(run.shards), network)
    found, documents = measure(subject, {key: 6}, batch_rows=4)[key]
    assert documents.totals()[0].sum() == found.total_tokens
    assert seen == {used}
    assert network.config.halting == config.halting != "skip", "the network is as it was"
    expected = by_hand(network, reader, 6)
    assert torch.equal(found.tokens, expected.tokens)
    assert found.loss == pytest.approx(expected.loss, abs=1e-6)
    assert found.loss_by_depth == pytest.approx(expected.loss_by_depth, abs=1e-5)
    assert (found.tokens > 0).sum() == (config.max_passes if config.halting == "masked" else 1)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "skip"),
        ({"halting": "skip"}, "skip"),
        ({"halting": "none"}, "none"),
        ({"kv_reuse": False}, "masked"),
        ({"freeze_halted": False}, "masked"),
        ({"gating": "open"}, "masked"),
    ],
)
def test_only_a_network_that_leaves_halted_tokens_alone_skips_them(fields, expected):
    assert inference_halting(halting_config(**fields)) == expected


def test_the_way_of_halting_is_put_back_after_a_failure_too(model):
    def fail() -> None:
        with run_as(model, "skip"):
            assert model.config.halting == "skip"
            raise RuntimeError("a failure")

    with pytest.raises(RuntimeError, match="a failure"):
        fail()
    assert model.config.halting == "masked"
