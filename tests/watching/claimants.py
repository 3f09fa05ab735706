"""A process that claims, works and gives back: `python -m tests.watching.claimants FOLDER KILL_SHARE SEED`.

Every item of the folder gets exactly one line of work, however many of these run. With a share of kills the process
ends itself with kill -9 in the middle of that many items; work is appended in the last moment of a claim.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

from pipeline.watching.claims import claim


def main(folder: Path, kill_share: float, seed: int) -> None:
    generator = random.Random(seed)
    items = sorted(path for path in folder.iterdir() if path.is_dir())
    while unfinished := [item for item in items if not (item / "work").exists()]:
        generator.shuffle(unfinished)
        for item in unfinished:
            mine = claim(item, heartbeat_seconds=0.1, stale_seconds=5.0)
            if mine is None:
                continue
            if not (item / "work").exists():
                # Two that hold one claim at a time would both be inside.
                inside = item / f"inside-{os.getpid()}"
                inside.touch()
                others = [path for path in item.glob("inside-*") if path != inside and _lives(path)]
                if others:
                    (item / "together").write_text(f"{inside} {others}")
                time.sleep(generator.uniform(0, 0.01))
                if generator.random() < kill_share:
                    os.kill(os.getpid(), signal.SIGKILL)
                with open(item / "work", "a") as file:
                    file.write(f"{os.getpid()}\n")
                inside.unlink()
            mine.release()
        time.sleep(0.01)


def _lives(inside: Path) -> bool:
    pid = inside.name.removeprefix("inside-")
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] not in "ZX"
    except OSError:
        return False


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
