"""Rounds in which every side runs once, spreads, and files that appear whole."""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import pytest

from benchmarks.measurement import Report, interleaved, learned_arguments, parsed, ratios, spread
from benchmarks.measurement import arguments as argument_parser


def test_every_round_runs_every_side_once_in_an_order_of_its_own() -> None:
    ran: list[str] = []
    seconds = interleaved({name: lambda name=name: ran.append(name) for name in "abc"}, 5, "cpu")
    assert {name: len(values) for name, values in seconds.items()} == {"a": 5, "b": 5, "c": 5}
    rounds = ["".join(ran[i : i + 3]) for i in range(0, len(ran), 3)]
    assert len(rounds) == 6
    assert {"".join(sorted(order)) for order in rounds} == {"abc"}
    assert len(set(rounds)) > 1


def test_spread_and_ratios() -> None:
    values = [3.0, 1.0, 2.0, 5.0, 4.0]
    found = spread(values)
    assert found["median"] == statistics.median(values)
    assert (found["min"], found["max"], found["quartile_1"], found["quartile_3"], found["runs"]) == (1, 5, 2, 4, 5)
    assert ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]


def arguments(output: Path | None, rounds: int = 5) -> argparse.Namespace:
    return argparse.Namespace(shape="tiny", dtype="float32", device="cpu", rounds=rounds, output=output)


def test_a_line_an_item_and_a_file_when_all_are_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "some.json"
    report = Report("some", arguments(output), {"rows": 1})
    report.line("first", figure=1)
    report.line("second", figure=2)
    assert not output.exists()
    report.close()
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert json.loads(output.read_text()) == printed
    assert [line["item"] for line in printed] == ["first", "second"]
    assert printed[0]["sizes"] == {"shape": "tiny", "dtype": "float32", "device": "cpu", "rows": 1}
    assert {"cpu", "cores", "threads"} <= set(printed[0]["machine"])
    assert {"python", "torch", "transformers"} == set(printed[0]["versions"])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--rounds", "4"], "--rounds 4: at least 5"),
        (["--shape", "7b"], "invalid choice: '7b'"),
        (["--mean-depths", "5"], "--mean-depths 5.0: between 1 and 4"),
        (["--text", "book.txt"], "--text book.txt: its tokenizer is that of --model"),
    ],
)
def test_a_mistake_ends_with_a_line_before_anything_runs(
    given: list[str], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["benchmark", *given])
    parser = argument_parser("Something.")
    learned_arguments(parser)
    parser.add_argument("--mean-depths", type=float, nargs="+", default=[])
    with pytest.raises(SystemExit) as ended:
        parsed(parser)
    assert ended.value.code == 2
    assert told in capsys.readouterr().err
