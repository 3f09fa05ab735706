"""Training time lost to a checkpoint that is written beside the training, and to one that the training waits for.

    python -m benchmarks.checkpoint_saving

Steps of one rank and of several, the cores shared among them, one row each, ZeRO 1. Lost beyond the copy: the seconds
of all steps that a save is in flight in, less those of as many steps without one, taken right before and after. Hashing
and writing compete with the steps for the same cores here, and that is in it. What is lost depends on what is written,
not on the step: it is measured with short steps (--tokens), whose spread hides less, and told as a share of a long one
(--step-tokens).
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
    parser.add_argument("--tokens", type=int, default=128, help="tokens a row of the steps beside the saves")
    parser.add_argument("--step-tokens", type=int, default=2048, help="tokens a row of the step to compare with")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--folder", type=Path, help="where the checkpoints go; a temporary folder without it")
    chosen = parsed(parser)
    if chosen.device != "cpu":
        parser.error(f"--device {chosen.device}: this is measured on the CPU")
    sizes = {"rows": 1, "tokens": chosen.step_tokens, "tokens_beside_saves": chosen.tokens}
    report = Report("checkpoint_saving", chosen, sizes)
    for ranks in chosen.ranks:
        with tempfile.TemporaryDirectory(prefix="checkpoint-saving-", dir=chosen.folder) as folder:
            found = measured(chosen, ranks, Path(folder))
        report.line("1 rank" if ranks == 1 else f"{ranks} ranks", **figures(found["rounds"], found["step"]))
    report.close()


def measured(chosen: Any, ranks: int, folder: Path) -> dict[str, Any]:
    """What steps and rounds took, on rank 0."""
    threads = max(1, len(os.sched_getaffinity(0)) // ranks)
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)),
        *("--module", "benchmarks.checkpoint_saving_rank", str(folder / "found.json"), str(folder / "checkpoints")),
        *map(str, (chosen.shape, chosen.tokens, chosen.step_tokens, chosen.rounds, chosen.seed)),
    ]
    subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, check=True, stdout=sys.stderr)
    return json.loads((folder / "found.json").read_text(encoding="utf-8"))


def figures(rounds: list[dict[str, Any]], reference: float) -> dict[str, Any]:
    """Of rounds, and of the steps that what is lost is told as a share of."""
    step = [statistics.fmean(one["steps"]) for one in rounds]
    lost = [sum(one["during"]) - len(one["during"]) * alone for one, alone in zip(rounds, step, strict=True)]
    return {
        "step_seconds": round(reference, 3),
        "step_seconds_beside_saves": spread([seconds for one in rounds for seconds in one["steps"]]),
        "megabytes": round(rounds[0]["bytes"] / 1e6, 1),
        "copy_seconds": spread([one["copy"] for one in rounds]),
        "seconds_in_flight": spread([one["seconds"] for one in rounds]),
        "steps_in_flight": spread([float(len(one["during"])) for one in rounds]),
        "lost_seconds_beyond_the_copy": spread(lost),
        "time_lost_beyond_the_copy_over_a_step": spread([one / reference for one in lost]),
        "waiting_seconds": spread([one["waiting"] for one in rounds]),
        "time_lost_over_waiting": spread(
            [(one["copy"] + more) / one["waiting"] for one, more in zip(rounds, lost, strict=True)]
        ),
        "bound": BOUND,
    }


if __name__ == "__main__":
    main()
