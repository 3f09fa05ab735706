"""A row comes back as its text, with every boundary where it was."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.data.rows import RowReader
from pipeline.errors import UserError, WorldError
from tests.tokenization.generated_records import END, generated_texts
from tests.tokenization.whole_data_set import DataSet, make_data_set
from tokenization.inspection.peek import peek, read_row

TEXTS = [*generated_texts(40, 3, words=14), "naïve 東京 🙂", "\x1b[31mred\x07\x9b", "two\n\nlines\tand [bold]marks[/]"]


@pytest.fixture
def data_set(tmp_path: Path, small_tokenizer: Path) -> DataSet:
    """One part, so that rows follow each other as the documents do."""
    parts = {"train": [[("AB"[n % 2], text) for n, text in enumerate(TEXTS)]], "validation-A": [[("A", TEXTS[0])]]}
    return make_data_set(tmp_path / "shards", small_tokenizer, parts, shard_bytes=8192)


def test_pieces_of_all_rows_are_the_documents(data_set: DataSet) -> None:
    manifest = data_set.manifest
    assert len(manifest.train.shards) > 2
    written = iter(data_set.splits["train"])
    ids: list[int] = []
    for number in range(manifest.train.rows):
        row = read_row(data_set.folder, manifest, "train", number)
        with RowReader(data_set.folder, manifest, "train") as reader:
            np.testing.assert_array_equal(row.tokens, reader.read([number])[0])
        assert row.pieces[0].start == 0
        assert [piece.end for piece in row.pieces[:-1]] == [piece.start for piece in row.pieces[1:]]
        last = number == manifest.train.rows - 1
        assert row.padding_tokens == (manifest.train.padding_tokens if last else 0)
        assert row.pieces[-1].end == 17 - row.padding_tokens
        for piece in row.pieces:
            assert piece.begins == (not ids)
            ids += row.tokens[piece.start : piece.end].tolist()
            if piece.ends:
                expected = next(written)
                assert (ids, piece.source) == (expected.ids, expected.source)
                ids = []
    assert next(written, None) is None
    assert not ids


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=st.lists(st.lists(st.integers(0, len(TEXTS) - 1), max_size=5), min_size=1, max_size=4),
    seq_len=st.integers(1, 20),
    rows_per_chunk=st.integers(2, 9),
)
def test_rows_are_those_that_training_reads(
    tmp_path_factory, small_tokenizer: Path, parts: list[list[int]], seq_len: int, rows_per_chunk: int
) -> None:
    folder = tmp_path_factory.mktemp("rows") / "shards"
    documents = [[("A", TEXTS[number]) for number in part] for part in parts]
    made = make_data_set(folder, small_tokenizer, {"train": documents}, seq_len=seq_len, rows_per_chunk=rows_per_chunk)
    manifest = made.manifest
    ends = 0
    with RowReader(folder, manifest, "train") as reader:
        for number in range(min(manifest.train.rows, 40)):
            row = read_row(folder, manifest, "train", number)
            np.testing.assert_array_equal(row.tokens, reader.read([number])[0])
            ends += sum(piece.ends for piece in row.pieces)
    if manifest.train.rows <= 40:
        assert ends == manifest.train.documents


def shown(data_set: DataSet, capsys: pytest.CaptureFixture, number: int, **options) -> str:
    peek(data_set.folder, number, options.get("split", "train"), options.get("each_token", False))
    return capsys.readouterr().out


def test_all_text_is_shown(data_set: DataSet, capsys: pytest.CaptureFixture) -> None:
    manifest = data_set.manifest
    text = "".join(
        re.sub(r"(?m)^(row .*|── .*)\n", "", shown(data_set, capsys, number)).replace("\n", "")
        for number in range(manifest.train.rows)
    )
    assert text.count(END) == len(TEXTS)
    for original in TEXTS[:40]:
        assert original + END in text
    assert "␛[31mred␇\\x9b" + END in text
    assert re.search(r"two *lines +and \[bold\]marks\[/\]" + re.escape(END), text)
    assert "\x1b" not in text


def test_boundaries_and_padding_are_told(data_set: DataSet, capsys: pytest.CaptureFixture) -> None:
    manifest = data_set.manifest
    first = shown(data_set, capsys, 0)
    assert first.startswith(f"row 0 of {manifest.train.rows} in train: train-000000.tar, chunk 0, row 0 of the chunk\n")
    size = len(TEXTS[0].encode())
    assert f"\n── A · tokens 0 to 16 of 17 · {size} bytes of text in all · goes on in another row\n" in first
    second = shown(data_set, capsys, 1)
    assert "── A · tokens 0 to" in second and "goes on from before" in second
    last = shown(data_set, capsys, manifest.train.rows - 1)
    assert f"\n── padding: {manifest.train.padding_tokens} times {END}, of no document and in no loss\n" in last
    assert f"in validation-A: {manifest.validation['A'].shards[0].name}, chunk 0" in shown(
        data_set, capsys, 0, split="validation-A"
    )


def test_each_token_by_itself(data_set: DataSet, capsys: pytest.CaptureFixture) -> None:
    row = read_row(data_set.folder, data_set.manifest, "train", 2)
    told = shown(data_set, capsys, 2, each_token=True)
    cells = re.findall(r"(?<!\S)(\d+) +(\d+) (?:'|\"|<\||\S)", told)
    assert [(int(place), int(token)) for place, token in cells] == list(enumerate(row.tokens.tolist()))
    everything = "".join(shown(data_set, capsys, n, each_token=True) for n in range(data_set.manifest.train.rows))
    assert everything.count(f" {END}") >= len(TEXTS)
    assert "\x1b" not in everything


@pytest.mark.parametrize("number", [-1, 10**9])
def test_a_row_that_is_none(data_set: DataSet, number: int) -> None:
    rows = data_set.manifest.train.rows
    with pytest.raises(UserError, match=f"--row {number}: train has {rows} rows, from 0 to {rows - 1}"):
        read_row(data_set.folder, data_set.manifest, "train", number)


def test_a_split_that_is_none(data_set: DataSet) -> None:
    with pytest.raises(UserError, match="--split test: .* has train, validation-A"):
        read_row(data_set.folder, data_set.manifest, "test", 0)


def test_another_tokenizer_decodes_nothing(data_set: DataSet) -> None:
    with open(data_set.folder / "tokenizer" / "tokenizer.json", "a") as file:
        file.write("\n")
    with pytest.raises(WorldError, match="is not the tokenizer that made these shards"):
        peek(data_set.folder, 0, "train", False)


def test_a_damaged_shard_is_named(data_set: DataSet) -> None:
    path = data_set.folder / "train-000000.tar"
    path.write_bytes(path.read_bytes().replace(b"\x93NUMPY\x01", b"\x93NUMPY\x02", 1))
    with pytest.raises(WorldError, match=r"train-000000\.tar is damaged: chunk 0: the \.npy is of another version"):
        read_row(data_set.folder, data_set.manifest, "train", 0)
