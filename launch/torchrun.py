"""torchrun that keeps the one exit code it would lose: `python -m launch.torchrun` with torchrun's arguments.

A rank that was asked to stop ends with 75, whereupon torchrun ends with 1 as for any failure, and a scheduler could not
tell a training that wants to go on from a broken one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """Run torchrun; 75 (`EX_TEMPFAIL`) where a rank ended with it, 1 where one failed otherwise."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    try:
        run(parse_args(list(arguments)))
    except ChildFailedError as error:
        if any(failure.exitcode == os.EX_TEMPFAIL for failure in error.failures.values()):
            return os.EX_TEMPFAIL
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
