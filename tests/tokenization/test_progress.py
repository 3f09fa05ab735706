"""The bars say how much text has been read, how fast, by whom, and when it will be done."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

import tokenization.progress
from tokenization.documents import Slice
from tokenization.plan import Part
from tokenization.progress import TokenizeProgress


def part(number: int, size: int) -> Part:
    return Part(number, 0, (Slice("x.jsonl", 0, None, size, "", "train"),))


def test_a_bar_for_all_and_one_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=140, color_system=None)
    monkeypatch.setattr(tokenization.progress, "console", console)
    with TokenizeProgress("tokenize", 40_000_000, workers=2) as progress:
        for number in (0, 1):
            progress.begins(number, part(number, 20_000_000))
            progress.worker(number).advance(5_000_000 * (number + 1))
            progress.worker(number).count(4_000_000, 1_000_000)
        progress._bars.refresh()
        shown = screen.getvalue().splitlines()[-3:]
        progress.begins(1, None)
        screen.seek(0)
        screen.truncate(0)
        progress._bars.refresh()
        left = screen.getvalue()
    speeds = r"[\d.]+ MB/s of text, [\d,]+ tokens/s +(-:--:--|\d+:\d\d:\d\d)"
    for line, name, size in zip(
        shown, ("tokenize", "part 1", "part 2"), ("15.0/40.0 MB", "5.0/20.0 MB", "10.0/20.0 MB"), strict=True
    ):
        assert re.search(rf"{name} .*{re.escape(size)} +{speeds}", line), line
    assert "part 1" in left
    assert "part 2" not in left
