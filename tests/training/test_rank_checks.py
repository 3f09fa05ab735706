"""Ranks that do not train the same thing are found and named."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.training.rank_checks import checksum, require_the_same

DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8)


@given(st.integers(0, 2**31), st.integers(1, 200), st.sampled_from(DTYPES), st.data())
@settings(deadline=None, max_examples=100)
def test_one_flipped_bit_changes_the_checksum(seed, size, dtype, data):
    generator = torch.Generator().manual_seed(seed)
    tensor = (torch.randn(size, generator=generator) * 50).abs().to(dtype)
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    changed = tensor.clone()
    place = data.draw(st.integers(0, size - 1))
    bit = data.draw(st.integers(0, 8 * tensor.element_size() - 2))
    changed.view(bits)[place] ^= 1 << bit
    assert checksum(changed) != checksum(tensor)
    assert checksum(tensor.clone()) == checksum(tensor)


@given(st.integers(0, 2**31), st.integers(2, 100), st.data())
@settings(deadline=None, max_examples=50)
def test_two_elements_that_change_places_change_the_checksum(seed, size, data):
    tensor = torch.randperm(size, generator=torch.Generator().manual_seed(seed)).float()
    one, other = data.draw(st.lists(st.integers(0, size - 1), min_size=2, max_size=2, unique=True))
    changed = tensor.clone()
    changed[[one, other]] = tensor[[other, one]]
    assert checksum(changed) != checksum(tensor)


def test_nan_and_shapes_do_not_matter():
    tensor = torch.full((4, 5), float("nan"))
    assert checksum(tensor) == checksum(tensor.clone().reshape(20))
    assert checksum(torch.zeros(0)) == 0
    assert checksum(torch.tensor([True, False])) != checksum(torch.tensor([False, True]))


def test_a_process_alone_is_the_same_as_itself():
    require_the_same({"step": 1})


@pytest.mark.slow
def test_differences_are_named_on_every_rank(tmp_path: Path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    command += ["--module", "tests.training.differing_ranks", str(tmp_path / "told")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = [json.loads((tmp_path / f"told-{rank}.json").read_text()) for rank in range(3)]
    assert told[0] == told[1] == told[2]
    same, step, flipped, missing = told[0]
    host = socket.gethostname()
    assert same == "the same"
    assert step == (
        f"the ranks do not train the same: step is 8 on rank 1 on {host}, 7 on 2 ranks; "
        f"version of torch is 2.12 on rank 0 on {host}, 2.13 on 2 ranks"
    )
    assert flipped.startswith("the ranks do not train the same: weight two is ")
    assert f" on rank 1 on {host}, " in flipped and flipped.endswith(" on 2 ranks")
    assert missing == f"the ranks do not train the same: weight three is 00000001 on rank 0 on {host}, none on 2 ranks"
