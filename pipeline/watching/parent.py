"""A watcher that a training's command has started ends with that command, however that one ends."""

from __future__ import annotations

import os
import signal
import sys

from launch.local import die_with_parent
from pipeline.training.stopping import EXIT_REQUEUE

_VARIABLE = "ADAPONDER_WATCHES_FOR"


def environment_of_child() -> dict[str, str]:
    """For the watcher that this process starts."""
    return {**os.environ, _VARIABLE: str(os.getpid())}


def end_with_parent() -> None:
    """In a watcher that was started so: a SIGTERM comes when its parent is gone."""
    parent = os.environ.pop(_VARIABLE, "")  # what it starts itself has no such parent
    if not parent:
        return
    die_with_parent(signal.SIGTERM)
    if os.getppid() != int(parent):  # gone before the kernel was asked
        sys.exit(EXIT_REQUEUE)
