"""The paper's comparisons in small, from nothing to a report.

    python -m benchmarks.paper_small
    python -m benchmarks.paper_small --seeds 1 --members vanilla ponder adaponder
    python -m benchmarks.paper_small --study stability --runs runs/stability --report runs/stability/report
    python -m benchmarks.paper_small --data /data/texts --recipe another.yaml

The same command again trains and judges what is missing, and writes the report anew.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

import torch

from benchmarks.paper.judging import judge
from benchmarks.paper.members import STUDIES
from benchmarks.paper.report import write_report
from benchmarks.paper.study import Study
from benchmarks.paper.training import tokenize, train
from pipeline.console import error_console
from pipeline.errors import AdaPonderError

HERE = Path(__file__).parent


def main() -> int:
    chosen = _arguments()
    all_members = STUDIES[chosen.study]
    names = [member.name for member in all_members]
    wanted = set(chosen.members or names)
    if unknown := sorted(wanted - set(names)):
        error_console.print(f"--members: there is no {', '.join(unknown)}; there are {', '.join(names)}")
        return 2
    needed = wanted | {other for member in all_members if member.name in wanted for other in member.needs}
    members = [member for member in all_members if member.name in needed]
    study = Study(str(chosen.recipe), chosen.runs.absolute(), members, chosen.seeds, chosen.data)
    # As Ctrl-C does: the trainings that run are ended too, after a save.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        tokenize(study)
        train(study, chosen.jobs, chosen.threads)
        judge(study, chosen.jobs, chosen.threads)
        write_report(study, chosen.report)
    except AdaPonderError as error:
        error_console.print(str(error), style="red", markup=False)
        return error.exit_code
    return 0


def _arguments() -> argparse.Namespace:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        description="The paper's comparisons in small, from nothing to a report.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--recipe", type=Path, default=HERE / "paper_small.yaml", help="what all members share")
    parser.add_argument(
        "--study", choices=STUDIES, default="paper", help="stability: what gates start from and learn by"
    )
    parser.add_argument("--data", help="folder of text files or file of JSON lines, in the place of the recipe's text")
    parser.add_argument("--runs", type=Path, default=Path("runs/paper-small"), help="folder of all runs")
    parser.add_argument("--report", type=Path, default=Path("runs/paper-small/report"), help="folder of the report")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--members", nargs="+", help="some of the members alone, with those they start from")
    parser.add_argument(
        "--jobs", type=int, default=1 if on_gpu else len(os.sched_getaffinity(0)), help="trainings at a time"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
