"""The whole stage: documents in, shards out, and nothing half-made that looks whole."""

from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer
from webdataset.compat import WebDataset

from pipeline.data.manifest import MANIFEST_NAME, Manifest, read_manifest
from pipeline.data.vocabulary import check_vocabulary
from pipeline.durable import sha256_file, sha256_json
from pipeline.errors import UserError, WorldError
from tests.tokenization.generated_records import END, MakeRun, generated_texts, record_lines
from tokenization.stage import tokenize

WIKIPEDIA_KEY = "validation-Wikipedia__en_-"


def read_rows(shards: Path, manifest: Manifest, key: str) -> np.ndarray:
    """All rows of a split in order, through stock WebDataset; checks that every sample of the manifest comes."""
    split = manifest.splits[key]
    if not split.shards:
        return np.zeros((0, manifest.seq_len + 1), dtype=np.int64)
    paths = [str(shards / shard.name) for shard in split.shards]
    dataset: Any = WebDataset(paths, shardshuffle=False).decode()
    samples = list(dataset)
    assert len(samples) == sum(shard.chunks for shard in split.shards)
    assert len({sample["__key__"] for sample in samples}) == len(samples)
    rows = np.concatenate([sample["tokens.npy"] for sample in samples])
    assert rows.dtype == np.dtype(manifest.token_dtype)
    text_bytes = sum(sum(sample["meta.json"]["bytes"]) for sample in samples)
    assert text_bytes == split.text_bytes
    assert sum(sample["meta.json"]["padding_tokens"] for sample in samples) == split.padding_tokens
    return rows


def decode_documents(shards: Path, manifest: Manifest, key: str) -> list[str]:
    """The documents of a split, from nothing but its rows and the tokenizer beside them."""
    tokens = read_rows(shards, manifest, key).reshape(-1)
    split = manifest.splits[key]
    assert len(tokens) - split.padding_tokens == split.tokens
    tokens = tokens[: split.tokens]
    tokenizer = AutoTokenizer.from_pretrained(str(shards / "tokenizer"), local_files_only=True)
    ends = np.flatnonzero(tokens == manifest.tokenizer.end_of_document_id)
    assert ends[-1] == len(tokens) - 1
    pieces = np.split(tokens, ends + 1)[:-1]
    return [tokenizer.decode(piece[:-1].tolist(), skip_special_tokens=False) for piece in pieces]


def normalised(texts: list[str]) -> list[str]:
    return [unicodedata.normalize("NFC", text) for text in texts]


def shard_hashes(shards: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in sorted(shards.iterdir()) if path.suffix in (".tar", ".idx")}


def test_every_document_comes_back_in_order(
    make_run: MakeRun, pile_like: dict[str, Any], pile_like_texts: dict[str, list[str]]
) -> None:
    recipe, folder = make_run([pile_like], shard_bytes=1 << 16, rows_per_chunk=32)
    manifest = tokenize(recipe, folder, "adaponder tokenize")
    assert manifest == read_manifest(folder.shards)
    wikipedia = next(key for key in manifest.splits if key.startswith(WIKIPEDIA_KEY))
    assert list(manifest.splits) == ["train", "validation-A", wikipedia]
    assert {source: split.documents for source, split in manifest.validation.items()} == {"A": 10, "Wikipedia (en)": 10}
    for key, name in (("train", "train"), ("validation-A", "A"), (wikipedia, "Wikipedia (en)")):
        texts = pile_like_texts[name]
        assert decode_documents(folder.shards, manifest, key) == normalised(texts)
        split = manifest.splits[key]
        assert split.documents == len(texts)
        assert split.text_bytes == sum(len(text.encode()) for text in texts)
        assert split.tokens == split.rows * (manifest.seq_len + 1) - split.padding_tokens
    assert manifest.train.sources.keys() == {"A", "Wikipedia (en)"}
    assert manifest.rejected == {}
    assert {Path(entry.path).name: (entry.bytes, entry.sha256) for entry in manifest.inputs} == {
        path.name: (path.stat().st_size, sha256_file(path))
        for path in (*Path(pile_like["train"][0]).parent.iterdir(), Path(pile_like["validation"][0]))
    }
    assert manifest.tokenizer.sha256 == sha256_file(folder.shards / "tokenizer" / "tokenizer.json")
    assert manifest.settings_sha256 == sha256_json(manifest.settings) == recipe.tokenize_hash()
    assert manifest.command == "adaponder tokenize"


def test_text_files_with_a_trained_tokenizer(make_run: MakeRun, tmp_path: Path) -> None:
    texts = generated_texts(200)
    for number, text in enumerate(texts):
        path = tmp_path / "texts" / f"{number % 7}" / f"{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "texts" / "empty.txt").write_text("")
    source = {"kind": "text", "name": "notes", "path": str(tmp_path / "texts"), "validation_share": 0.1}
    recipe, folder = make_run([source], tokenizer={"train_vocab_size": 320, "sample_bytes": 20_000})
    manifest = tokenize(recipe, folder, "test")
    assert manifest.tokenizer.vocab_size == 320
    train = decode_documents(folder.shards, manifest, "train")
    validation = decode_documents(folder.shards, manifest, "validation-notes")
    assert sorted(train + validation) == sorted(texts)
    assert 5 <= len(validation) <= 40
    assert manifest.rejected == {"empty_document": 1}
    assert [Path(entry.path).name for entry in manifest.inputs] == ["texts"]


def test_two_runs_write_the_same_bytes_and_another_seed_does_not(make_run: MakeRun, pile_like: dict[str, Any]) -> None:
    share = {"kind": "jsonl", "train": pile_like["train"], "validation_share": 0.3}
    trained = {"train_vocab_size": 300, "sample_bytes": 10_000}
    hashes = []
    for name, seed in (("first", 1), ("second", 1), ("third", 2)):
        recipe, folder = make_run([share], name=name, seed=seed, tokenizer=trained)
        tokenize(recipe, folder, "test")
        hashes.append(shard_hashes(folder.shards))
    assert len(hashes[0]) >= 6
    assert hashes[0] == hashes[1]
    assert hashes[0] != hashes[2]


def test_a_finished_stage_does_nothing(make_run: MakeRun, pile_like: dict[str, Any], capsys) -> None:
    recipe, folder = make_run([pile_like])
    manifest = tokenize(recipe, folder, "first")
    before = {path: path.stat().st_mtime_ns for path in folder.shards.rglob("*")}
    shutil.rmtree(Path(pile_like["train"][0]).parent)  # not even the inputs are needed any more
    capsys.readouterr()
    assert tokenize(recipe, folder, "second") == manifest
    assert "nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.shards.rglob("*")} == before


def test_other_settings_are_refused_by_name(make_run: MakeRun, pile_like: dict[str, Any]) -> None:
    recipe, folder = make_run([pile_like])
    tokenize(recipe, folder, "test")
    for changed, told in (
        ({"seq_len": 8}, r"tokenize\.seq_len was 16, is 8"),
        ({"seed": 5}, "seed was 0, is 5"),
        ({"sources": [{**pile_like, "name": "other"}]}, r"tokenize\.sources\.0\.name was 'text', is 'other'"),
    ):
        other, same_folder = make_run(**{"sources": [pile_like], **changed})
        with pytest.raises(UserError, match=f"was made with other settings.*{told}"):
            tokenize(other, same_folder, "test")


def test_a_finished_stage_with_a_damaged_shard_is_not_taken_for_whole(
    make_run: MakeRun, pile_like: dict[str, Any]
) -> None:
    recipe, folder = make_run([pile_like])
    manifest = tokenize(recipe, folder, "test")
    shard = folder.shards / manifest.train.shards[0].name
    content = shard.read_bytes()
    shard.write_bytes(content[:-512])
    with pytest.raises(WorldError, match=rf"train-000000\.tar has {len(content) - 512} bytes"):
        tokenize(recipe, folder, "test")
    shard.write_bytes(content)
    shard.with_suffix(".idx").unlink()
    with pytest.raises(WorldError, match=r"train-000000\.idx is missing"):
        tokenize(recipe, folder, "test")


def test_leftovers_without_a_manifest_are_replaced_and_other_files_stay(
    make_run: MakeRun, pile_like: dict[str, Any]
) -> None:
    recipe, folder = make_run([pile_like])
    manifest = tokenize(recipe, folder, "test")
    expected = shard_hashes(folder.shards)
    (folder.shards / MANIFEST_NAME).unlink()
    ours = ("train-000000.tar", "train-000777.tar", "train-000001.tar.partial", "validation-Gone-000000.idx")
    for name in (*ours, "notes.txt"):
        (folder.shards / name).write_text("left")
    assert tokenize(recipe, folder, "test") == manifest
    assert shard_hashes(folder.shards) == expected
    assert (folder.shards / "notes.txt").read_text() == "left"
    assert not list(folder.shards.glob("*.partial"))


def test_finished_shards_with_another_tokenizer_are_not_taken_for_whole(
    make_run: MakeRun, pile_like: dict[str, Any]
) -> None:
    recipe, folder = make_run([pile_like])
    manifest = tokenize(recipe, folder, "test")
    other, other_folder = make_run([pile_like], name="other", shards=str(folder.shards))
    file = folder.shards / "tokenizer" / "tokenizer.json"
    whole = file.read_bytes()
    content = json.loads(whole)
    vocabulary = content["model"]["vocab"]
    one, two = list(vocabulary)[300:302]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    file.write_text(json.dumps(content))
    for used in ((recipe, folder), (other, other_folder)):
        with pytest.raises(WorldError, match=r"tokenizer\.json is not the tokenizer that made these shards"):
            tokenize(*used, "test")
    file.unlink()
    with pytest.raises(WorldError, match=r"tokenizer\.json is missing"):
        tokenize(recipe, folder, "test")
    file.write_bytes(whole)
    assert tokenize(recipe, folder, "test") == manifest


def test_a_file_that_two_sources_read_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.jsonl").write_bytes(record_lines(generated_texts(5)))
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "1.jsonl")
    one = {"kind": "jsonl", "name": "one", "train": [str(tmp_path / "[01].jsonl")], "validation_share": 0.2}
    two = {"kind": "jsonl", "name": "two", "train": [str(tmp_path / "link.jsonl")], "validation_share": 0.2}
    recipe, folder = make_run([one, two])
    with pytest.raises(UserError, match=r"/1\.jsonl: read by two sources, one and two: give each file to one"):
        tokenize(recipe, folder, "test")
    assert not folder.path.exists()
    apart = {**two, "train": [str(tmp_path / "2.jsonl")]}
    assert tokenize(*make_run([one, apart]), "test").train.documents > 0


def test_shards_made_before_are_used_and_have_to_fit(make_run: MakeRun, pile_like: dict[str, Any]) -> None:
    recipe, folder = make_run([pile_like])
    manifest = tokenize(recipe, folder, "test")
    other, other_folder = make_run([pile_like], name="other", shards=str(folder.shards), rows_per_chunk=99)
    assert tokenize(other, other_folder, "test") == manifest
    assert not other_folder.path.exists()
    longer, longer_folder = make_run([pile_like], name="longer", shards=str(folder.shards), seq_len=32)
    with pytest.raises(UserError, match="seq_len 16, the recipe's tokenize.seq_len is 32"):
        tokenize(longer, longer_folder, "test")
    nowhere, nowhere_folder = make_run([pile_like], name="nowhere", shards="not-there")
    with pytest.raises(UserError, match=r"not-there/manifest\.json is missing"):
        tokenize(nowhere, nowhere_folder, "test")


def test_refused_records_are_listed_and_counted(make_run: MakeRun, tmp_path: Path) -> None:
    good = generated_texts(40)
    bad = [b'{"text": "cut', b'{"text": ""}', b'{"txt": "a"}', b'{"text": 3}', b'{"text": "\xff"}', b'{"text": ""}']
    lines = record_lines(good).splitlines()
    for place, line in zip((1, 5, 9, 10, 20, 46), bad, strict=True):
        lines.insert(place - 1, line)
    path = tmp_path / "mixed.jsonl"
    path.write_bytes(b"\n".join(lines))
    recipe, folder = make_run([{"kind": "jsonl", "train": [str(path)], "validation_share": 0.2}])
    manifest = tokenize(recipe, folder, "test")
    assert manifest.rejected == {
        "empty_document": 2,
        "malformed_json": 1,
        "missing_text": 1,
        "not_utf8": 1,
        "text_not_a_string": 1,
    }
    listed = [json.loads(line) for line in (folder.shards / "rejected.jsonl").read_text().splitlines()]
    assert {entry["file"] for entry in listed} == {str(path)}
    assert {entry["line"]: entry["reason"] for entry in listed} == {
        1: "malformed_json",
        5: "empty_document",
        9: "missing_text",
        10: "text_not_a_string",
        20: "not_utf8",
        46: "empty_document",
    }
    kept = [text for key in manifest.splits for text in decode_documents(folder.shards, manifest, key)]
    assert sorted(kept) == sorted(good)


def test_a_truncated_input_stops_the_stage_and_is_named(make_run: MakeRun, pile_like: dict[str, Any]) -> None:
    recipe, folder = make_run([pile_like])
    damaged = Path(pile_like["train"][0]).parent / "01.jsonl.zst"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-3])
    with pytest.raises(WorldError, match=r"01\.jsonl\.zst is cut short"):
        tokenize(recipe, folder, "test")
    assert not (folder.shards / MANIFEST_NAME).exists()
    assert not list(folder.shards.glob("*.partial"))
    damaged.write_bytes(whole)
    assert tokenize(recipe, folder, "test").train.documents == 40


def test_inputs_are_checked_before_anything_is_written(make_run: MakeRun, pile_like: dict[str, Any]) -> None:
    recipe, folder = make_run([pile_like, {"kind": "text", "name": "t", "path": "/nowhere"}])
    with pytest.raises(UserError, match="/nowhere: no such folder"):
        tokenize(recipe, folder, "test")
    recipe, folder = make_run([pile_like], end_of_document="</s>")
    with pytest.raises(UserError, match="end_of_document"):
        tokenize(recipe, folder, "test")
    not_zstandard = Path(pile_like["train"][0]).parent / "02.jsonl.zst"
    not_zstandard.write_text('{"text": "plain"}\n')
    recipe, folder = make_run([pile_like])
    with pytest.raises(WorldError, match=r"02\.jsonl\.zst is not a zstandard file"):
        tokenize(recipe, folder, "test")
    assert not folder.path.exists()


def test_a_folder_that_cannot_be_written_is_named(make_run: MakeRun, pile_like: dict[str, Any]) -> None:
    recipe, folder = make_run([pile_like])
    folder.path.mkdir(parents=True)
    folder.shards.write_text("a file where the folder should be")
    with pytest.raises(WorldError, match="run/shards.*: Not a directory; the same command continues"):
        tokenize(recipe, folder, "test")


def test_an_empty_split_is_refused_with_what_to_change(make_run: MakeRun, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(record_lines(generated_texts(5)))
    empty = tmp_path / "empty.jsonl"
    empty.write_text("{}\n")
    for source, told in (
        ({"validation_share": 1e-9}, r"sources\.0\.validation_share: none of the 5 documents .* raise it"),
        ({"validation_share": 1.0}, "no document is left for training"),
        ({"validation": [str(empty)]}, r"sources\.0\.validation: its files hold no document .*rejected\.jsonl"),
    ):
        recipe, folder = make_run([{"kind": "jsonl", "train": [str(path)], **source}])
        with pytest.raises(UserError, match=told):
            tokenize(recipe, folder, "test")
        assert not (folder.shards / MANIFEST_NAME).exists()


def test_a_training_source_that_is_not_measured_is_told(make_run: MakeRun, tmp_path: Path, capsys) -> None:
    (tmp_path / "x.jsonl").write_bytes(record_lines(generated_texts(6), ("A", "B")))
    (tmp_path / "v.jsonl").write_bytes(record_lines(generated_texts(2)))
    source = {"kind": "jsonl", "train": [str(tmp_path / "x.jsonl")], "validation": [str(tmp_path / "v.jsonl")]}
    tokenize(*make_run([source]), "test")
    out = capsys.readouterr().out
    assert "source B has no validation documents" in out
    assert "source A has no" not in out


def test_a_source_field_that_is_none_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(record_lines([f"text {number}" for number in range(1000)], [f"url{n}" for n in range(1000)]))
    recipe, folder = make_run([{"kind": "jsonl", "train": [str(path)], "validation_share": 0.9}])
    with pytest.raises(UserError, match="more than 256 sources.*source_field"):
        tokenize(recipe, folder, "test")


def test_a_source_field_that_is_none_is_refused_for_training_too(make_run: MakeRun, tmp_path: Path) -> None:
    path, validation = tmp_path / "x.jsonl", tmp_path / "v.jsonl"
    path.write_bytes(record_lines(["text"] * 5000, [f"url{n}" for n in range(5000)]))
    validation.write_bytes(record_lines(["text"]))
    recipe, folder = make_run([{"kind": "jsonl", "train": [str(path)], "validation": [str(validation)]}])
    with pytest.raises(UserError, match="more than 4096 sources.*source_field"):
        tokenize(recipe, folder, "test")


def test_a_large_vocabulary_is_stored_in_four_bytes(make_run: MakeRun, tmp_path: Path) -> None:
    words = [END, *(f"w{number}" for number in range(1 << 16))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=END))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    texts = ["w1 w65535 w2", "w65534 w3", *(f"w{number}" for number in range(30))]
    (tmp_path / "x.jsonl").write_bytes(record_lines(texts))
    source = {"kind": "jsonl", "train": [str(tmp_path / "x.jsonl")], "validation_share": 0.2}
    recipe, folder = make_run([source], tokenizer=str(tmp_path / "tokenizer.json"))
    manifest = tokenize(recipe, folder, "test")
    assert (manifest.token_dtype, manifest.tokenizer.vocab_size) == ("uint32", (1 << 16) + 1)
    rows = np.concatenate([read_rows(folder.shards, manifest, key) for key in manifest.splits])
    assert {1 << 16, (1 << 16) - 1} <= set(rows.reshape(-1).tolist())
    check_vocabulary(manifest, (1 << 16) + 1)
    with pytest.raises(UserError, match="has 65537 entries, the backbone's vocab_size is 65536"):
        check_vocabulary(manifest, 1 << 16)


def test_shards_cost_less_than_three_percent_over_the_tokens(make_run: MakeRun, tmp_path: Path) -> None:
    texts = generated_texts(250, words=600)
    (tmp_path / "x.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(record_lines(texts, ("A", "B", "C"))))
    source = {"kind": "jsonl", "train": [str(tmp_path / "x.jsonl.zst")], "validation_share": 0.02}
    recipe, folder = make_run([source], seq_len=512, rows_per_chunk=128)
    train = tokenize(recipe, folder, "test").train
    raw = train.rows * 513 * 2
    assert train.rows > 256
    assert sum(shard.bytes for shard in train.shards) < 1.03 * raw
