"""What watchers that start at the same moment leave each other."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from pipeline.recipe_reader import read_recipe
from pipeline.watching.start import keep_recipe


def test_watchers_that_start_together_keep_one_recipe(run, tmp_path):
    at_once = 8
    for again in range(20):
        folder = type(run)(root=tmp_path / str(again), recipe=run.recipe)
        together = threading.Barrier(at_once)

        def start(_: int, folder=folder, together=together):
            together.wait()
            return keep_recipe(folder.recipe, folder)

        with ThreadPoolExecutor(at_once) as pool:
            (path,) = set(pool.map(start, range(at_once)))
        assert list(path.parent.iterdir()) == [path]
        assert read_recipe(str(path)).hash() == run.recipe.hash()
