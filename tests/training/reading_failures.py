"""One rank that reads together with others, on some of which it fails; what each was told goes into a file.

`torchrun --module tests.training.reading_failures OUT`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from pipeline.errors import UserError, WorldError
from pipeline.training.agreement import StepFlags, agreed, begin_together, read_together, told_by_all

CPU = torch.device("cpu")


def main() -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()

    def read(failing: tuple[int, ...], error: Exception) -> str:
        if rank in failing:
            raise error
        return f"rows of {rank}"

    told = [read_together(lambda: read((), WorldError("never")), CPU)]
    missing = FileNotFoundError(2, "No such file or directory", "train-000007.tar")
    for failing, error in (
        ((1,), WorldError("train-000003.tar is damaged")),
        ((0, 1), WorldError("train-000004.tar is damaged")),
        ((0,), missing),
    ):
        try:
            told.append(read_together(lambda failing=failing, error=error: read(failing, error), CPU))
        except WorldError as raised:
            told.append(str(raised))
    told.append(read_together(lambda: read((), WorldError("never")), CPU))
    told.append(str(agreed(StepFlags(reading_failed=rank == 1), CPU).reading_failed))
    try:
        mistake = UserError("data.cache: /x knows no locks")
        told.append(read_together(lambda: read((1,), mistake), CPU))
    except (UserError, WorldError) as raised:
        told.append(f"{type(raised).__name__}: {raised}")
    sums = torch.tensor([1.0 + rank, float("nan") if rank else 1.0])
    start = begin_together(lambda: rank, CPU, rank == 1, sums)
    told.append(f"{start.stop_wanted} {start.sums}")
    told.append("; ".join(f"{what} of {who}" for what, who in told_by_all("SIGTERM" if rank else None)))
    Path(f"{sys.argv[1]}-{rank}.json").write_text(json.dumps(told))
    dist.barrier()


if __name__ == "__main__":
    main()
    os._exit(0)
