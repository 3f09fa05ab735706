"""One process at a time judges a checkpoint: what a second one would do again, it finds done.

The kernel gives the lock back however its holder ends. So a judgement that outlives whoever started it is waited for,
and nothing is written or told to MLflow twice.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.console import console

_NAME = "judging.lock"


@contextmanager
def only_judge(folder: Path) -> Iterator[None]:
    """Hold the lock of a checkpoint's evaluations, `folder`, within the block; waits for another holder.

    Where the file system knows no locks there is none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / _NAME, "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.print(f"evaluate: waiting for another process that judges {folder.name}")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            pass
        yield
