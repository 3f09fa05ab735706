"""One rank fails in a check in which all compute together: torchrun starts this with a folder."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from launch.preflight.check import Told
from launch.preflight.meeting import meet
from launch.preflight.together import look_together


def main() -> None:
    folder = Path(sys.argv[1])
    meeting = meet(30.0, os.environ)

    def look() -> dict:
        if meeting.rank == 1:
            return {"error": "out of memory", "user": False}
        time.sleep(120)  # as in a collective that waits for rank 1
        return {"seen": None}

    def report(told: list[Told]) -> None:
        (folder / "report").write_text("; ".join(f"{each.place}: {each.seen['error']}" for each in told))

    look_together(meeting, "mock_step", look, report)
    (folder / f"went-on-{meeting.rank}").touch()


if __name__ == "__main__":
    main()
