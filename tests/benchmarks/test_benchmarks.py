"""Every benchmark runs at a tiny size and says what the table wants."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.table import BEGIN, END, README, stored_results, table, with_table

TINY = ["--shape", "tiny", "--rounds", "5"]


def lines_of(name: str, output: Path, *arguments: str) -> list[dict]:
    subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *TINY, "--output", str(output), *arguments],
        check=True,
        timeout=240,
        cwd=README.parent,
        stdout=subprocess.DEVNULL,
    )
    return json.loads(output.read_text())


@pytest.mark.slow
def test_inference(tmp_path: Path) -> None:
    prefill = lines_of("prefill", tmp_path / "prefill.json", "--tokens", "24", "--mean-depths", "1.5", "2.5")
    assert [line["item"] for line in prefill][:3] == ["full depth", "mean depth 1.5", "mean depth 2.5"]
    assert prefill[1]["multiply_accumulates_over_full_depth"] < 0.5
    sizes = ["--context", "24", "--tokens", "8", "--rows", "2", "--mean-depths", "2.5"]
    decode = lines_of("decode", tmp_path / "decode.json", *sizes)
    full, halted = (line["cache_bytes_over_full_caches"] for line in decode[:2])
    assert 1 <= full < 1.5  # of few tokens the spare room is a large share
    assert halted < full
    made = table([prefill, decode])
    assert "| prefill, tiny, 4 x 24 tokens, float32, " in made
    assert "| mean depth 2.5 | cache bytes over K full caches | " in made
    assert "| full depth | time over full depth |" not in made


@pytest.mark.slow
def test_training(tmp_path: Path) -> None:
    step = lines_of("training_step", tmp_path / "step.json", "--tokens", "32")
    memory = lines_of("training_memory", tmp_path / "memory.json", "--tokens", "128")
    ratio = {line["item"]: line["memory_over_all_logits_at_once"]["median"] for line in memory}
    assert ratio["logits in chunks"] < 1
    items = [line["item"] for line in step]
    assert items == [line["item"] for line in memory][: len(items)]
    made = table([step, memory])
    assert " | logits in chunks, layers recomputed | memory over a single pass in chunks | " in made
    assert " | 1.150" in made


@pytest.mark.slow
def test_saving(tmp_path: Path) -> None:
    sizes = ["--tokens", "32", "--step-tokens", "64", "--ranks", "2"]
    (line,) = lines = lines_of("checkpoint_saving", tmp_path / "saving.json", *sizes)
    assert 0 < line["copy_seconds"]["median"] < line["seconds_in_flight"]["median"]
    assert line["megabytes"] > 70 and line["steps_in_flight"]["min"] >= 1
    assert " | 2 ranks | time lost beyond the copy over a step | " in table([lines])


def test_the_readmes_table_is_that_of_the_stored_results() -> None:
    readme = README.read_text(encoding="utf-8")
    assert with_table(readme, table(stored_results())) == readme


def test_a_readme_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="must stand in it"):
        with_table("# nothing", "table")
    assert with_table(f"a{BEGIN}old{END}b", "new") == f"a{BEGIN}\n\nnew\n\n{END}b"
