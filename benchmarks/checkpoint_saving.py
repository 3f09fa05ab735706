"""Training time lost to a checkpoint that is written beside the training, and to one that the training waits for.

    python -m benchmarks.checkpoint_saving

Steps of one rank and of several, the cores shared among them, ZeRO 1. Lost beyond the copy: the seconds of all steps
that a save is in flight in, less those of as many steps without one, taken right before and after. Hashing and writing
compete with the steps for the same cores here, and that is in it.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measurement import Report, arguments, parsed, spread

BOUND = 0.05


def main() -> None:
    parser = arguments("Training time lost to a checkpoint.")
    parser.add_argument("--rows", type=int, default=1, help="rows a rank and step")
    parser.add_argument("--tokens", type=int, default=512, help="tokens a row")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--folder", type=Path, help="where the checkpoints go; a temporary folder without it")
    chosen = parsed(parser)
    if chosen.device != "cpu":
        parser.error(f"--device {chosen.device}: this is measured on the CPU")
    report = Report("checkpoint_saving", chosen, {"rows": chosen.rows, "tokens": chosen.tokens})
    for ranks in chosen.ranks:
        with tempfile.TemporaryDirectory(prefix="checkpoint-saving-", dir=chosen.folder) as folder:
            rounds = measured(chosen, ranks, Path(folder))
        report.line("1 rank" if ranks == 1 else f"{ranks} ranks", **figures(rounds))
    report.close()


def measured(chosen: Any, ranks: int, folder: Path) -> list[dict[str, Any]]:
    """What each round took, on rank 0."""
    threads = max(1, len(os.sched_getaffinity(0)) // ranks)
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)),
        *("--module", "benchmarks.checkpoint_saving_rank", str(folder / "found.json"), str(folder / "checkpoints")),
        *map(str, (chosen.shape, chosen.rows, chosen.tokens, chosen.rounds, chosen.seed)),
    ]
    subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, check=True, stdout=sys.stderr)
    return json.loads((folder / "found.json").read_text(encoding="utf-8"))


def figures(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    step = [statistics.fmean(one["steps"]) for one in rounds]
    lost = [sum(one["during"]) - len(one["during"]) * alone for one, alone in zip(rounds, step, strict=True)]
    return {
        "step_seconds": spread([seconds for one in rounds for seconds in one["steps"]]),
        "megabytes": round(rounds[0]["bytes"] / 1e6, 1),
        "copy_seconds": spread([one["copy"] for one in rounds]),
        "seconds_in_flight": spread([one["seconds"] for one in rounds]),
        "steps_in_flight": spread([float(len(one["during"])) for one in rounds]),
        "lost_seconds_beyond_the_copy": spread(lost),
        "time_lost_beyond_the_copy_over_a_step": spread([a / b for a, b in zip(lost, step, strict=True)]),
        "waiting_seconds": spread([one["blocking"] for one in rounds]),
        "time_lost_over_waiting": spread(
            [(one["copy"] + more) / one["blocking"] for one, more in zip(rounds, lost, strict=True)]
        ),
        "bound": BOUND,
    }


if __name__ == "__main__":
    main()
