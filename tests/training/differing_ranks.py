"""One rank that compares itself with others, from which it differs now and then; what it was told goes into a file.

`torchrun --module tests.training.differing_ranks OUT`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from pipeline.errors import WorldError
from pipeline.training.rank_checks import checksum, require_the_same


def main() -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    told = []

    def compare(**facts) -> None:
        try:
            require_the_same({name.replace("_", " "): value for name, value in facts.items()})
            told.append("the same")
        except WorldError as error:
            told.append(str(error))

    weight = torch.arange(12.0).reshape(3, 4)
    compare(step=7, version_of_torch="2.13", weight_one=checksum(weight))
    compare(step=7 + (rank == 1), version_of_torch="2.13" if rank else "2.12")
    flipped = weight.clone()
    if rank == 1:
        flipped.view(torch.int32)[2, 3] ^= 1  # the last bit of the last weight
    compare(step=7, weight_one=checksum(weight), weight_two=checksum(flipped))
    compare(**({"step": 7} if rank else {"step": 7, "weight_three": 1}))
    Path(f"{sys.argv[1]}-{rank}.json").write_text(json.dumps(told))
    dist.barrier()


if __name__ == "__main__":
    main()
    os._exit(0)
