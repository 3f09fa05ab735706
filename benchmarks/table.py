"""The README's performance table, made from benchmarks/results/*.json.

python -m benchmarks.table          write it between its two marks in README.md
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.measurement import RESULTS

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- performance: made by python -m benchmarks.table -->", "<!-- /performance -->"
RATIOS = {
    # field of a line: what it says in the table
    "time_over_full_depth": "time over full depth",
    "time_over_masked": "time over the plain path",
    "cache_bytes_over_full_caches": "cache bytes over K full caches",
    "time_over_all_logits_at_once": "time over all logits at once",
    "memory_over_all_logits_at_once": "memory over all logits at once",
    "time_lost_beyond_the_copy_over_a_step": "time lost beyond the copy over a step",
    "time_lost_over_waiting": "time lost over that of waiting for the save",
    "memory_over_single_pass": "memory over a single pass",
    "memory_over_single_pass_in_chunks": "memory over a single pass in chunks",
    "time_over_plain_loop": "time over a plain PyTorch loop",
    "time_over_distributed_data_parallel": "time over torch DistributedDataParallel",
    "data_wait_share": "share of the time that waits for data",
}
BOUNDS = {
    "time_over_full_depth": "bound",
    "time_over_masked": "bound",
    "time_over_all_logits_at_once": "bound",
    "time_lost_beyond_the_copy_over_a_step": "bound",
    "cache_bytes_over_full_caches": "cache_bound",
    "memory_over_all_logits_at_once": "bound_over_all_logits_at_once",
    "memory_over_single_pass": "bound_over_single_pass",
    "memory_over_single_pass_in_chunks": "bound_over_single_pass",
    "time_over_plain_loop": "bound",
    "time_over_distributed_data_parallel": "bound",
    "data_wait_share": "data_wait_bound",
}
WORK = {
    "time_over_full_depth": ("multiply_accumulates_over_full_depth", "passes_run_over_full_depth"),
    "time_over_all_logits_at_once": ("multiply_accumulates_over_all_logits_at_once",),
}


def table(results: list[list[dict[str, Any]]]) -> str:
    """A Markdown table: one row a ratio, with its quartiles, the bound it is to keep, and what counting work says."""
    rows = ["| measured | item | ratio | median (quartiles) | at most | by counting |", "| --- " * 6 + "|"]
    for lines in results:
        for line in lines:
            for field, words in RATIOS.items():
                if field in line and not _is_itself(line, field):
                    cells = (_title(line), line["item"], words, _value(line[field]), _bound(line, field))
                    rows.append(f"| {' | '.join(cells)} | {_work(line, field)} |")
    return "\n".join(rows)


def _is_itself(line: dict[str, Any], field: str) -> bool:
    """Whether a line compares the reference with the reference."""
    value = line[field]
    return isinstance(value, dict) and value["min"] == value["max"] == 1.0


def _title(line: dict[str, Any]) -> str:
    sizes = line["sizes"]
    device = line["machine"].get("gpu") if sizes["device"] != "cpu" else f"{line['machine']['cores']} CPU cores"
    tokens = f"{sizes['context']} + {sizes['tokens']}" if "context" in sizes else f"{sizes['tokens']}"
    name = line["benchmark"].replace("_", " ")
    return f"{name}, {sizes['shape']}, {sizes['rows']} x {tokens} tokens, {sizes['dtype']}, {device}"


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['median']:.3f} ({value['quartile_1']:.3f} to {value['quartile_3']:.3f})"
    return f"{value:.3f}"


def _bound(line: dict[str, Any], field: str) -> str:
    bound = line.get(BOUNDS.get(field, ""))
    if bound is None:
        return ""
    value = line[field]["median"] if isinstance(line[field], dict) else line[field]
    return f"{bound:.3f}" if value <= bound else f"{bound:.3f}: **not kept**"


def _work(line: dict[str, Any], field: str) -> str:
    return "; ".join(
        f"{line[name]:.3f} of {'passes run' if 'passes' in name else 'multiply-accumulates'}"
        for name in WORK.get(field, ())
        if name in line
    )


def with_table(readme: str, made: str) -> str:
    """The README with `made` between its marks; ValueError where it has none."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"README.md: {BEGIN} and {END} must stand in it, the table goes between")
    return f"{before}{BEGIN}\n\n{made}\n\n{END}{after}"


def stored_results() -> list[list[dict[str, Any]]]:
    """What `make bench` left, in the order of the files' names."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))]


def main() -> None:
    README.write_text(with_table(README.read_text(encoding="utf-8"), table(stored_results())), encoding="utf-8")


if __name__ == "__main__":
    main()
