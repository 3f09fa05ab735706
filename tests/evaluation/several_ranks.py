"""Several ranks of an evaluation in processes of their own, as torchrun starts them."""

from __future__ import annotations

import subprocess
import sys

from pipeline.run_folder import RunFolder
from tests.conftest import Runs


def rank_command(run: RunFolder, *arguments: str, count: int = 2, module: str = "pipeline.evaluation.worker") -> list:
    """The command that judges the run's newest checkpoint by its recipe."""
    recipe = Runs(run.root).write({**run.recipe.resolved(), "name": run.recipe.name})
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"),
        *("--module", module, str(recipe), "--runs", str(run.root), *arguments),
    ]


def ranks(
    run: RunFolder, *arguments: str, count: int = 2, module: str = "pipeline.evaluation.worker"
) -> subprocess.CompletedProcess[str]:
    """The command's end, and what it said."""
    return subprocess.run(
        rank_command(run, *arguments, count=count, module=module),
        env=Runs(run.root).environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
