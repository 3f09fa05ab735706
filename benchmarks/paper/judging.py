"""Have the checkpoints of a study judged by the pipeline's suites: `python -m benchmarks.paper.judging ROOT FILE`.

Many small judgements: a process takes its share of them one after another, since starting one for each would take
longer than the judgements themselves. FILE lists them as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.paper.study import Study
from pipeline.checkpoint import checkpoint_name
from pipeline.console import console
from pipeline.errors import WorldError


def judge(study: Study, jobs: int, threads: int) -> None:
    """Judge every member's last checkpoint by its suites, and its first where the member says so.

    What stands is not judged again. Raises `WorldError` with the log of a process that failed.
    """
    wanted: list[tuple[str, str, list[str]]] = []
    for training in study.trainings:
        recipe = str(study.write_recipe(training))
        wanted.append((recipe, "latest", list(training.member.suites)))
        if training.member.judged_at_start:
            wanted.append((recipe, checkpoint_name(0), ["validation"]))
    console.print(f"judge: {len(wanted)} checkpoints; logs in {study.root / 'logs'}")
    started = []
    for number in range(jobs):
        share = study.root / "logs" / f"judging-{number}.json"
        share.parent.mkdir(parents=True, exist_ok=True)
        share.write_text(json.dumps(wanted[number::jobs]), encoding="utf-8")
        log = share.with_suffix(".log")
        with open(log, "wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.paper.judging", str(study.root), str(share)],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            )
        started.append((process, log))
    if failed := [str(log) for process, log in started if process.wait()]:
        raise WorldError(f"judging failed: {', '.join(failed)}")


def main(root: Path, share: Path) -> None:
    from pipeline.evaluation.stage import evaluate_suites
    from pipeline.recipe_reader import read_recipe
    from pipeline.run_folder import RunFolder

    for recipe_file, checkpoint, suites in json.loads(share.read_text(encoding="utf-8")):
        recipe = read_recipe(recipe_file)
        evaluate_suites(recipe, RunFolder(root, recipe), checkpoint, suites)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
