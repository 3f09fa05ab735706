"""torchrun that keeps what it would lose: `python -m launch.torchrun` with torchrun's arguments.

The exit code: a rank that was asked to stop ends with 75 and one that meets a user's mistake with 2, whereupon torchrun
ends with 1 as for any failure, and a scheduler could not tell a training that wants to go on from a broken one. The
error: torchrun shows a table of exit codes, and the operator needs one line with host, rank and what went wrong, which
a rank leaves in the folder that `FAILURES_VARIABLE` names.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UserError
from pipeline.host_name import host_name

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

FAILURES_VARIABLE = "ADAPONDER_FAILURES"
"""Names a folder of this node's, where a rank that fails leaves why (`LastWords.leave`)."""
_LOGGERS = (
    "torch.distributed.elastic.multiprocessing.api",
    "torch.distributed.elastic.rendezvous.dynamic_rendezvous",
)
_CPP_LOG_LEVEL = "TORCH_CPP_LOG_LEVEL"


@dataclass(frozen=True)
class LastWords:
    """Why a rank failed, in one line."""

    line: str
    bystander: bool
    """It only lost another one, and does not know why."""
    time: float
    """Seconds since 1970."""
    exit_code: int
    """What the rank will end with."""

    def leave(self, rank: int) -> None:
        """For the torchrun that has started this rank, if it is this module's."""
        if folder := os.environ.get(FAILURES_VARIABLE):
            (Path(folder) / f"rank-{rank:04d}.json").write_text(json.dumps(asdict(self)), encoding="utf-8")


class _Ended(logging.Filter):
    """Keeps from torchrun's log what the one line says better, and notes which processes it has ended itself: all that
    it tells of them afterwards is an exit code, like that of the one that failed."""

    def __init__(self) -> None:
        super().__init__()
        self.processes: set[int] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = str(record.msg)
        if message.startswith("Sending process") and isinstance(record.args, tuple) and record.args:
            self.processes.add(int(str(record.args[0])))
            return False
        return not message.startswith("failed (exitcode") and "has failed to shutdown the rendezvous" not in message


def main(arguments: Sequence[str]) -> int:
    """Run torchrun. 75 (`EX_TEMPFAIL`) where a rank ended with it, 2 where the first failure is a user's mistake, 1 for
    others; of the first one a line on stderr."""
    # Nodes end one after the other, whereupon torch of the later ones writes a stack of C++ for each question to the
    # first one; it looks at the variable as it is imported, and the ranks are not to have it.
    own = _CPP_LOG_LEVEL not in os.environ
    os.environ.setdefault(_CPP_LOG_LEVEL, "ERROR")
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError
    from torch.distributed.run import parse_args, run

    if own:
        del os.environ[_CPP_LOG_LEVEL]
    ended = _Ended()
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(ended)
    given = parse_args(list(arguments))
    with tempfile.TemporaryDirectory(prefix="adaponder-failures-") as folder:
        os.environ[FAILURES_VARIABLE] = folder
        try:
            run(given)
        except ChildFailedError as error:
            if any(failure.exitcode == os.EX_TEMPFAIL for failure in error.failures.values()):
                return os.EX_TEMPFAIL
            line, code = _first_failure(Path(folder), error.failures, ended.processes)
            print(line, file=sys.stderr, flush=True)
            return code
        except RendezvousError as error:
            print(
                f"{host_name()}: the nodes' rendezvous at {given.rdzv_endpoint} failed: {error}",
                file=sys.stderr,
                flush=True,
            )
            return 1
    return 0


def _first_failure(folder: Path, failures: dict[int, ProcessFailure], ended: set[int]) -> tuple[str, int]:
    """One line for what failed first among this node's ranks, and the exit code that says whose fault it is.

    failures: by rank. ended: processes that torchrun has ended when it saw the first of them; of these one may be the
    one that failed first and was still cleaning up. A rank that only lost another one is taken where nobody knows more.
    """
    found = {int(path.stem.removeprefix("rank-")): _last_words(path) for path in folder.glob("rank-*.json")}
    told = {rank: words for rank, words in found.items() if words is not None}
    order = {rank: (int(words.bystander), words.time) for rank, words in told.items()}
    for rank in failures.keys() - told.keys():
        order[rank] = (2 if failures[rank].pid in ended else 0, failures[rank].timestamp)
    rank = min(order, key=order.__getitem__)
    if rank in told:
        line, code = told[rank].line, told[rank].exit_code
    else:
        code = failures[rank].exitcode
        line = (
            f"ended by {_signal_name(-code)} (killed from outside, or out of memory)"
            if code < 0
            else f"ended with exit code {code} and no message"
        )
    return f"rank {rank} on {host_name()}: {line}", UserError.exit_code if code == UserError.exit_code else 1


def _last_words(path: Path) -> LastWords | None:
    try:
        return LastWords(**json.loads(path.read_text(encoding="utf-8")))
    except ValueError:  # the rank was killed as it wrote them
        return None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
