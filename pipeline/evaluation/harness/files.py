"""The harness's own files, under names without a date: results_5shot.json, samples_TASK_5shot.jsonl.gz."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from pipeline.durable import whole_file, write_text


def write_results(folder: Path, shots: int, results: dict[str, Any], samples: dict[str, list[dict[str, Any]]]) -> None:
    """Write what `run_round` gave, in the form that the harness writes it."""
    from lm_eval.utils import handle_non_serializable

    def dumped(content: Any, indent: int | None = None) -> str:
        return json.dumps(content, indent=indent, default=handle_non_serializable, ensure_ascii=False)

    write_text(folder / f"results_{shots}shot.json", dumped(results, indent=2) + "\n")
    for task, of_task in samples.items():
        lines = "".join(dumped(_as_the_harness_writes(one)) + "\n" for one in of_task)
        with whole_file(folder / f"samples_{_file_name(task)}_{shots}shot.jsonl.gz") as file:
            file.write(gzip.compress(lines.encode(), mtime=0))  # the same samples make the same file


def _as_the_harness_writes(sample: dict[str, Any]) -> dict[str, Any]:
    from lm_eval.utils import sanitize_list

    arguments = {
        f"gen_args_{number}": {f"arg_{place}": argument for place, argument in enumerate(given)}
        for number, given in enumerate(sample["arguments"])
    }
    return {
        **sample,
        "resps": sanitize_list(sample["resps"]),
        "filtered_resps": sanitize_list(sample["filtered_resps"]),
        "arguments": arguments,
        "target": str(sample["target"]),
    }


def _file_name(task: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "_-." else "_" for letter in task)
