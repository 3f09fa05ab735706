"""events.jsonl: what happened in a run, one JSON line each, for people and for machines.

Any process of a run may append (training, an evaluation job on another host), so a line goes out in one write to a
file opened for appending: lines of two writers never mix.
"""

from __future__ import annotations

import json
import os
from datetime import datetime, timezone
from typing import Any

from pipeline.durable import append_line
from pipeline.host_name import host_name
from pipeline.run_folder import RunFolder


def append_event(folder: RunFolder, kind: str, **fields: Any) -> None:
    """Append `{"time": ..., "kind": kind, "host": ..., "pid": ..., **fields}` to the run's events.jsonl.

    `time` is UTC in ISO 8601 with milliseconds; `fields` must be JSON. Raises OSError naming the file when the disk
    refuses.
    """
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    event = {"time": now, "kind": kind, "host": host_name(), "pid": os.getpid(), **fields}
    line = json.dumps(event, ensure_ascii=False) + "\n"
    folder.events_file.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.events_file, "ab", buffering=0) as file:
        append_line(file, line)
