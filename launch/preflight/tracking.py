"""Does MLflow answer? Asked by rank 0, which is the one that talks to it."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

from launch.preflight.check import Check, Context, Finding, Told
from pipeline.tracking.server import connect, reason, tracking_uri, without_secrets

_SECONDS = 45.0
"""Until a server that says nothing counts as away: MLflow's own limit of 20 s, its one repetition, and its import."""


def look(context: Context) -> dict[str, Any] | None:
    if context.meeting.rank:
        return None
    root = context.folder.root
    said: dict[str, Any] = {"server": without_secrets(tracking_uri(root))}
    began = time.monotonic()

    def ask() -> None:
        try:
            connect(root).search_experiments(max_results=1)
            said["seconds"] = time.monotonic() - began
        except Exception as error:  # whatever it is: a server that cannot be asked
            said["error"] = reason(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_SECONDS)
    if "seconds" not in said:
        said.setdefault("error", f"no answer within {_SECONDS:.0f} s")
    return dict(said)


def judge(_: Context, told: Sequence[Told]) -> list[Finding]:
    said = told[0].seen
    if "error" in said:
        return [
            Finding(
                "failed",
                f"MLflow at {said['server']} does not answer {told[0].place}: {said['error']}; a training would keep "
                "its metrics and send them later: --set 'cluster.preflight.skip=[tracking]' if that is meant",
            )
        ]
    return [Finding("ok", f"{said['server']} answers in {said['seconds']:.1f} s")]


CHECK = Check("tracking", look, judge)
