"""A run whose shards lie at a URL: ranks share one cache, and the numbers are those of the same shards in a folder."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from tests.conftest import Runs


@pytest.mark.slow
def test_training_and_evaluation_are_those_of_the_folder(
    runs: Runs, recipe: dict, shards: Path, tmp_path: Path
) -> None:
    recipe["train"]["phases"] = [{"name": "short", "steps": 3, "halting": False}]
    recipe["data"]["shuffle"] = "chunks"
    of_url = copy.deepcopy(recipe) | {"name": recipe["name"] + "-url"}
    of_url["data"] |= {"shards": shards.as_uri(), "cache": str(tmp_path / "cache")}
    of_folder, found = runs.train(recipe), runs.train(of_url)
    keys = ("step", "train/loss", "depth/mean")
    assert [[line[key] for key in keys] for line in found] == [[line[key] for key in keys] for line in of_folder]
    done = runs.adaponder("evaluate", of_url)
    assert done.returncode == 0, done.stdout + done.stderr
    cached = [path.name[17:] for path in (tmp_path / "cache").glob("*/*.tar")]
    assert len(cached) == len(set(cached))
    assert {name.partition("-")[0] for name in cached} == {"train", "validation"}
    assert set(cached) <= {path.name for path in shards.glob("*.tar")}
