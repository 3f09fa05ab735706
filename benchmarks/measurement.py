"""How a benchmark measures: the sides in turn, several rounds, ratios round by round; one JSON line an item."""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.shapes import MAX_PASSES, SHAPES

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # mallopt's names for its parameters
RESULTS = Path(__file__).parent / "results"


def arguments(description: str) -> argparse.ArgumentParser:
    """What every benchmark can be told."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--shape", default="70m", choices=SHAPES, help="Pythia's sizes, with random weights")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=7, help="runs of each side, at least 5")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="file that the lines go to as well; replaced when all are done")
    return parser


def learned_arguments(parser: argparse.ArgumentParser) -> None:
    """Where learned halting is measured too."""
    parser.add_argument(
        "--model", help="a released folder, in place of --shape; its gates decide where no depth is imposed"
    )
    parser.add_argument("--text", help="file that --model reads with its tokenizer; random tokens without it")


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments; a bad one ends with a line and exit code 2, before anything is measured."""
    chosen = parser.parse_args()
    if chosen.rounds < 5:
        parser.error(f"--rounds {chosen.rounds}: at least 5, or there is no spread to show")
    for mean in getattr(chosen, "mean_depths", []):
        if not 1 <= mean <= MAX_PASSES:
            parser.error(f"--mean-depths {mean}: between 1 and {MAX_PASSES}")
    if getattr(chosen, "text", None) and not chosen.model:
        parser.error(f"--text {chosen.text}: its tokenizer is that of --model, which is not given")
    if chosen.output is not None:
        chosen.output.parent.mkdir(parents=True, exist_ok=True)
    return chosen


def interleaved(sides: dict[str, Callable[[], Any]], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of every run by side. One round runs each side once, in an order of its own; a first one is not counted.

    On a machine that others use, what a slow minute does to one side it does to all.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    names, orders = list(sides), random.Random(0)
    for number in range(rounds + 1):
        for name in orders.sample(names, len(names)):
            _wait(device)
            began = time.perf_counter()
            sides[name]()
            _wait(device)
            if number:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and extremes."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    numbers = {"median": middle, "quartile_1": low, "quartile_3": high, "min": min(values), "max": max(values)}
    return {name: round(value, 5) for name, value in numbers.items()} | {"runs": len(values)}


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Round by round."""
    return [a / b for a, b in zip(over, under, strict=True)]


def machine() -> dict[str, Any]:
    """Where this runs."""
    names = [line.split(":", 1)[1].strip() for line in _cpu_lines() if line.startswith("model name")]
    here: dict[str, Any] = {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
    }
    if torch.cuda.is_available():
        here["gpu"] = torch.cuda.get_device_name()
    return here


def _cpu_lines() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


class Report:
    """The lines of one benchmark: printed as they come, kept in a file when all of them are there."""

    def __init__(self, benchmark: str, chosen: argparse.Namespace, sizes: dict[str, Any]) -> None:
        self._head = {
            "benchmark": benchmark,
            "machine": machine(),
            "versions": {"python": platform.python_version()} | {n: version(n) for n in ("torch", "transformers")},
            "sizes": {"shape": chosen.shape, "dtype": chosen.dtype, "device": chosen.device} | sizes,
        }
        self._output: Path | None = chosen.output
        self._lines: list[str] = []

    def line(self, item: str, **figures: Any) -> None:
        text = json.dumps(self._head | {"item": item} | figures)
        self._lines.append(text)
        print(text, flush=True)

    def close(self) -> None:
        """Write the file, whole or not at all."""
        if self._output is not None:
            beside = self._output.with_suffix(".part")
            beside.write_text("[\n" + ",\n".join(self._lines) + "\n]\n", encoding="utf-8")
            beside.replace(self._output)
            print(f"{self._output}: {len(self._lines)} items", file=sys.stderr)


def give_memory_back() -> None:
    """Tell the C library to give every large block back at once, so that what it keeps for later is not measured."""
    library = ctypes.CDLL(None)
    if not (library.mallopt(_MMAP_THRESHOLD, 1 << 16) and library.mallopt(_TRIM_THRESHOLD, 1 << 16)):
        raise SystemExit("the C library does not take mallopt: memory cannot be measured on this system")


def resident(which: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at the peak."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(which):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no {which}: memory is measured on Linux only")
