"""The process that converts a checkpoint into DeepSpeed's universal one: `python -m ... CHECKPOINT FOLDER`.

A process of its own, since DeepSpeed's converter starts workers by fork, which a rank with its threads must not, and
since a rank has to hear a wish to stop in the meantime. It ends with the rank that started it, and so do its workers.
"""

from __future__ import annotations

import argparse
import os
import signal

from launch.local import die_with_parent
from pipeline.command_line import cores
from pipeline.heavy_imports import import_deepspeed
from pipeline.training.stopping import STOP_SIGNALS

_WORKERS = 4
"""Processes at once; each holds the states of one rank, 12 bytes a parameter over the number of ranks."""


def main() -> None:
    die_with_parent()
    os.register_at_fork(after_in_child=die_with_parent)
    for number in STOP_SIGNALS:  # a scheduler signals every process of a job; the rank decides
        signal.signal(number, signal.SIG_IGN)
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint")
    parser.add_argument("folder")
    given = parser.parse_args()
    import_deepspeed()
    from deepspeed.checkpoint import ds_to_universal

    workers = min(_WORKERS, cores())
    ds_to_universal.main(
        argparse.Namespace(
            input_folder=given.checkpoint,
            output_folder=given.folder,
            num_extract_workers=workers,
            num_merge_workers=workers,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=True,
        )
    )


if __name__ == "__main__":
    main()
