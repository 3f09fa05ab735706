"""Rows hold every token once, and the pieces say whose they are."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenization.packing import Chunk, RowPacker

END = 0
documents_strategy = st.lists(
    st.tuples(
        st.lists(st.integers(0, 65_535), min_size=1, max_size=60), st.sampled_from(["A", "B", "C"]), st.integers(1, 999)
    ),
    max_size=20,
)


def pack(documents, seq_len: int, rows_per_chunk: int) -> list[Chunk]:
    packer = RowPacker(
        seq_len=seq_len, rows_per_chunk=rows_per_chunk, dtype=np.dtype(np.uint16), end_of_document_id=END
    )
    chunks = [chunk for document in documents for chunk in packer.add(*document)]
    return [*chunks, *packer.finish()]


@settings(max_examples=150, deadline=None)
@given(documents=documents_strategy, seq_len=st.integers(1, 9), rows_per_chunk=st.integers(1, 5))
def test_packing_loses_and_adds_nothing(documents, seq_len: int, rows_per_chunk: int) -> None:
    chunks = pack(documents, seq_len, rows_per_chunk)
    expected = [token for ids, _, _ in documents for token in (*ids, END)]
    flat = np.concatenate([chunk.tokens.reshape(-1) for chunk in chunks]).tolist() if chunks else []
    padding = len(flat) - len(expected)
    assert 0 <= padding <= seq_len
    assert flat == expected + [END] * padding
    assert [chunk.padding_tokens for chunk in chunks] == [0] * (len(chunks) - 1) + [padding] * bool(chunks)
    assert all(chunk.tokens.shape == (rows_per_chunk, seq_len + 1) for chunk in chunks[:-1])
    assert all(chunk.tokens.dtype == np.uint16 and len(chunk.tokens) <= rows_per_chunk for chunk in chunks)


@settings(max_examples=150, deadline=None)
@given(documents=documents_strategy, seq_len=st.integers(1, 9), rows_per_chunk=st.integers(1, 5))
def test_pieces_give_the_documents_back(documents, seq_len: int, rows_per_chunk: int) -> None:
    found: list[tuple[list[int], str, int]] = []
    for chunk in pack(documents, seq_len, rows_per_chunk):
        flat = chunk.tokens.reshape(-1).tolist()
        meta = chunk.meta()
        starts, ends = meta["start"], meta["end"]
        assert starts == [0, *ends[:-1]]
        assert ends[-1] == len(flat) - chunk.padding_tokens
        for source, start, end, text_bytes in zip(meta["source"], starts, ends, meta["bytes"], strict=True):
            name = meta["sources"][source]
            if text_bytes:
                found.append((flat[start:end], name, text_bytes))
            else:
                assert start == 0
                assert found[-1][1] == name
                found[-1] = (found[-1][0] + flat[start:end], *found[-1][1:])
    assert found == [([*ids, END], source, text_bytes) for ids, source, text_bytes in documents]
