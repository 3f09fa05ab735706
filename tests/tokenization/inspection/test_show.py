"""Figures are those of the documents that were written, wherever a document's parts stand."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError, WorldError
from tests.tokenization.generated_records import generated_texts
from tests.tokenization.whole_data_set import DataSet, make_data_set
from tokenization.inspection.document_lengths import Lengths, document_lengths
from tokenization.inspection.length_plot import COLOURS, write_length_plot
from tokenization.inspection.show import as_plain, measure, show_and_tell


def texts_of(lengths: list[int], names: list[str], seed: int) -> list[tuple[str, str]]:
    """Documents of so many words, of one source after the other."""
    words = " ".join(generated_texts(20, seed)).split(" ")
    return [
        (names[number % len(names)], " ".join(words[number : number + length] * (1 + length // len(words))))
        for number, length in enumerate(lengths)
    ]


def expected_lengths(data_set: DataSet) -> dict[str, dict]:
    lengths: dict[str, list[int]] = {}
    for of_split in data_set.splits.values():
        for one in of_split:
            lengths.setdefault(one.source, []).append(len(one.ids))
    return {
        source: {
            "bins": Counter(length.bit_length() - 1 for length in every),
            "tokens": sum(every),
            "shortest": min(every),
            "longest": max(every),
        }
        for source, every in lengths.items()
    }


@pytest.fixture
def data_set(tmp_path: Path, small_tokenizer: Path) -> DataSet:
    parts = {
        "train": [texts_of([5, 90, 30, 200, 8], ["A", "B"], 1), texts_of([40, 40, 3], ["A"], 2)],
        "validation-A": [texts_of([10, 60], ["A"], 3)],
        "validation-B": [texts_of([25], ["B"], 4)],
    }
    return make_data_set(tmp_path / "shards", small_tokenizer, parts)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=st.lists(st.lists(st.integers(1, 60), max_size=3), min_size=1, max_size=4),
    names=st.sampled_from([["A"], ["A", "B"]]),
    seq_len=st.integers(6, 20),
    rows_per_chunk=st.integers(2, 6),
    shard_bytes=st.sampled_from([1 << 13, 1 << 20]),
)
def test_lengths_are_those_of_the_documents(
    tmp_path_factory, small_tokenizer: Path, parts, names, seq_len, rows_per_chunk, shard_bytes
) -> None:
    made = make_data_set(
        tmp_path_factory.mktemp("lengths") / "shards",
        small_tokenizer,
        {"train": [texts_of(lengths, names, number) for number, lengths in enumerate(parts)]},
        seq_len=seq_len,
        rows_per_chunk=rows_per_chunk,
        shard_bytes=shard_bytes,
    )
    found = document_lengths(made.folder, made.manifest)
    assert {source: vars(lengths) for source, lengths in found.items()} == expected_lengths(made)


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(1, 2**40), min_size=1, max_size=30), cut=st.integers(0, 30))
def test_bins_are_powers_of_two(lengths: list[int], cut: int) -> None:
    whole, one, other = Lengths(), Lengths(), Lengths()
    whole.add(np.array(lengths))
    one.add(np.array(lengths[:cut], dtype=np.int64))
    other.add(np.array(lengths[cut:], dtype=np.int64))
    one.join(other)
    assert one == whole
    assert whole.bins == Counter(length.bit_length() - 1 for length in lengths)
    assert (whole.documents, whole.shortest, whole.longest) == (len(lengths), min(lengths), max(lengths))


def test_figures_add_up(data_set: DataSet) -> None:
    figures = measure(data_set.folder, data_set.manifest)
    for one in figures.sources:
        written = [each for each in data_set.splits[one.split] if each.source == one.source]
        tokens = sum(len(each.ids) for each in written)
        text_bytes = sum(each.text_bytes for each in written)
        assert (one.documents, one.tokens, one.text_bytes) == (len(written), tokens, text_bytes)
        assert one.tokens_a_document == pytest.approx(tokens / len(written))
        assert one.bytes_a_token == pytest.approx(text_bytes / tokens)
    for kind in (True, False):
        assert sum(one.token_share for one in figures.sources if (one.split == "train") == kind) == pytest.approx(1)
    disk = figures.disk
    files = [*data_set.folder.glob("*.tar"), *data_set.folder.glob("*.idx")]
    assert disk.bytes == sum(path.stat().st_size for path in files)
    assert disk.shards == len(files) / 2
    assert disk.token_bytes == disk.rows * 17 * 2
    assert disk.overhead_percent == pytest.approx(100 * (disk.bytes - disk.token_bytes) / disk.token_bytes)


def test_tables_picture_and_json_tell_the_same(data_set: DataSet, capsys: pytest.CaptureFixture) -> None:
    show_and_tell(data_set.folder, None, as_json=True)
    plain = json.loads(capsys.readouterr().out)
    assert plain == json.loads(json.dumps(as_plain(measure(data_set.folder, data_set.manifest))))
    assert not (data_set.folder / "document-lengths.png").exists()

    show_and_tell(data_set.folder, None, as_json=False)
    told = capsys.readouterr().out
    for one in plain["sources"]:
        numbers = f"{one['documents']:,} +{one['tokens']:,} +{one['token_share']:.2%}"
        assert any(line.startswith(one["source"]) for line in told.splitlines())
        assert re.search(numbers, told), numbers
    assert "empty_document        2" in told
    assert f"{plain['disk']['overhead_percent']:.2f} % above the raw tokens" in told
    assert "…" not in told  # no number is cut
    assert (data_set.folder / "document-lengths.png").read_bytes().startswith(b"\x89PNG")


def test_names_are_data(tmp_path: Path, small_tokenizer: Path, capsys: pytest.CaptureFixture) -> None:
    names = ["[bold]x[/]", "_hidden", "$x$ $", "naïve 東京"]
    made = make_data_set(tmp_path / "shards", small_tokenizer, {"train": [texts_of([9] * 8, names, 1)]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        show_and_tell(made.folder, tmp_path / "p.png", as_json=False)
    told = capsys.readouterr().out
    assert all(name in told for name in names)


def test_more_sources_than_colours(tmp_path: Path) -> None:
    lengths = {}
    for number in range(len(COLOURS) + 3):
        lengths[f"source {number}"] = Lengths()
        lengths[f"source {number}"].add(np.arange(1, 5 + number))
    write_length_plot(tmp_path / "many.png", lengths, "many")
    write_length_plot(tmp_path / "none.png", {}, "none")
    assert {path.name for path in tmp_path.iterdir()} == {"many.png", "none.png"}


@pytest.mark.parametrize("suffix", [".tar", ".idx"])
def test_a_missing_file_is_named(data_set: DataSet, suffix: str) -> None:
    path = (data_set.folder / "train-000000.tar").with_suffix(suffix)
    path.unlink()
    with pytest.raises(WorldError, match=path.name):
        measure(data_set.folder, data_set.manifest)


def test_a_damaged_chunk_is_named(data_set: DataSet) -> None:
    path = data_set.folder / "train-000000.tar"
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"padding_tokens":0', b'"padding_tokens":1'))
    with pytest.raises(WorldError, match=r"train-000000\.tar is damaged: chunk \d+: pieces reach"):
        measure(data_set.folder, data_set.manifest)


def test_a_picture_that_cannot_be_written(data_set: DataSet, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="name a place with --png"):
        show_and_tell(data_set.folder, tmp_path / "file" / "p.png", as_json=True)


def test_no_file_stays_open(data_set: DataSet) -> None:
    before = len(os.listdir("/proc/self/fd"))
    measure(data_set.folder, data_set.manifest)
    assert len(os.listdir("/proc/self/fd")) == before
