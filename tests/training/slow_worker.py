"""A rank's process in which rank 1 sleeps in every forward pass: `pipeline.training.worker` with one slow machine."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from pipeline.training import engine_start, worker

SLEEP_SECONDS = 0.3


def main() -> int:
    build = engine_start.build_engine

    def build_slow(*arguments: Any, **named: Any) -> Any:
        engine = build(*arguments, **named)
        if os.environ["RANK"] == "1":
            engine.module.register_forward_pre_hook(lambda *_: time.sleep(SLEEP_SECONDS))
        return engine

    engine_start.build_engine = build_slow
    return worker.main()


if __name__ == "__main__":
    code = 1
    try:
        code = main()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
