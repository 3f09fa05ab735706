"""Sound shards pass; every kind of damage is told, with the file and the place, and nothing else is."""

from __future__ import annotations

import json
import random
import re
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.data.manifest import MANIFEST_NAME, ShardEntry
from pipeline.errors import UserError
from tests.tokenization.generated_records import generated_texts
from tests.tokenization.whole_data_set import DataSet, entry_now, make_data_set
from tokenization.inspection.stored_chunks import StoredShard
from tokenization.inspection.verify import verify
from tokenization.inspection.verify_shard import Expected, verify_shard

SHARD, INDEX = "train-000001.tar", "train-000001.idx"
CHUNK_TOKENS = 8 * 17


def documents(count: int, seed: int, names: tuple[str, ...] = ("A", "Wikipedia (en)"), words: int = 12):
    texts = generated_texts(count, seed, words)
    return [(names[number % len(names)], text) for number, text in enumerate(texts)]


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory, small_tokenizer: Path) -> DataSet:
    """Three parts of training documents, two of validation, several shards."""
    parts = {
        "train": [documents(30, 1), documents(25, 2), documents(3, 3)],
        "validation-A": [documents(9, 4, ("A",)), []],
    }
    made = make_data_set(tmp_path_factory.mktemp("original") / "shards", small_tokenizer, parts)
    assert len(made.manifest.train.shards) >= 4
    return made


@pytest.fixture
def data_set(original: DataSet, tmp_path: Path) -> DataSet:
    """A copy to damage."""
    shutil.copytree(original.folder, tmp_path / "shards")
    return DataSet(tmp_path / "shards", original.splits)


def offsets(data_set: DataSet, chunk: int) -> tuple[int, int]:
    """Where in SHARD the .npy and the meta of a chunk begin."""
    fields = (data_set.folder / INDEX).read_text().splitlines()[1 + chunk].split(" ")
    return int(fields[1]), int(fields[5])


def put(path: Path, offset: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def flip(path: Path, offset: int) -> None:
    content = path.read_bytes()
    put(path, offset, bytes([content[offset] ^ 1]))


def change_meta(data_set: DataSet, chunk: int, **fields) -> None:
    """Other fields in a chunk's meta, of the same length on disk; the manifest takes the shard for good."""
    path = data_set.folder / SHARD
    _, offset = offsets(data_set, chunk)
    size = int((data_set.folder / INDEX).read_text().splitlines()[1 + chunk].split(" ")[6])
    meta = json.loads(path.read_bytes()[offset : offset + size])
    content = json.dumps({**meta, **fields}, separators=(",", ":")).encode()
    assert len(content) <= size
    put(path, offset, content.ljust(size))
    data_set.believe()


def problems(data_set: DataSet) -> list[str]:
    found = verify(data_set.folder).problems
    assert all("\n" not in problem for problem in found)
    return found


def one_problem(data_set: DataSet) -> str:
    found = problems(data_set)
    assert len(found) == 1, found
    return found[0]


def test_sound_shards(original: DataSet) -> None:
    read: list[int] = []
    found = verify(original.folder, workers=2, advance=read.append)
    manifest = original.manifest
    entries = [entry for split in manifest.splits.values() for entry in split.shards]
    assert found.problems == found.uncounted == []
    assert sum(read) == sum(entry.bytes for entry in entries)
    assert found.shards == len(entries)
    assert found.rows == sum(split.rows for split in manifest.splits.values())
    written = [one for of_split in original.splits.values() for one in of_split]
    assert (found.documents, found.tokens) == (len(written), sum(len(one.ids) for one in written))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10_000),
    counts=st.lists(st.integers(0, 6), min_size=1, max_size=4),
    words=st.sampled_from([2, 10, 60]),
    seq_len=st.integers(1, 40),
    rows_per_chunk=st.integers(2, 9),
    shard_bytes=st.sampled_from([1 << 15, 1 << 20]),
    dtype=st.sampled_from([np.uint16, np.uint32]),
)
def test_whatever_is_packed_is_sound(
    tmp_path_factory, small_tokenizer: Path, seed, counts, words, seq_len, rows_per_chunk, shard_bytes, dtype
) -> None:
    parts = [documents(count, seed + number, words=words) for number, count in enumerate(counts)]
    made = make_data_set(
        tmp_path_factory.mktemp("packed") / "shards",
        small_tokenizer,
        {"train": parts},
        seq_len=seq_len,
        rows_per_chunk=rows_per_chunk,
        shard_bytes=shard_bytes,
        dtype=dtype,
    )
    found = verify(made.folder, workers=1)
    assert found.problems == []
    assert found.documents == sum(counts)


def test_a_folder_without_manifest(data_set: DataSet) -> None:
    (data_set.folder / MANIFEST_NAME).unlink()
    with pytest.raises(UserError, match="manifest.json is missing"):
        verify(data_set.folder)


def test_a_shard_cut_at_a_record_boundary(data_set: DataSet) -> None:
    path = data_set.folder / SHARD
    chunk, _ = offsets(data_set, 2)
    path.write_bytes(path.read_bytes()[: chunk - 512])
    told = problems(data_set)
    assert len(told) == 3
    assert f"{SHARD}: cut: the tar has no end mark at byte {chunk - 512}" in told
    assert any(re.fullmatch(rf"{SHARD}: {chunk - 512} bytes, the manifest says \d+", line) for line in told)
    assert any(re.fullmatch(rf"{INDEX}: \d+ samples, the tar has 2", line) for line in told)
    # Also where the manifest was written for the cut shard, the totals and the index tell.
    data_set.believe()
    assert f"{SHARD}: cut: the tar has no end mark at byte {chunk - 512}" in problems(data_set)


def test_a_shard_cut_at_a_record_boundary_with_a_new_end_mark_and_index(data_set: DataSet) -> None:
    path, index = data_set.folder / SHARD, data_set.folder / INDEX
    chunk, _ = offsets(data_set, 2)
    path.write_bytes(path.read_bytes()[: chunk - 512] + bytes(1024))
    lines = index.read_text().splitlines()
    index.write_text("\n".join(["v1.2 2", *lines[1:3]]) + "\n")
    data_set.believe()
    told = problems(data_set)
    assert any(line.startswith(f"{SHARD}: 2 chunks, the manifest says") for line in told)
    assert any(line.startswith(f"{SHARD}: 16 rows, the manifest says") for line in told)
    assert any(re.match(r"manifest\.json: train has \d+ documents of 'A', the manifest says", line) for line in told)


@pytest.mark.parametrize("place", ["tokens", "npy header", "meta", "tar header", "padding of the tar", "end mark"])
def test_one_flipped_byte(data_set: DataSet, place: str) -> None:
    path = data_set.folder / SHARD
    tokens, meta = offsets(data_set, 1)
    offset = {
        "tokens": tokens + 128 + 20,
        "npy header": tokens + 12,
        "meta": meta + 3,
        "tar header": tokens - 512 + 3,
        "padding of the tar": meta - 512 - 1,
        "end mark": path.stat().st_size - 1,
    }[place]
    flip(path, offset)
    told = problems(data_set)
    assert f"{SHARD}: its sha256 is not the manifest's" in told
    assert all(line.startswith((SHARD, INDEX)) for line in told)
    said = {
        "npy header": "chunk 1 (train-00000-000001-000001): ",
        "meta": "chunk 1 (train-00000-000001-000001): ",
        "tar header": f"no tar header at byte {tokens - 512}",
        "end mark": "no end mark",
    }
    if place in said:
        assert any(line.startswith(SHARD) and said[place] in line for line in told), told


def test_any_changed_byte_is_told(data_set: DataSet) -> None:
    """Wherever a byte changes, in shard or index, that file is named; and nothing but findings comes of it."""
    chance = random.Random(5)
    manifest = data_set.manifest
    entry = manifest.train.shards[1]
    expected = Expected(
        row_tokens=17,
        dtype=np.dtype(np.uint16),
        vocab_size=manifest.tokenizer.vocab_size,
        end_of_document_id=manifest.tokenizer.end_of_document_id,
        padding_tokens=0,
    )

    def told(entry: ShardEntry) -> list[str]:
        return verify_shard(data_set.folder / SHARD, entry, expected, lambda _: None, threading.Event()).problems

    assert told(entry) == []
    heads = [
        offset for chunk in range(entry.chunks) for offset in range(*np.add(offsets(data_set, chunk)[0], (0, 128)))
    ]
    metas = [offset for chunk in range(entry.chunks) for offset in range(*np.add(offsets(data_set, chunk)[1], (0, 60)))]
    for name, chosen in ((SHARD, [heads, metas]), (INDEX, [])):
        path = data_set.folder / name
        content = path.read_bytes()
        for places in (range(len(content)), *chosen):
            for place in chance.choices(places, k=80):
                changed = bytearray(content)
                changed[place] = (changed[place] + chance.randrange(1, 256)) % 256
                path.write_bytes(changed)
                assert any(line.startswith(f"{name}: ") for line in told(entry)), place
                # Without the hashes' help it may go unseen (another token), but never ends in anything but findings.
                told(entry_now(data_set.folder, entry))
        path.write_bytes(content)


@pytest.mark.parametrize("name", [SHARD, INDEX])
def test_a_missing_file(data_set: DataSet, name: str) -> None:
    (data_set.folder / name).unlink()
    assert one_problem(data_set) == f"{name}: cannot be read: No such file or directory"


def test_an_empty_shard(data_set: DataSet) -> None:
    (data_set.folder / SHARD).write_bytes(b"")
    assert f"{SHARD}: cut: the tar has no end mark at byte 0" in problems(data_set)


@pytest.mark.parametrize("believed", [False, True])
def test_an_index_entry_off_by_one(data_set: DataSet, believed: bool) -> None:
    path = data_set.folder / INDEX
    offset, _ = offsets(data_set, 1)
    path.write_text(path.read_text().replace(f" {offset} ", f" {offset + 1} "))
    if believed:
        data_set.believe()
    told = problems(data_set)
    name = "train-00000-000001-000001.tokens.npy"
    size = CHUNK_TOKENS * 2 + 128
    assert told[-1] == (
        f"{INDEX}: chunk 1 (train-00000-000001-000001): it says {name} at {offset + 1} of {size} bytes, "
        f"the tar has {name} at {offset} of {size} bytes"
    )
    assert told[:-1] == ([] if believed else [f"{INDEX}: its sha256 is not the manifest's"])


@pytest.mark.parametrize(
    "content", [b"", b"v1.1 1\n", b"v1.2 7\n", b"\xff\xfe", b"v1.2 1\ntokens.npy 5\n", b"v1.2 1\ntokens.npy x 5 n\n"]
)
def test_a_file_that_is_no_index(data_set: DataSet, content: bytes) -> None:
    (data_set.folder / INDEX).write_bytes(content)
    data_set.believe()
    assert one_problem(data_set).startswith(f"{INDEX}: not a v1.2 index: ")


@pytest.mark.parametrize("name", ["train-000099.tar", "train-000099.idx", "train-000001.tar.partial", "other.tar"])
def test_a_file_that_the_manifest_does_not_name(data_set: DataSet, name: str) -> None:
    shutil.copy(data_set.folder / SHARD, data_set.folder / name)
    assert one_problem(data_set) == f"{name}: not in the manifest"


def test_the_same_shard_twice(data_set: DataSet) -> None:
    first, second = data_set.manifest.train.shards[:2]
    for suffix in (".tar", ".idx"):
        source = (data_set.folder / first.name).with_suffix(suffix)
        shutil.copy(source, (data_set.folder / second.name).with_suffix(suffix))
    data_set.believe()
    told = problems(data_set)
    assert f"{SHARD}: {first.chunks} of its chunks have sample keys that {first.name} has too" in told


@pytest.mark.parametrize(
    ("field", "told"),
    [("documents", "documents"), ("tokens", "tokens"), ("text_bytes", "bytes of text")],
)
def test_a_wrong_count_of_a_source(data_set: DataSet, field: str, told: str) -> None:
    sources = data_set.manifest.train.sources
    right = getattr(sources["A"], field)
    data_set.change_split("train", sources={**sources, "A": sources["A"].model_copy(update={field: right + 1})})
    found = problems(data_set)
    assert f"manifest.json: train has {right} {told} of 'A', the manifest says {right + 1}" in found
    # Tokens are bound to the rows besides.
    assert len(found) == (2 if field == "tokens" else 1)


def test_a_source_that_the_manifest_forgot(data_set: DataSet) -> None:
    sources = data_set.manifest.train.sources
    data_set.change_split("train", sources={"A": sources["A"]})
    assert any("documents of 'Wikipedia (en)', the manifest says 0" in line for line in problems(data_set))


@pytest.mark.parametrize("field", ["rows", "padding_tokens"])
def test_a_wrong_count_of_a_split(data_set: DataSet, field: str) -> None:
    right = getattr(data_set.manifest.train, field)
    data_set.change_split("train", **{field: right + 1})
    told = problems(data_set)
    assert any(line.startswith("manifest.json: train has") for line in told)
    if field == "padding_tokens":
        last = data_set.manifest.train.shards[-1].name
        wanted = rf"{last}: chunk \d+: {right} tokens of padding, it should have {right + 1}"
        assert any(re.fullmatch(wanted, line) for line in told)


@pytest.mark.parametrize("field", ["rows", "chunks", "bytes"])
def test_a_wrong_count_of_a_shard(data_set: DataSet, field: str) -> None:
    shards = data_set.manifest.train.shards
    right = getattr(shards[1], field)
    changed = shards[1].model_copy(update={field: right + 1})
    data_set.change_split("train", shards=[shards[0], changed, *shards[2:]])
    assert f"{SHARD}: {right} {field}, the manifest says {right + 1}" in problems(data_set)


@pytest.mark.parametrize("name", ["../train-000001.tar", "train-000077.tar"])
def test_a_shard_of_another_name(data_set: DataSet, name: str) -> None:
    shards = data_set.manifest.train.shards
    data_set.change_split("train", shards=[shards[0], shards[1].model_copy(update={"name": name}), *shards[2:]])
    assert f"manifest.json: shard 1 of train is called {name}" in problems(data_set)


def test_wrong_counts_of_refused_records(data_set: DataSet) -> None:
    data_set.change(rejected={"empty_document": 2, "not_utf8": 2})
    assert one_problem(data_set) == "rejected.jsonl: 1 records refused as not_utf8, the manifest says 2"
    (data_set.folder / "rejected.jsonl").write_text('{"reason": "not_utf8"}\n{"rea')
    assert one_problem(data_set) == "rejected.jsonl: line 2 is no refused record"
    (data_set.folder / "rejected.jsonl").unlink()
    assert len(problems(data_set)) == 2


def test_a_token_beyond_the_vocabulary(data_set: DataSet) -> None:
    tokens, _ = offsets(data_set, 1)
    put(data_set.folder / SHARD, tokens + 128 + 2 * (2 * 17 + 5), np.uint16(400).tobytes())
    data_set.believe()
    assert one_problem(data_set) == (
        f"{SHARD}: chunk 1: token 400 at row 2, column 5 is not below the vocabulary of 400"
    )


def test_another_tokenizer(data_set: DataSet) -> None:
    path = data_set.folder / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text().replace('"ignore_merges"', '"ignore_merges" '))
    assert one_problem(data_set).startswith("tokenizer/tokenizer.json: its sha256 is not the manifest's")
    path.unlink()
    assert one_problem(data_set) == "tokenizer/tokenizer.json: cannot be read: No such file or directory"


@pytest.mark.parametrize("content", ['{"eos_token": "<|endof', "", "[]", "[" * 100_000, b"\xff"])
def test_a_damaged_tokenizer_config(data_set: DataSet, content: str | bytes) -> None:
    path = data_set.folder / "tokenizer" / "tokenizer_config.json"
    path.write_text('{"eos_token": "<|endoftext|>"}')
    assert problems(data_set) == []
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    assert one_problem(data_set).startswith("tokenizer/tokenizer_config.json: is no JSON")


def test_another_vocabulary_in_the_manifest(data_set: DataSet) -> None:
    data_set.change(tokenizer=data_set.manifest.tokenizer.model_copy(update={"vocab_size": 401}))
    assert one_problem(data_set) == "tokenizer/tokenizer.json: its vocabulary is 400, the manifest says 401"


def test_a_document_without_its_end(data_set: DataSet) -> None:
    with StoredShard(data_set.folder, data_set.manifest.train.shards[1], 17) as shard:
        end = int(shard.pieces(1).end[0])
    tokens, _ = offsets(data_set, 1)
    put(data_set.folder / SHARD, tokens + 128 + 2 * (end - 1), np.uint16(7).tobytes())
    data_set.believe()
    found = verify(data_set.folder)
    assert len(found.problems) == 1
    assert f"that ends at token {end - 1} has no end-of-document mark there" in found.problems[0]
    assert found.uncounted == ["train"]


def test_two_documents_made_one(data_set: DataSet) -> None:
    """The tokens are as they were: the mark of the first stands in the middle of what the meta calls one document."""
    with StoredShard(data_set.folder, data_set.manifest.train.shards[1], 17) as shard:
        chunk = max(range(shard.chunks), key=lambda chunk: len(shard.pieces(chunk).start))
        pieces = shard.pieces(chunk)
    assert len(pieces.start) > 2

    def without(values: np.ndarray, place: int) -> list[int]:
        return [*values[:place].tolist(), *values[place + 1 :].tolist()]

    fields = {"start": without(pieces.start, 1), "end": without(pieces.end, 0)}
    change_meta(data_set, chunk, **fields, source=without(pieces.source, 1), bytes=without(pieces.bytes, 1))
    place = pieces.end[0] - 1
    assert (
        f"{SHARD}: chunk {chunk}: an end-of-document mark at token {place}, where its meta ends no document"
        in problems(data_set)
    )


def test_a_document_that_never_ends(data_set: DataSet) -> None:
    """The last token of a split without padding is no end mark: its document should go on, and does not."""
    with StoredShard(data_set.folder, data_set.manifest.train.shards[1], 17) as shard:
        closed = [chunk for chunk in range(shard.chunks) if shard.last_token(chunk) != 0]
        pieces = shard.pieces(closed[0] + 1)
    assert pieces.bytes[0] == 0
    # The chunk after an open one says that its first document begins there.
    change_meta(data_set, closed[0] + 1, bytes=[1, *pieces.bytes[1:].tolist()])
    told = problems(data_set)
    assert any(
        re.fullmatch(r"manifest\.json: train holds 1 documents of '.*' that begin and never end", line) for line in told
    )


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"start": [0]}, "source, start, end and bytes are not equally long"),
        ({"padding_tokens": 1}, "pieces reach from token 0 to 136 instead of 0 to 135"),
        ({"sources": ["A"], "padding_tokens": -1}, "padding_tokens is -1"),
        ({"sources": []}, "sources is no list of names"),
        ({"sources": ["A", "A"]}, "sources names one twice"),
        ({"source": [9], "start": [0], "end": [136], "bytes": [0]}, "source points outside"),
        ({"source": [0], "start": [0], "end": [60], "bytes": [0]}, "pieces reach from token 0 to 60"),
        ({"source": [0], "start": [0], "end": ["136"], "bytes": [0]}, "end is no list of whole numbers"),
        ({"source": [0], "start": [0], "end": [136], "bytes": [True]}, "bytes is no list of whole numbers"),
        ({"source": [0], "start": [0], "end": [136], "bytes": [-1]}, "bytes are below 0"),
        ({"source": [0], "start": [0], "end": [136], "bytes": [2**70]}, "bytes holds a number beyond 64 bits"),
        ({"source": [0, 0], "start": [0, 5], "end": [4, 136], "bytes": [0, 1]}, "piece 1 begins at token 5"),
        ({"source": [0, 0], "start": [0, 0], "end": [0, 136], "bytes": [0, 1]}, "piece 0 holds no token"),
    ],
)
def test_pieces_that_do_not_lie_end_to_end(data_set: DataSet, fields: dict, told: str) -> None:
    with StoredShard(data_set.folder, data_set.manifest.train.shards[1], 17) as shard:
        chunk = max(range(shard.chunks), key=lambda chunk: len(shard.pieces(chunk).start))
    change_meta(data_set, chunk, **fields)
    assert told in one_problem(data_set)


def test_padding_in_the_middle_of_a_split(data_set: DataSet) -> None:
    with StoredShard(data_set.folder, data_set.manifest.train.shards[1], 17) as shard:
        pieces = shard.pieces(0)
    change_meta(data_set, 0, end=[*pieces.end[:-1].tolist(), CHUNK_TOKENS - 1], padding_tokens=1)
    told = problems(data_set)
    assert f"{SHARD}: chunk 0: 1 tokens of padding, it should have 0" in told


def test_rows_of_another_length_and_type(data_set: DataSet) -> None:
    data_set.change(seq_len=33)
    assert any("uint16 [8, 17], the manifest says uint16 [rows, 34]" in line for line in problems(data_set))
    data_set.change(seq_len=16, token_dtype="uint32")
    assert any("uint16 [8, 17], the manifest says uint32 [rows, 17]" in line for line in problems(data_set))


def test_every_problem_is_listed(data_set: DataSet) -> None:
    flip(data_set.folder / "train-000000.tar", 700)
    (data_set.folder / INDEX).unlink()
    (data_set.folder / "stray.tar").write_bytes(b"")
    told = " ".join(problems(data_set))
    for name in ("train-000000.tar", INDEX, "stray.tar"):
        assert name in told


def test_no_thread_reads_on_after_an_error(data_set: DataSet) -> None:
    def refuse(_: int) -> None:
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        verify(data_set.folder, workers=2, advance=refuse)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("verify")]
