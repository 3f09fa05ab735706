"""Text a second: the whole tokenize stage against the raw encoding of `tokenizers`, and two workers against one.

    python -m benchmarks.tokenization [--files 'pile/train/*.jsonl.zst' --tokenizer gpt-neox-20b/tokenizer.json]

Each run is a fresh process. `tokenizers` (encode_batch_fast, one thread) encodes texts that lie in memory, on one core,
and only that is timed. The stage with one worker runs on the same core and is timed from its start to its end:
starting Python, reading, unpacking, parsing, encoding, packing, hashing and writing. What two workers could be at best
on the machine's two cores is measured too: two encoders that share nothing, side by side, against one. Without --files,
the standard library of this Python is the text, and a tokenizer trained on it the tokenizer.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
import zstandard

from benchmarks.measurement import Report, arguments, parsed, ratios, spread
from tokenization.encoding.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from tokenization.sources.compressed import read_blocks
from tokenization.sources.find_files import find_files
from tokenization.sources.json_lines import SUFFIXES
from tokenization.sources.long_lines import split_lines

END = "<|endoftext|>"
RAW = """
import json, sys, time
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(sys.argv[1])
texts = json.load(open(sys.argv[2]))
began = time.perf_counter()
for first in range(0, len(texts), 256):
    tokenizer.encode_batch_fast(texts[first : first + 256], add_special_tokens=False)
print(time.perf_counter() - began)
"""
ENCODER = """
import json, os, sys, time
from pathlib import Path
from tokenization.encoding.tokenizer import DocumentTokenizer
os.sched_setaffinity(0, {int(sys.argv[4])})
tokenizer = DocumentTokenizer(Path(sys.argv[1]), "", sys.argv[3])
texts = json.load(open(sys.argv[2]))
tokenizer.encode_batch(texts)
print(flush=True)
sys.stdin.readline()
began = time.perf_counter()
for _ in range(5):
    tokenizer.encode_batch(texts)
print(time.perf_counter() - began, flush=True)
"""
ONE_THREAD = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}


def main() -> None:
    parser = arguments("The tokenize stage against raw `tokenizers`, and two workers against one.")
    parser.add_argument("--files", nargs="*", default=[], help="JSON lines in the Pile's layout; names or patterns")
    parser.add_argument("--tokenizer", help="tokenizer.json of --files")
    parser.add_argument("--repeat", type=int, default=4, help="how often the text is there, under other names")
    parser.add_argument("--raw-megabytes", type=int, default=10, help="text that raw `tokenizers` encodes in a run")
    chosen = parsed(parser)
    if bool(chosen.files) != bool(chosen.tokenizer):
        parser.error("--files and --tokenizer go together")
    with tempfile.TemporaryDirectory(prefix="tokenization-") as folder:
        measure(Path(folder), chosen)


def measure(folder: Path, chosen: argparse.Namespace) -> None:
    files, tokenizer = _inputs(folder, chosen)
    texts, text_bytes = _texts(files)
    chance = random.Random(chosen.seed)
    sample: list[str] = []
    sample_bytes = 0
    for text in chance.sample(texts, len(texts)):
        if sample_bytes < chosen.raw_megabytes * 1e6:
            sample.append(text)
            sample_bytes += len(text.encode())
    (folder / "sample.json").write_text(json.dumps(sample))
    del texts, sample
    recipe = folder / "recipe.yaml"
    copies = [folder / f"copy{number}" for number in range(chosen.repeat)]
    for copy in copies:
        copy.mkdir()
        for path in files:
            shutil.copy(path, copy)
    recipe.write_text(yaml.safe_dump(_recipe([str(copy / "*") for copy in copies], tokenizer)))

    speeds: dict[str, list[float]] = {}
    names = ["raw tokenizers", "stage, 1 worker", "stage, 2 workers", "1 encoder", "2 encoders"]
    if len(os.sched_getaffinity(0)) < 2:
        names = names[:2]
    save_tokenizer(*load_tokenizer(str(tokenizer), END), folder / "encoders")
    for number in range(chosen.rounds + 1):
        for name in chance.sample(names, len(names)):
            if name == "raw tokenizers":
                speed = sample_bytes / _raw_seconds(tokenizer, folder / "sample.json")
            elif "encoder" in name:
                count = int(name[0])
                seconds = _encoder_seconds(folder / "encoders", folder / "sample.json", count)
                speed = 5 * count * sample_bytes / seconds
            else:
                workers = int(name.split()[1])
                speed = text_bytes * chosen.repeat / _stage_seconds(recipe, folder / "runs", workers)
            if number:
                speeds.setdefault(name, []).append(speed / 1e6)
    sizes = {"text_megabytes": round(text_bytes * chosen.repeat / 1e6, 1), "files": len(files) * chosen.repeat}
    report = Report("tokenization", chosen, sizes)
    bounds: dict[str, tuple[str, float | None]] = {
        "stage, 1 worker": ("raw tokenizers", 2.5),
        "stage, 2 workers": ("stage, 1 worker", 1.8),
        "2 encoders": ("1 encoder", None),
    }
    for name in names:
        figures: dict[str, Any] = {"megabytes_per_second": spread(speeds[name])}
        if name in bounds:
            other, bound = bounds[name]
            figures |= {"speed_over": other, "speed_ratio": spread(ratios(speeds[name], speeds[other]))}
            figures |= {"bound": bound} if bound else {}
        report.line(name, **figures)
    report.close()


def _inputs(folder: Path, chosen: argparse.Namespace) -> tuple[list[Path], Path]:
    """JSON lines and the tokenizer.json for them."""
    if chosen.files:
        return find_files(chosen.files, SUFFIXES), Path(chosen.tokenizer)
    library = Path(sysconfig.get_path("stdlib"))
    texts = []
    for path in sorted(library.rglob("*.py")):
        if "site-packages" not in path.parts:
            try:
                texts.append(path.read_text(encoding="utf-8"))
            except UnicodeDecodeError:
                continue
    lines = "".join(json.dumps({"text": text, "meta": {"pile_set_name": "python"}}) + "\n" for text in texts)
    path = folder / "library.jsonl.zst"
    path.write_bytes(zstandard.ZstdCompressor().compress(lines.encode()))
    save_tokenizer(*train_tokenizer(texts, 16_384, END), folder / "tokenizer")
    return [path], folder / "tokenizer" / "tokenizer.json"


def _texts(files: list[Path]) -> tuple[list[str], int]:
    texts = [
        json.loads(bytes(line))["text"]
        for path in files
        for _, line in split_lines(read_blocks(path, lambda _: None))
        if isinstance(line, bytes | bytearray)
    ]
    return texts, sum(len(text.encode()) for text in texts)


def _recipe(patterns: list[str], tokenizer: Path) -> dict[str, Any]:
    backbone = {"vocab_size": 1 << 17, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    return {
        "name": "benchmark",
        "tokenize": {
            "tokenizer": str(tokenizer),
            "end_of_document": END,
            "seq_len": 2048,
            "sources": [{"kind": "jsonl", "train": patterns, "validation_share": 0.01}],
        },
        "model": {"start": "scratch", "backbone": {**backbone, "intermediate_size": 8}},
        "train": {
            "micro_batch": 1,
            "global_batch": 1,
            "optimizer": {"peak_lr": 1e-3},
            "phases": [{"name": "only", "steps": 1, "halting": False}],
        },
    }


def _raw_seconds(tokenizer: Path, sample: Path) -> float:
    command = [sys.executable, "-c", RAW, str(tokenizer), str(sample)]
    done = subprocess.run(
        command, env=os.environ | ONE_THREAD, preexec_fn=_one_core, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def _encoder_seconds(tokenizer: Path, sample: Path, count: int) -> float:
    """Until the last of `count` encoders, each on a core of its own, has done what it began at the same time."""
    cores = sorted(os.sched_getaffinity(0), reverse=True)[:count]
    encoders = [
        subprocess.Popen(
            [sys.executable, "-c", ENCODER, str(tokenizer), str(sample), END, str(core)],
            env=os.environ | ONE_THREAD,
            cwd=Path(__file__).parent.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for core in cores
    ]
    for encoder in encoders:
        assert encoder.stdout is not None
        encoder.stdout.readline()  # it is ready
    for encoder in encoders:
        assert encoder.stdin is not None
        encoder.stdin.write("\n")
        encoder.stdin.flush()
    return max(float(encoder.communicate()[0]) for encoder in encoders)


def _stage_seconds(recipe: Path, runs: Path, workers: int) -> float:
    shutil.rmtree(runs, ignore_errors=True)
    command = [sys.executable, "-c", "from pipeline.cli import main; main()", "tokenize", str(recipe)]
    command += ["--runs", str(runs), "--workers", str(workers)]
    began = time.perf_counter()
    subprocess.run(command, preexec_fn=_one_core if workers == 1 else None, capture_output=True, check=True)
    return time.perf_counter() - began


def _one_core() -> None:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


if __name__ == "__main__":
    main()
