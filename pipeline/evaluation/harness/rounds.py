"""One round of the harness: some tasks with one number of examples before each question."""

from __future__ import annotations

import contextlib
import logging
import os
import random
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from pipeline.evaluation.harness.catalogue import FEWSHOT_SEED, Catalogue

BOOTSTRAP_ITERATIONS = 1000
"""Resamples behind standard errors that have no formula, as perplexity's; the harness's own 100,000 take minutes."""


def run_round(
    model: Any, catalogue: Catalogue, tasks: list[Any], batch_rows: int, limit: int | None
) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """Judge the model; returns the harness's results and its samples by task, as it would write them.

    model: of `language_model_class`; tasks: of `Catalogue.load`.
    """
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.utils import hash_string

    tracker = EvaluationTracker()  # without a path it writes nothing
    evaluate: Any = simple_evaluate  # its decorator hides its parameters
    with _nothing_left_changed():
        results = evaluate(
            model,
            tasks=tasks,
            task_manager=catalogue.manager,
            batch_size=batch_rows,
            device=str(model.device),
            limit=limit,
            bootstrap_iters=BOOTSTRAP_ITERATIONS,
            fewshot_random_seed=FEWSHOT_SEED,
            evaluation_tracker=tracker,
            log_samples=True,
        )
    samples = results.pop("samples")
    results["task_hashes"] = {
        task: hash_string("".join(one["doc_hash"] + one["prompt_hash"] + one["target_hash"] for one in of_task))
        for task, of_task in samples.items()
    }
    tracker.general_config_tracker.log_end_time()
    results.update(asdict(tracker.general_config_tracker))
    return results, samples


@contextlib.contextmanager
def _nothing_left_changed() -> Iterator[None]:
    """The harness seeds every generator there is, and says much; neither is to be seen after it."""
    python, numpy = random.getstate(), np.random.get_state()
    logger = logging.getLogger("lm_eval")
    level, alone = logger.level, os.environ.get("DISABLE_MULTIPROC")
    logger.setLevel(logging.ERROR)
    os.environ["DISABLE_MULTIPROC"] = "1"  # resampling forks a pool otherwise, which threads and CUDA do not stand
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        logger.setLevel(level)
        if alone is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = alone
