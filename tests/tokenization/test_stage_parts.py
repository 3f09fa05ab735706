"""What the stage makes of many parts, weights, cleaning, other kinds of sources, and inputs that are damaged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pipeline.data.manifest import MANIFEST_NAME, Manifest, read_manifest
from pipeline.errors import UserError, WorldError
from tests.tokenization.generated_records import MakeRun, generated_texts, record_lines
from tests.tokenization.test_stage import read_rows, shard_hashes
from tokenization.encoding.fast_encoding import FastEncoder
from tokenization.encoding.tokenizer import DocumentTokenizer
from tokenization.inspection.verify import verify
from tokenization.stage import Share, finish, tokenize, tokenize_share
from tokenization.work import FinishedMeanwhileError, Work


def tokens_by_count(shards: Path, manifest: Manifest) -> Counter[int]:
    """How often each token stands in the data set, padding aside."""
    counted: Counter[int] = Counter()
    for key, split in manifest.splits.items():
        rows = read_rows(shards, manifest, key).reshape(-1)
        assert len(rows) == split.rows * (manifest.seq_len + 1) == split.tokens + split.padding_tokens
        counted.update(rows.tolist())
        counted[manifest.tokenizer.end_of_document_id] -= split.padding_tokens
    return counted


def write_records(path: Path, texts: list[str], names: tuple[str, ...] = ("A",)) -> str:
    path.write_bytes(record_lines(texts, names))
    return str(path)


def jsonl(path: str, **fields: Any) -> dict[str, Any]:
    return {"kind": "jsonl", "train": [path], "validation_share": 0.1, **fields}


@pytest.mark.parametrize("part_bytes", [700, 5_000, 40_000])
def test_many_parts_hold_what_one_holds(make_run: MakeRun, tmp_path: Path, part_bytes: int) -> None:
    texts = generated_texts(200)
    source = jsonl(write_records(tmp_path / "x.jsonl", texts, ("A", "B")))
    one = tokenize(*make_run([source], name="one"), "test")
    recipe, folder = make_run([source], name="many", part_bytes=part_bytes)
    many = tokenize(recipe, folder, "test")
    assert not verify(folder.shards).problems
    one_folder = make_run([source], name="one")[1]
    assert tokens_by_count(folder.shards, many) == tokens_by_count(one_folder.shards, one)
    for key, split in one.splits.items():
        assert many.splits[key].sources == split.sources
        assert many.splits[key].padding_tokens == split.padding_tokens
    assert many.inputs == one.inputs
    assert sum(shard.rows for shard in many.train.shards) == many.train.rows
    assert not (folder.shards / "parts").exists()


def test_finished_parts_are_kept_until_their_input_changes(make_run: MakeRun, tmp_path: Path) -> None:
    texts = generated_texts(120)
    first, second = (write_records(tmp_path / f"{n}.jsonl", texts[n * 60 : n * 60 + 60]) for n in range(2))
    source = {**jsonl(first), "train": [first, second]}
    recipe, folder = make_run([source], part_bytes=4_000)
    tokenize_share(recipe, folder, Share(1, 1), 1, scan=False)
    parts = folder.shards / "parts"
    made = {path: path.stat().st_mtime_ns for path in parts.glob("*/part.json")}
    assert len(made) > 8
    with open(second, "ab") as file:
        file.write(record_lines(["one more document"]))
    with pytest.raises(UserError, match=r"parts are not finished: .*--part i/n"):
        finish(recipe, folder, "test")
    tokenize_share(recipe, folder, Share(1, 1), 1, scan=False)
    kept = [path for path, when in made.items() if path.exists() and path.stat().st_mtime_ns == when]
    assert 0 < len(kept) < len(made)
    manifest = finish(recipe, folder, "test")
    assert sum(split.documents for split in manifest.splits.values()) == 121
    assert not verify(folder.shards).problems


def test_a_join_that_was_cut_short_goes_on(make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = jsonl(write_records(tmp_path / "x.jsonl", generated_texts(150)))
    whole = tokenize(*make_run([source], name="whole", part_bytes=3_000), "test")
    recipe, folder = make_run([source], name="cut", part_bytes=3_000)
    tokenize_share(recipe, folder, Share(1, 1), 1, scan=False)
    real, left, broken = os.replace, 0, 0

    def failing(source_path, target_path) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError(28, "No space left on device", str(target_path))
        real(source_path, target_path)

    while not (folder.shards / MANIFEST_NAME).exists():
        left = 5 + broken
        monkeypatch.setattr(os, "replace", failing)
        with suppress(WorldError):  # any other error is one
            finish(recipe, folder, "test")
        broken += not (folder.shards / MANIFEST_NAME).exists()
        monkeypatch.undo()
    assert broken > 5
    assert read_manifest(folder.shards).splits == whole.splits
    assert shard_hashes(folder.shards) == shard_hashes(make_run([source], name="whole")[1].shards)


def test_a_part_that_was_damaged_since_is_named(make_run: MakeRun, tmp_path: Path) -> None:
    source = jsonl(write_records(tmp_path / "x.jsonl", generated_texts(100)))
    recipe, folder = make_run([source], part_bytes=3_000)
    tokenize_share(recipe, folder, Share(1, 1), 1, scan=False)
    tail = sorted((folder.shards / "parts").glob("*/train.tail.npy"))[1]
    content = bytearray(tail.read_bytes())
    content[-1] ^= 1
    tail.write_bytes(content)
    with pytest.raises(WorldError, match=r"train\.tail\.npy is not what was written.*remove .*/parts/00001 to make"):
        finish(recipe, folder, "test")


def test_weights_are_exact_and_told(make_run: MakeRun, tmp_path: Path) -> None:
    one = jsonl(write_records(tmp_path / "one.jsonl", generated_texts(90), ("one",)), name="one", weight=2.5)
    two = jsonl(write_records(tmp_path / "two.jsonl", generated_texts(80, seed=1), ("two",)), name="two")
    half = {"weight": 0.3, "weight_by": "tokens"}
    three = jsonl(
        write_records(tmp_path / "three.jsonl", generated_texts(99, seed=2), ("three",)), name="three", **half
    )
    recipe, folder = make_run([one, two, three], part_bytes=2_000)
    manifest = tokenize(recipe, folder, "test")
    assert not verify(folder.shards).problems
    up, down = manifest.weights
    parts = 20
    assert (up.name, down.name) == ("one", "three")
    assert abs(up.documents_written - 2.5 * up.documents_read) <= parts
    assert up.documents_read + manifest.validation["one"].documents == 90
    assert manifest.train.sources["one"].documents == up.documents_written
    assert abs(down.tokens_written - 0.3 * down.tokens_read) <= parts * 60
    assert 0.2 < down.tokens_written / down.tokens_read < 0.4
    assert manifest.train.sources["three"].tokens == down.tokens_written
    plain = tokenize(*make_run([{**one, "weight": 1}, two, {**three, "weight": 1}], name="plain"), "test")
    assert plain.weights == []
    assert plain.train.sources["two"] == manifest.train.sources["two"]


def test_cleaning_is_counted_by_reason(make_run: MakeRun, tmp_path: Path) -> None:
    texts = generated_texts(60)
    evaluated = " ".join(texts[7].split()[5:20])
    (tmp_path / "evaluation.jsonl").write_text(json.dumps({"question": evaluated.upper()}) + "\n")
    path = write_records(tmp_path / "x.jsonl", [*texts, texts[3], "short", texts[4], "words " * 400, texts[3]])
    clean = {
        "remove_duplicates": True,
        "min_bytes": 10,
        "max_bytes": 1000,
        "contamination_files": [str(tmp_path / "evaluation.jsonl")],
        "contamination_words": 10,
    }
    recipe, folder = make_run([jsonl(path, validation_share=0.02)], clean=clean, part_bytes=3_000)
    manifest = tokenize(recipe, folder, "test")
    assert not verify(folder.shards).problems
    assert manifest.rejected == {"contaminated": 1, "duplicate": 3, "too_short": 1}
    assert sum(split.documents for split in manifest.splits.values()) == 59 + 3  # the long one in three pieces
    listed = [json.loads(line) for line in (folder.shards / "rejected.jsonl").read_text().splitlines()]
    assert {entry["line"]: entry["reason"] for entry in listed} == {
        8: "contaminated",
        61: "duplicate",
        62: "too_short",
        63: "duplicate",
        65: "duplicate",
    }


def test_a_duplicate_of_a_given_validation_set_is_not_trained_on(make_run: MakeRun, tmp_path: Path) -> None:
    texts = generated_texts(30)
    train = write_records(tmp_path / "t.jsonl", texts)
    validation = write_records(tmp_path / "v.jsonl", texts[10:14])
    source = {"kind": "jsonl", "train": [train], "validation": [validation]}
    recipe, folder = make_run([source], clean={"remove_duplicates": True})
    manifest = tokenize(recipe, folder, "test", workers=1)
    assert manifest.train.documents == 26
    assert manifest.validation["A"].documents == 4


def test_tokens_and_tables_give_the_same_rows_as_text(make_run: MakeRun, tmp_path: Path) -> None:
    texts = generated_texts(50)
    as_text = {"kind": "jsonl", "train": [write_records(tmp_path / "x.jsonl", texts)], "validation_share": 1e-9}
    spare = {"kind": "jsonl", "train": [write_records(tmp_path / "s.jsonl", generated_texts(9, 5))], "name": "spare"}
    spare["validation_share"] = 0.5
    recipe, folder = make_run([spare, {**as_text, "validation_share": 0.05}], name="text")
    expected = tokenize(recipe, folder, "test")
    tokenizer = DocumentTokenizer(folder.shards / "tokenizer", "", "<|endoftext|>")
    ids = np.concatenate([np.append(tokenizer.encode(text), tokenizer.entry.end_of_document_id) for text in texts])
    np.save(tmp_path / "tokens.npy", ids.astype(np.uint16))
    pq.write_table(pa.table({"content": texts, "other": list(range(50))}), tmp_path / "x.parquet", row_group_size=7)
    tokens = {"kind": "tokens", "name": "A", "train": [str(tmp_path / "tokens.npy")], "validation_share": 0.05}
    table = {"kind": "dataset", "path": "parquet", "name": "A", "files": [str(tmp_path / "x.parquet")]}
    table |= {"validation_share": 0.05, "text_field": "content"}
    for name, source in (("tokens", tokens), ("table", table)):
        recipe, folder = make_run([spare, source], name=name, part_bytes=3_000)
        manifest = tokenize(recipe, folder, "test")
        assert not verify(folder.shards).problems
        for field in ("documents", "tokens", "text_bytes"):
            total = sum(getattr(split, field) for split in manifest.splits.values())
            assert total == sum(getattr(split, field) for split in expected.splits.values()), (name, field)
        one, other = make_run([spare], name="text")[1].shards, folder.shards
        assert tokens_by_count(other, manifest) == tokens_by_count(one, expected)


def test_tokens_need_a_given_tokenizer(make_run: MakeRun, tmp_path: Path) -> None:
    np.save(tmp_path / "tokens.npy", np.ones(9, np.uint16))
    source = {"kind": "tokens", "name": "A", "train": [str(tmp_path / "tokens.npy")], "validation_share": 0.5}
    recipe, folder = make_run([source], tokenizer={"train_vocab_size": 300})
    with pytest.raises(UserError, match=r"sources\.0: kind: tokens: .*name one"):
        tokenize(recipe, folder, "test")


def test_an_empty_file_and_a_truncated_one(make_run: MakeRun, tmp_path: Path) -> None:
    write_records(tmp_path / "a.jsonl", generated_texts(40))
    (tmp_path / "b.jsonl").write_bytes(b"")
    source = jsonl(str(tmp_path / "*.jsonl*"))
    recipe, folder = make_run([source], part_bytes=2_000)
    manifest = tokenize(recipe, folder, "test")
    assert [(Path(entry.path).name, entry.bytes == 0) for entry in manifest.inputs] == [
        ("a.jsonl", False),
        ("b.jsonl", True),
    ]
    packed = zstandard.ZstdCompressor().compress(record_lines(generated_texts(300)))
    (tmp_path / "c.jsonl.zst").write_bytes(packed[: len(packed) // 2])
    recipe, folder = make_run([source], name="cut", part_bytes=2_000)
    with pytest.raises(WorldError, match=r"c\.jsonl\.zst is cut short"):
        tokenize(recipe, folder, "test", workers=2)
    (tmp_path / "c.jsonl.zst").write_bytes(packed)
    assert sum(split.documents for split in tokenize(recipe, folder, "test").splits.values()) == 340


def test_a_process_that_comes_late_touches_nothing(make_run: MakeRun, tmp_path: Path) -> None:
    source = jsonl(write_records(tmp_path / "x.jsonl", generated_texts(60)))
    recipe, folder = make_run([source], part_bytes=2_000)
    tokenize(recipe, folder, "test")
    before = shard_hashes(folder.shards)
    with pytest.raises(FinishedMeanwhileError), Work.open(recipe, folder.shards):
        raise AssertionError("there is nothing left to do")
    assert shard_hashes(folder.shards) == before
    tokenize(recipe, folder, "test")
    assert not (folder.shards / "parts").exists()


def test_other_settings_are_kept_out_while_work_is_being_done(make_run: MakeRun, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("tokenization.work.SECONDS_FOR_A_DYING_PROCESS", 0.3)
    source = jsonl(write_records(tmp_path / "x.jsonl", generated_texts(60)))
    recipe, folder = make_run([source], part_bytes=2_000)
    other, same_folder = make_run([source], part_bytes=2_000, seq_len=32)
    with Work.open(recipe, folder.shards), Work.open(recipe, folder.shards) as second:
        with pytest.raises(WorldError, match="with other inputs or settings is not over: wait for it"):
            tokenize(other, same_folder, "test")
        second.make(second.parts)
    assert tokenize(other, same_folder, "test").seq_len == 32


def test_a_part_depends_on_all_before_it_where_duplicates_are_removed(make_run: MakeRun, tmp_path: Path) -> None:
    texts = generated_texts(40)
    first, second = tmp_path / "0.jsonl", tmp_path / "1.jsonl"
    write_records(first, texts[:20])
    write_records(second, [*texts[20:], texts[5]])
    source = {**jsonl(str(first)), "train": [str(first), str(second)], "validation_share": 0.03}
    recipe, folder = make_run([source], part_bytes=1_500, clean={"remove_duplicates": True})
    for _ in range(2):
        tokenize_share(recipe, folder, Share(1, 1), 1, scan=True)
        tokenize_share(recipe, folder, Share(1, 1), 1, scan=False)
        write_records(first, [*texts[:5], *texts[6:20]])  # what was a duplicate is none any more
    manifest = tokenize(recipe, folder, "test")
    assert manifest.rejected == {}
    assert sum(split.documents for split in manifest.splits.values()) == 40


def test_a_changed_evaluation_file_is_noticed(make_run: MakeRun, tmp_path: Path) -> None:
    texts = generated_texts(30)
    evaluation = tmp_path / "evaluation.jsonl"
    clean = {"contamination_files": [str(evaluation)], "contamination_words": 8}
    recipe, folder = make_run([jsonl(write_records(tmp_path / "x.jsonl", texts), validation_share=0.05)], clean=clean)
    for place in (0, 9):
        evaluation.write_text(json.dumps({"q": " ".join(texts[place].split()[:12])}) + "\n")
        tokenize_share(recipe, folder, Share(1, 1), 1, scan=False)
    tokenize(recipe, folder, "test")
    listed = [json.loads(line)["line"] for line in (folder.shards / "rejected.jsonl").read_text().splitlines()]
    assert listed == [10]
    evaluation.unlink()
    other, other_folder = make_run([jsonl(str(tmp_path / "x.jsonl"))], name="other", clean=clean)
    with pytest.raises(UserError, match=r"clean\.contamination_files: .*evaluation\.jsonl: no such file"):
        tokenize(other, other_folder, "test")
    assert not other_folder.path.exists()


def test_a_weight_that_leaves_nothing_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    source = jsonl(write_records(tmp_path / "x.jsonl", generated_texts(8)), weight=0.01, validation_share=0.3)
    recipe, folder = make_run([source])
    with pytest.raises(UserError, match="no document is left for training: give more text, a larger weight"):
        tokenize(recipe, folder, "test")
    assert not (folder.shards / MANIFEST_NAME).exists()


def test_when_fast_encoding_differs_all_is_made_without_it(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = generated_texts(40)
    source = jsonl(write_records(tmp_path / "x.jsonl", texts, ("A",) * 30 + ("B",) * 10))
    expected = tokenize(*make_run([source], name="expected", part_bytes=1_500), "test")
    encode = FastEncoder.encode

    def wrong_in_one_source(self: FastEncoder, text: str) -> bytes | None:
        ids = encode(self, text)
        return ids[:-2] if ids and text == texts[30] else ids

    monkeypatch.setattr(FastEncoder, "encode", wrong_in_one_source)
    recipe, folder = make_run([source], part_bytes=1_500)
    capsys.readouterr()
    manifest = tokenize(recipe, folder, "test")
    told = capsys.readouterr().out
    assert "fast encoding gives other ids, starting again without it" in told
    assert "encoding with `tokenizers`, the slow way" in told
    assert manifest.splits == expected.splits


@pytest.mark.slow
def test_a_document_of_200_megabytes_is_taken_in_bounded_memory(make_run: MakeRun, tmp_path: Path) -> None:
    words = generated_texts(1, words=40_000)[0]
    with open(tmp_path / "x.jsonl", "wb") as file:
        file.write(record_lines(generated_texts(30)))
        file.write(b'{"text": "\xf0\x9f\x99\x82 ')
        for _ in range(200_000_000 // len(words)):
            file.write(words.encode() + b"\\n")
        file.write(b'"}\n')
    _, folder = make_run([jsonl(str(tmp_path / "x.jsonl"))], seq_len=512, rows_per_chunk=64)
    folder.write_recipe()
    # Not getrusage: its peak counts what the process was before exec, a copy of this one, too.
    code = (
        "import sys; from pipeline.cli import app; app(sys.argv[1:], standalone_mode=False);"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    command = [sys.executable, "-c", code, "tokenize", str(folder.recipe_file), "--runs", str(folder.root)]
    done = subprocess.run([*command, "--workers", "1"], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 1_000_000  # kB
    assert not verify(folder.shards).problems
